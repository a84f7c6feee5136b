/** The authoritative server's sockets: UDP and TCP at each address. */
import type { SocketAddress } from '../address.ts'
import type { Answerer } from '../dns/authority.ts'
import { bindAll, bindNodeUdp, listenNodeTcp } from './bind.ts'
import { DnsTcp } from './dns-tcp.ts'
import { DnsUdp } from './dns-udp.ts'

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
}

const TCP_IDLE_MS = 10_000
const TCP_MAX_CONNECTIONS = 1024

/** Resolves when every address listens, over UDP and TCP; rejects with Node's error if one cannot. */
export async function listenDns(answer: Answerer, options: DnsListenOptions): Promise<DnsListener> {
  const { tcpIdleMs = TCP_IDLE_MS, tcpMaxConnections = TCP_MAX_CONNECTIONS, unsent = () => {} } = options
  const servers = await bindAll(
    options.listen,
    listenNodeTcp(() => new DnsTcp(answer, tcpIdleMs, tcpMaxConnections)),
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
