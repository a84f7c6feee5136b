/** What servers over TCP and UDP share: one port for both, one way to end. */
import { createSocket, type Socket, type SocketOptions } from 'node:dgram'
import { once } from 'node:events'
import type { Server } from 'node:net'
import { isIpv6, type SocketAddress } from '../address.ts'

interface Closable {
  close(): unknown
}

/** Opens a socket; resolves with it and the port that the system chose, or rejects with Node's error. */
export type Open<S> = (wanted: SocketAddress) => Promise<{ readonly socket: S; readonly port: number }>

interface Bound<T, U> {
  /** With the port that the system chose. */
  readonly address: SocketAddress
  readonly tcp: T
  readonly udp: U
}

/** Replies that the kernel does not take yet; beyond this a datagram is dropped, as UDP may. */
export const MAX_QUEUED_OCTETS = 4 * 1024 * 1024
export const RECEIVE_BUFFER_OCTETS = 4 * 1024 * 1024
const PORT_ZERO_TRIES = 10

/** What both of our UDP servers want of a socket for this address. */
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

/** Resolves when all listen; rejects with Node's error (`code`, `address`, `port`) if one cannot, and then none does. */
export async function bindAll<T extends Closable | undefined, U extends Closable | undefined>(
  addresses: readonly SocketAddress[],
  openTcp: Open<T>,
  openUdp: Open<U>,
): Promise<Bound<T, U>[]> {
  const bound: Bound<T, U>[] = []
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

/** Port 0: the one that TCP got, tried anew when UDP has it in use. */
async function bindBoth<T extends Closable | undefined, U>(
  wanted: SocketAddress,
  openTcp: Open<T>,
  openUdp: Open<U>,
): Promise<Bound<T, U>> {
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

/** For a transport that is not served. */
export const openNothing: Open<undefined> = async ({ port }) => ({ socket: undefined, port })

/** Over TCP, by Node. */
export const openTcp =
  <T extends Server>(make: () => T): Open<T> =>
  async wanted => {
    const socket = make()
    socket.listen({ host: wanted.address, port: wanted.port, ipv6Only: true })
    await once(socket, 'listening')
    return { socket, port: (socket.address() as { port: number }).port }
  }

/** Over UDP, by Node. */
export const openUdp =
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

/** On a machine that has no IPv6, "every address" is those of IPv4: `open` is called again without `::`. */
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

export const udpSocket = (address: string): Socket => createSocket(udpOptions(address))
