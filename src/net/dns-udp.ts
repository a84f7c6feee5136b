/** DNS over UDP: dns2's server, with the handling of datagrams replaced by our own (ARCHITECTURE, "dns2"). */
import type { RemoteInfo } from 'node:dgram'
import { UDPServer } from 'dns2'
import type { Answerer } from '../dns/authority.ts'
import { MAX_QUEUED_OCTETS, udpOptions } from './bind.ts'

/** Stands for a message that cannot be answered: it is counted as dropped. */
const NO_MESSAGE = Buffer.alloc(0)

export class DnsUdp extends UDPServer {
  readonly #answer: Answerer
  readonly #sent: (error: Error | null) => void

  /** `failed` is told of each reply that could not be sent. */
  constructor(address: string, answer: Answerer, failed: (error: Error) => void) {
    // dns2 hands `type` to dgram.Socket as it is, which takes an options object there.
    super({ type: udpOptions(address) as unknown as 'udp4' })
    this.#answer = answer
    this.#sent = error => {
      if (error) failed(error)
    }
    this.on('error', () => {})
  }

  override handle(query: Buffer, { address, port }: RemoteInfo): void {
    // To port 0 nothing can be sent: `send` would throw. And a reply that would only be queued may be
    // dropped.
    const unanswerable = port === 0 || this.getSendQueueSize() > MAX_QUEUED_OCTETS
    const reply = this.#answer(unanswerable ? NO_MESSAGE : query, 'udp')
    // A copy, since the socket may send it after the next has been written.
    if (reply) this.send(Buffer.from(reply), port, address, this.#sent)
  }
}
