/** What servers over TCP and UDP share: one port for both, one way to end. */
import { createSocket, type Socket, type SocketOptions } from 'node:dgram'
import { once } from 'node:events'
import type { Server } from 'node:net'
import { isIpv6, type SocketAddress } from './parse.ts'

interface Bound<T extends Server, U extends Socket> {
  /** With the port that the system chose. */
  readonly address: SocketAddress
  readonly tcp: T
  readonly udp: U
}

/** Replies that the kernel does not take yet; beyond this a datagram is dropped, as UDP may. */
export const MAX_QUEUED_OCTETS = 4 * 1024 * 1024
const RECEIVE_BUFFER_OCTETS = 4 * 1024 * 1024
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
export async function bindAll<T extends Server, U extends Socket>(
  addresses: readonly SocketAddress[],
  makeTcp: () => T,
  makeUdp: (address: string) => U,
): Promise<Bound<T, U>[]> {
  const bound: Bound<T, U>[] = []
  try {
    for (const address of addresses) bound.push(await bindBoth(address, makeTcp, makeUdp))
  } catch (error) {
    for (const { tcp, udp } of bound) {
      tcp.close()
      udp.close()
    }
    throw error
  }
  return bound
}

/** Port 0: the one that TCP got, tried anew when UDP has it in use. */
async function bindBoth<T extends Server, U extends Socket>(
  wanted: SocketAddress,
  makeTcp: () => T,
  makeUdp: (address: string) => U,
): Promise<Bound<T, U>> {
  for (let attempt = 1; ; attempt++) {
    const tcp = makeTcp()
    tcp.listen({ host: wanted.address, port: wanted.port, ipv6Only: true })
    await once(tcp, 'listening')
    const address = { address: wanted.address, port: (tcp.address() as { port: number }).port }
    const udp = makeUdp(wanted.address)
    try {
      // With a synchronous lookup it listens before `bind` returns.
      const listening = once(udp, 'listening')
      udp.bind({ ...address, exclusive: true })
      await listening
      return { address, tcp, udp }
    } catch (error) {
      tcp.close()
      udp.close()
      const taken = (error as NodeJS.ErrnoException).code === 'EADDRINUSE'
      if (wanted.port !== 0 || !taken || attempt === PORT_ZERO_TRIES) throw error
    }
  }
}

/** Waits for `done`; calls `cut`, which must bring it about, when `deadline` aborts. */
export async function untilDeadline(
  done: Promise<unknown>,
  deadline: AbortSignal,
  cut: () => void,
): Promise<void> {
  if (deadline.aborted) cut()
  else deadline.addEventListener('abort', cut, { once: true })
  await done
  deadline.removeEventListener('abort', cut)
}

export const udpSocket = (address: string): Socket => createSocket(udpOptions(address))
