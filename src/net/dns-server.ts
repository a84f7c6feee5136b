/** The authoritative server's sockets: UDP and TCP at each address. */
import type { SocketAddress } from '../address.ts'
import { type Clock, systemClock } from '../clock.ts'
import type { Answerer } from '../dns/authority.ts'
import { bindAll, bindNodeUdp, listenNodeTcp } from './bind.ts'
import { type Crowded, DnsTcp } from './dns-tcp.ts'
import { DnsUdp } from './dns-udp.ts'
import { descriptorRoom } from './listeners.ts'

interface DnsListener {
  readonly addresses: readonly SocketAddress[]
  close(deadline: AbortSignal): Promise<void>
}

export interface DnsListenOptions {
  readonly listen: readonly SocketAddress[]
  /**
   * A TCP connection on which no whole query came, or no answer could be delivered, for this long is closed.
   */
  readonly tcpIdleMs?: number
  readonly tcpMaxConnections?: number
  /** Called for each reply that UDP could not send. */
  readonly unsent?: (error: Error) => void
  /** Called for each connection that is closed at the cap. */
  readonly crowded?: (what: Crowded) => void
  readonly clock?: Clock
}

const TCP_IDLE_MS = 10_000
const TCP_MAX_CONNECTIONS = 1024

/** Resolves when every address listens, over UDP and TCP; rejects with Node's error if one cannot. */
export async function listenDns(answer: Answerer, options: DnsListenOptions): Promise<DnsListener> {
  const { tcpIdleMs = TCP_IDLE_MS, unsent = () => {}, crowded = () => {} } = options
  const tcp = {
    idleMs: tcpIdleMs,
    // Checks and the admin port need descriptors too.
    maxConnections: Math.min(options.tcpMaxConnections ?? TCP_MAX_CONNECTIONS, descriptorRoom()),
    clock: options.clock ?? systemClock,
    crowded,
  }
  const servers = await bindAll(
    options.listen,
    listenNodeTcp(() => new DnsTcp(answer, tcp)),
    bindNodeUdp(address => new DnsUdp(address, answer, unsent)),
  )
  return {
    addresses: servers.map(server => server.address),
    async close(deadline) {
      await Promise.all(
        servers.map(async ({ udp, tcp }) => {
          udp.close()
          await tcp.drain(deadline)
        }),
      )
    },
  }
}
