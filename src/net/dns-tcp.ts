/**
 * DNS over TCP: dns2's server, with the handling of connections replaced by our own (ARCHITECTURE, "dns2").
 */
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { TCPServer } from 'dns2'
import type { Clock } from '../clock.ts'
import type { Answerer } from '../dns/authority.ts'
import { HEADER_OCTETS } from '../dns/wire.ts'
import { untilDeadline } from '../lifecycle.ts'
import { type Held, holderOf, roomFor } from './eviction.ts'

/** How many queries of one connection are answered before other connections get their turn. */
const QUERIES_A_TURN = 64
const MAX_CHUNKS = 256
const NOTHING = Buffer.alloc(0)

/** What happened to a connection at the cap: closed for a newcomer, or closed as a newcomer. */
export type Crowded = 'evicted' | 'refused'

export interface DnsTcpOptions {
  /** A connection on which no whole query came for this long is closed. */
  readonly idleMs: number
  readonly maxConnections: number
  readonly clock: Clock
  readonly crowded: (what: Crowded) => void
}

export class DnsTcp extends TCPServer {
  readonly #answer: Answerer
  readonly #options: DnsTcpOptions
  readonly #conversations = new Set<Conversation>()

  constructor(answer: Answerer, options: DnsTcpOptions) {
    super()
    this.#answer = answer
    this.#options = options
  }

  /** Called by dns2 for each connection. */
  handle(client: Socket): void {
    const { maxConnections, crowded } = this.#options
    const holder = holderOf(client.remoteAddress ?? '')
    const verdict = roomFor(this.#conversations, holder, maxConnections)
    if (verdict === 'refuse') {
      crowded('refused')
      client.on('error', () => {}).destroy()
      return
    }
    if (verdict !== 'admit') {
      crowded('evicted')
      // Its place is free at once; the event that tells of its end comes later.
      this.#conversations.delete(verdict.evict)
      verdict.evict.client.destroy()
    }
    const conversation = new Conversation(client, holder, this.#answer, this.#options)
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
class Conversation implements Held {
  readonly client: Socket
  readonly holder: string
  readonly #clock: Clock
  /** When the last whole query came, or the kernel took the last reply. */
  #movedMs: number
  readonly #answer: Answerer
  readonly #idleTimer: NodeJS.Timeout
  #chunks: Buffer[] = []
  #octets = 0
  /** The octets of the message that is arriving, without its prefix. */
  #expected: number | undefined
  #ended = false
  #pumping: NodeJS.Immediate | undefined

  constructor(client: Socket, holder: string, answer: Answerer, { idleMs, clock }: DnsTcpOptions) {
    this.client = client
    this.holder = holder
    this.#clock = clock
    this.#movedMs = clock.now()
    this.#answer = answer
    // Only whole messages restart it. Otherwise a client could hold a connection with one octet at a time.
    this.#idleTimer = setTimeout(() => client.destroy(), idleMs)
    client.setNoDelay(true)
    client.on('error', () => client.destroy())
    client.on('close', () => {
      clearTimeout(this.#idleTimer)
      clearImmediate(this.#pumping)
    })
    client.on('drain', () => this.#pump())
    client.on('end', () => this.finish())
    client.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk)
      this.#octets += chunk.length
      if (this.#chunks.length > MAX_CHUNKS) this.#merge()
      this.#pump()
    })
  }

  get idleSince(): number | undefined {
    return this.#pumping ? undefined : this.#movedMs
  }

  /** Takes no more queries: those that have arrived whole are answered, and then the connection ends. */
  finish(): void {
    this.#ended = true
    this.#pump()
  }

  #pump(): void {
    const { client } = this
    if (this.#pumping || client.destroyed) return
    for (let turn = 0; turn < QUERIES_A_TURN; turn++) {
      // No answer is written for a client that does not read: nothing is buffered beyond the stream's own
      // buffer.
      if (client.writableNeedDrain) return void client.pause()
      const query = this.#take()
      if (!query) return void (this.#ended ? client.end() : client.resume())
      const reply = this.#answer(query, 'tcp')
      if (query.length < HEADER_OCTETS) return void client.destroy()
      this.#idleTimer.refresh()
      this.#moved()
      if (reply) client.write(frame(reply), this.#moved)
    }
    client.pause()
    this.#pumping = setImmediate(() => {
      this.#pumping = undefined
      this.#pump()
    })
  }

  readonly #moved = (): void => {
    this.#movedMs = this.#clock.now()
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
    const [first = NOTHING] = this.#chunks
    if (this.#chunks.length <= 1) return first
    const whole = Buffer.concat(this.#chunks)
    this.#chunks = [whole]
    return whole
  }
}

/** In one buffer, so that prefix and message leave in one segment (RFC 7766 8). */
function frame(message: Uint8Array): Buffer {
  const framed = Buffer.allocUnsafe(2 + message.length)
  framed.writeUInt16BE(message.length)
  framed.set(message, 2)
  return framed
}
