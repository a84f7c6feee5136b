/**
 * The sockets of the authoritative server: dns2's UDP and TCP servers, with the handling of messages replaced
 * by our own for what they leave open (ARCHITECTURE, "dns2").
 */
import type { RemoteInfo } from 'node:dgram'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { TCPServer, UDPServer } from 'dns2'
import type { SocketAddress, Transport } from '../address.ts'
import { HEADER_OCTETS } from '../dns/query.ts'
import type { Reply } from '../dns/respond.ts'
import { untilDeadline } from '../lifecycle.ts'
import { bindAll, bindNodeUdp, listenNodeTcp, MAX_QUEUED_OCTETS, udpOptions } from './bind.ts'

/** Answers one message, or undefined where none is due. Must not throw. */
export type Answerer = (message: Buffer, transport: Transport) => Reply | undefined

interface DnsListener {
  readonly addresses: readonly SocketAddress[]
  close(deadline: AbortSignal): Promise<void>
}

export interface DnsListenOptions {
  readonly listen: readonly SocketAddress[]
  /** A TCP connection on which no whole query came, or no answer could be delivered, for this long is closed. */
  readonly tcpIdleMs?: number
  readonly tcpMaxConnections?: number
}

const TCP_IDLE_MS = 10_000
const TCP_MAX_CONNECTIONS = 1024
/** Queries of one connection answered before others have their turn. */
const TCP_QUERIES_A_TURN = 64
const TCP_MAX_CHUNKS = 256
/** Stands for one that cannot be answered: it is counted as dropped. */
const NO_MESSAGE = Buffer.alloc(0)

/** Resolves when every address listens, over UDP and TCP; rejects with Node's error if one cannot. */
export async function listenDns(answer: Answerer, options: DnsListenOptions): Promise<DnsListener> {
  const { tcpIdleMs = TCP_IDLE_MS, tcpMaxConnections = TCP_MAX_CONNECTIONS } = options
  const servers = await bindAll(
    options.listen,
    listenNodeTcp(() => new Tcp(answer, tcpIdleMs, tcpMaxConnections)),
    bindNodeUdp(address => new Udp(answer, address)),
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

class Udp extends UDPServer {
  readonly #answer: Answerer

  constructor(answer: Answerer, address: string) {
    // dns2 hands `type` to dgram.Socket as it is, which takes an options object there.
    super({ type: udpOptions(address) as unknown as 'udp4' })
    this.#answer = answer
    this.on('error', () => {})
  }

  override handle(query: Buffer, { address, port }: RemoteInfo): void {
    // To port 0 nothing can be sent: `send` would throw.
    const deaf = port === 0 || this.getSendQueueSize() > MAX_QUEUED_OCTETS
    const reply = this.#answer(deaf ? NO_MESSAGE : query, 'udp')
    if (reply) this.send(reply.octets, port, address, () => {})
  }
}

class Tcp extends TCPServer {
  readonly #answer: Answerer
  readonly #idleMs: number
  readonly #conversations = new Set<Conversation>()

  constructor(answer: Answerer, idleMs: number, maxConnections: number) {
    super()
    this.maxConnections = maxConnections
    this.#answer = answer
    this.#idleMs = idleMs
  }

  /** Called by dns2 for each connection. */
  handle(client: Socket): void {
    const conversation = new Conversation(client, this.#answer, this.#idleMs)
    this.#conversations.add(conversation)
    client.once('close', () => this.#conversations.delete(conversation))
  }

  async drain(deadline: AbortSignal): Promise<void> {
    const closed = once(this, 'close')
    this.close()
    for (const conversation of this.#conversations) conversation.finish()
    const cut = () => {
      for (const conversation of this.#conversations) conversation.client.destroy()
    }
    await untilDeadline(closed, deadline, cut)
  }
}

/** One TCP connection: queries with a two-octet length each, pipelined, answered in order (RFC 7766). */
class Conversation {
  readonly client: Socket
  readonly #answer: Answerer
  readonly #patience: NodeJS.Timeout
  #chunks: Buffer[] = []
  #octets = 0
  /** Of the message under way, without its prefix. */
  #expected: number | undefined
  #ended = false
  #pumping: NodeJS.Immediate | undefined

  constructor(client: Socket, answer: Answerer, idleMs: number) {
    this.client = client
    this.#answer = answer
    // Restarted by whole messages only: a client that sends an octet at a time does not live for ever.
    this.#patience = setTimeout(() => client.destroy(), idleMs)
    client.setNoDelay(true)
    client.on('error', () => client.destroy())
    client.on('close', () => {
      clearTimeout(this.#patience)
      clearImmediate(this.#pumping)
    })
    client.on('drain', () => this.#pump())
    client.on('end', () => this.finish())
    client.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk)
      this.#octets += chunk.length
      if (this.#chunks.length > TCP_MAX_CHUNKS) this.#merge()
      this.#pump()
    })
  }

  /** No more queries: what has come whole is answered, then the connection ends. */
  finish(): void {
    this.#ended = true
    this.#pump()
  }

  #pump(): void {
    const { client } = this
    if (this.#pumping || client.destroyed) return
    for (let turn = 0; turn < TCP_QUERIES_A_TURN; turn++) {
      // What the client does not read is not made: no buffering beyond the stream's own.
      if (client.writableNeedDrain) return void client.pause()
      const query = this.#take()
      if (!query) return void (this.#ended ? client.end() : client.resume())
      const reply = this.#answer(query, 'tcp')
      if (query.length < HEADER_OCTETS) return void client.destroy()
      this.#patience.refresh()
      if (reply) client.write(frame(reply.octets))
    }
    client.pause()
    this.#pumping = setImmediate(() => {
      this.#pumping = undefined
      this.#pump()
    })
  }

  #take(): Buffer | undefined {
    if (this.#octets < 2) return undefined
    this.#expected ??= this.#merge().readUInt16BE(0)
    const end = 2 + this.#expected
    if (this.#octets < end) return undefined
    const all = this.#merge()
    this.#chunks = [all.subarray(end)]
    this.#octets -= end
    this.#expected = undefined
    return all.subarray(2, end)
  }

  #merge(): Buffer {
    if (this.#chunks.length > 1) this.#chunks = [Buffer.concat(this.#chunks)]
    return this.#chunks[0]!
  }
}

/** In one buffer, so that prefix and message leave in one segment (RFC 7766 8). */
function frame(message: Buffer): Buffer {
  const framed = Buffer.allocUnsafe(2 + message.length)
  framed.writeUInt16BE(message.length)
  message.copy(framed, 2)
  return framed
}
