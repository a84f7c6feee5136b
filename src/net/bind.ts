/** Binds TCP and UDP sockets to the same addresses and ports: all of them or none. */
import { createSocket, type Socket, type SocketOptions } from 'node:dgram'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import type { Server } from 'node:net'
import { isIpv6, type SocketAddress } from '../address.ts'

interface Closable {
  close(): unknown
}

/** Opens a socket. Resolves with it and the port that the system chose, or rejects with Node's error. */
export type Open<S> = (wanted: SocketAddress) => Promise<{ readonly socket: S; readonly port: number }>

/** The sockets of one address. */
interface BoundPair<T, U> {
  /** With the port that the system chose. */
  readonly address: SocketAddress
  readonly tcp: T
  readonly udp: U
}

/** With more octets than this waiting for the kernel to take them, a datagram is dropped, as UDP may be. */
export const MAX_QUEUED_OCTETS = 4 * 1024 * 1024
export const RECEIVE_BUFFER_OCTETS = 4 * 1024 * 1024
const PORT_ZERO_TRIES = 10

/** The options of a UDP server's socket for this address. */
export function udpOptions(address: string): SocketOptions {
  const family = isIpv6(address) ? 6 : 4
  return {
    type: `udp${family}`,
    ipv6Only: family === 6,
    recvBufferSize: RECEIVE_BUFFER_OCTETS,
    // Peers are always IP addresses: Node's default would send each through a deferred dns.lookup.
    lookup: (peer, _options, callback) => callback(null, peer, family),
  }
}

/**
 * Resolves when all listen. If one cannot, all are closed, and it rejects with Node's error (`code`,
 * `address`, `port`).
 */
export async function bindAll<T extends Closable | undefined, U extends Closable | undefined>(
  addresses: readonly SocketAddress[],
  openTcp: Open<T>,
  openUdp: Open<U>,
): Promise<BoundPair<T, U>[]> {
  const bound: BoundPair<T, U>[] = []
  try {
    for (const address of addresses) bound.push(await bindBoth(address, openTcp, openUdp))
  } catch (error) {
    for (const { tcp, udp } of bound) {
      tcp?.close()
      udp?.close()
    }
    throw error
  }
  return bound
}

/** For port 0, UDP takes the port that TCP received; if another UDP socket has it, both are tried again. */
async function bindBoth<T extends Closable | undefined, U>(
  wanted: SocketAddress,
  openTcp: Open<T>,
  openUdp: Open<U>,
): Promise<BoundPair<T, U>> {
  for (let attempt = 1; ; attempt++) {
    const tcp = await openTcp(wanted)
    try {
      const udp = await openUdp({ ...wanted, port: tcp.port })
      return { address: { ...wanted, port: udp.port }, tcp: tcp.socket, udp: udp.socket }
    } catch (error) {
      tcp.socket?.close()
      const taken = (error as NodeJS.ErrnoException).code === 'EADDRINUSE'
      if (wanted.port !== 0 || !taken || attempt === PORT_ZERO_TRIES) throw error
    }
  }
}

/** Stands for a transport that is not served. */
export const openNone: Open<undefined> = async ({ port }) => ({ socket: undefined, port })

/** A TCP server of Node that listens. */
export const listenNodeTcp =
  <T extends Server>(make: () => T): Open<T> =>
  async wanted => {
    const socket = make()
    socket.listen({ host: wanted.address, port: wanted.port, ipv6Only: true })
    await once(socket, 'listening')
    return { socket, port: (socket.address() as { port: number }).port }
  }

/** A UDP socket of Node that is bound. */
export const bindNodeUdp =
  <U extends Socket>(make: (address: string) => U): Open<U> =>
  async wanted => {
    const socket = make(wanted.address)
    try {
      // With a synchronous lookup it listens before `bind` returns.
      const listening = once(socket, 'listening')
      socket.bind({ ...wanted, exclusive: true })
      await listening
      return { socket, port: socket.address().port }
    } catch (error) {
      socket.close()
      throw error
    }
  }

/** On a machine without IPv6, "every address" means those of IPv4: `open` is called again without `::`. */
export async function retryWithoutIpv6<T>(
  addresses: readonly SocketAddress[],
  open: (addresses: readonly SocketAddress[]) => Promise<T>,
): Promise<T> {
  try {
    return await open(addresses)
  } catch (error) {
    const { code, address } = error as NodeJS.ErrnoException & { address?: string }
    const others = addresses.filter(({ address }) => address !== '::')
    const missing = (code === 'EAFNOSUPPORT' || code === 'EADDRNOTAVAIL') && address === '::'
    if (!missing || others.length === 0) throw error
    return open(others)
  }
}

const DEFAULT_EPHEMERAL_FROM = 32_768

/** The lowest port that the kernel gives to a client by itself. Servers have lower ones. */
export function ephemeralFrom(): number {
  try {
    return Number.parseInt(readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8'), 10)
  } catch {
    // Not Linux.
    return DEFAULT_EPHEMERAL_FROM
  }
}

export const udpSocket = (address: string): Socket => createSocket(udpOptions(address))
