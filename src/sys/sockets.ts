/**
 * Sockets that are opened through Linux' own calls, for servers that use `sys/libc` or share a descriptor.
 */
import { constants } from 'node:os'
import { isIpv6, type SocketAddress } from '../address.ts'
import { headers, layouts } from './layouts.ts'
import {
  bind,
  check,
  close,
  getsockname,
  getsockopt,
  interfaceIndex,
  listen,
  setsockopt,
  socket,
} from './libc.ts'

/** An errno as the calls in `libc.ts` return it. */
export const errno = (name: keyof typeof constants.errno): number => -constants.errno[name]

const v4 = layouts.sockaddr_in
const v6 = layouts.sockaddr_in6

/** A `struct sockaddr_in` or `sockaddr_in6`, with a scope for addresses such as `fe80::1%eth0`. */
export function encodeAddress({ address, port }: SocketAddress): Buffer {
  const family = isIpv6(address) ? headers.AF_INET6 : headers.AF_INET
  const encoded = Buffer.alloc(isIpv6(address) ? v6.size : v4.size)
  // The family is in the machine's order (both are little-endian), the port in the network's.
  encoded.writeUInt16LE(family, v4.at.sin_family)
  encoded.writeUInt16BE(port, v4.at.sin_port)
  if (!isIpv6(address)) {
    encoded.set(address.split('.').map(Number), v4.at.sin_addr)
    return encoded
  }
  const [host, zone] = address.split('%')
  groups(host!).forEach((group, i) => {
    encoded.writeUInt16BE(group, v6.at.sin6_addr + 2 * i)
  })
  if (zone) encoded.writeUInt32LE(scopeId(zone), v6.at.sin6_scope_id)
  return encoded
}

function groups(host: string): number[] {
  // The last four octets may be written as an IPv4 address (RFC 4291 2.2).
  const hex = host.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, a, b, c, d) =>
    [a * 256 + +b, c * 256 + +d].map(n => n.toString(16)).join(':'),
  )
  const [head, tail] = hex.split('::').map(part => (part === '' ? [] : part.split(':')))
  const zeros = Array(8 - head!.length - (tail?.length ?? 0)).fill('0')
  return [...head!, ...zeros, ...(tail ?? [])].map(group => Number.parseInt(group, 16))
}

const scopeId = (zone: string): number => (/^\d+$/.test(zone) ? Number(zone) : interfaceIndex(zone))

/** What kind of socket an inherited descriptor is. Throws ENOTSOCK where it is not a socket. */
export function inherited(fd: number): 'listener' | 'connection' | 'datagrams' {
  const { SOL_SOCKET, SO_TYPE, SO_ACCEPTCONN, SOCK_DGRAM } = headers
  const value = new Int32Array(1)
  const ask = (name: number) => {
    check(getsockopt(fd, SOL_SOCKET, name, value, Uint32Array.of(value.byteLength)), 'getsockopt')
    return value[0]
  }
  if (ask(SO_TYPE) === SOCK_DGRAM) return 'datagrams'
  return ask(SO_ACCEPTCONN) ? 'listener' : 'connection'
}

/** The port that a socket is bound to. */
export function portOf(fd: number): number {
  const named = Buffer.alloc(v6.size)
  check(getsockname(fd, named, Uint32Array.of(named.length)), 'getsockname')
  return portOfEncoded(named)
}

/** The port of an encoded address. */
export const portOfEncoded = (encoded: Uint8Array): number =>
  encoded[v4.at.sin_port]! * 256 + encoded[v4.at.sin_port + 1]!

const int = (value: number): Int32Array => Int32Array.of(value)

/** A socket that is bound to an address. */
export interface BoundSocket {
  readonly fd: number
  /** With the port that the system chose. */
  readonly address: SocketAddress
}

/** A bound, close-on-exec socket. Throws an error as Node does: `bind EADDRINUSE 127.0.0.1:7007`. */
function open(wanted: SocketAddress, type: number, prepare: (fd: number) => void): BoundSocket {
  const ipv6 = isIpv6(wanted.address)
  const family = ipv6 ? headers.AF_INET6 : headers.AF_INET
  const fd = check(socket(family, type | headers.SOCK_CLOEXEC), 'bind', wanted)
  try {
    if (ipv6) check(setsockopt(fd, headers.IPPROTO_IPV6, headers.IPV6_V6ONLY, int(1)), 'setsockopt', wanted)
    prepare(fd)
    check(bind(fd, encodeAddress(wanted)), 'bind', wanted)
    return { fd, address: { address: wanted.address, port: portOf(fd) } }
  } catch (error) {
    close(fd)
    throw error
  }
}

/** Listens over TCP, with the longest queue that the system allows. */
export function listenTcp(wanted: SocketAddress, blocking = false): BoundSocket {
  const { SOCK_STREAM, SOCK_NONBLOCK, SOL_SOCKET, SO_REUSEADDR } = headers
  const bound = open(wanted, SOCK_STREAM | (blocking ? 0 : SOCK_NONBLOCK), fd => {
    // Without this option a restart has to wait until no old connection is in TIME_WAIT.
    check(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, int(1)), 'setsockopt', wanted)
  })
  try {
    check(listen(bound.fd, BACKLOG), 'listen', wanted)
    return bound
  } catch (error) {
    close(bound.fd)
    throw error
  }
}

/** The kernel cuts it to net.core.somaxconn: 4096 since Linux 5.4. */
export const BACKLOG = 65_535

/** A bound, blocking UDP socket. The kernel cuts `receiveBufferOctets` to net.core.rmem_max. */
export const bindUdp = (wanted: SocketAddress, receiveBufferOctets: number): BoundSocket =>
  open(wanted, headers.SOCK_DGRAM, fd => {
    const { SOL_SOCKET, SO_RCVBUF } = headers
    check(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, int(receiveBufferOctets)), 'setsockopt', wanted)
  })

/**
 * Listens on a Unix socket; nothing may exist at `path`. Throws an error as Node does, with `path` as its
 * address.
 */
export function listenUnix(path: string, blocking: boolean): number {
  const { AF_UNIX, SOCK_STREAM, SOCK_CLOEXEC, SOCK_NONBLOCK } = headers
  const type = SOCK_STREAM | SOCK_CLOEXEC | (blocking ? 0 : SOCK_NONBLOCK)
  const where = { address: path, port: 0 }
  const address = Buffer.alloc(layouts.sockaddr_un.size)
  address.writeUInt16LE(AF_UNIX, layouts.sockaddr_un.at.sun_family)
  address.write(path, layouts.sockaddr_un.at.sun_path)
  const fd = check(socket(AF_UNIX, type), 'bind', where)
  try {
    check(bind(fd, address), 'bind', where)
    check(listen(fd, BACKLOG), 'listen', where)
    return fd
  } catch (error) {
    close(fd)
    throw error
  }
}

/** Blocking calls on this socket return EAGAIN after this time; 0: they wait for ever. */
export function giveUpAfter(fd: number, ms: number): void {
  const { SOL_SOCKET, SO_RCVTIMEO, SO_SNDTIMEO } = headers
  const limit = Buffer.alloc(layouts.timeval.size)
  limit.writeBigInt64LE(BigInt(Math.floor(ms / 1000)), layouts.timeval.at.tv_sec)
  limit.writeBigInt64LE(BigInt((ms % 1000) * 1000), layouts.timeval.at.tv_usec)
  check(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, limit), 'setsockopt')
  check(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, limit), 'setsockopt')
}

/**
 * Sets the options of a connection for a blocking server, whose calls then return EAGAIN after `sliceMs`. On
 * a listening socket they are set for all connections that it accepts: Linux copies them.
 */
export function prepareConnection(fd: number, sliceMs: number): void {
  const { SOL_SOCKET, SO_KEEPALIVE, IPPROTO_TCP, TCP_NODELAY } = headers
  giveUpAfter(fd, sliceMs)
  check(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, int(1)), 'setsockopt')
  // Not every stream is TCP: inetd also listens on Unix sockets.
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, int(1))
}

/** Connections that wait in the queue of a listening socket. tcp_info calls them unacknowledged. */
export function queued(fd: number): number {
  const { size, at } = layouts.tcp_info
  const info = Buffer.alloc(size)
  const outcome = getsockopt(fd, headers.IPPROTO_TCP, headers.TCP_INFO, info, Uint32Array.of(size))
  return outcome < 0 ? 0 : info.readUInt32LE(at.tcpi_unacked)
}
