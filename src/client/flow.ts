/**
 * One client of `load`: a connection and what is in flight on it. It opens a new connection after a failure,
 * or for each operation where the options say so.
 */
import type { Clock } from '../clock.ts'
import type { Pace } from './pace.ts'
import type { Payloads } from './payload.ts'
import type { Answer } from './resolve.ts'
import type { LoadOptions, ReplicaResult } from './tally.ts'
import { openWire, type Wire } from './wire.ts'

/**
 * `opening`: no operation is sent before every flow has tried to open its connection. `draining`: none any
 * more.
 */
export type Phase = 'opening' | 'running' | 'draining' | 'over'

/** The run that a flow belongs to. */
export interface FlowRun {
  readonly options: LoadOptions
  readonly clock: Clock
  readonly payloads: Payloads
  /** Undefined in a closed loop. */
  readonly pace: Pace | undefined
  readonly phase: Phase
  /** Counts what happens before an address is known: look-ups that fail. */
  readonly lookUps: ReplicaResult
  lookUp(): Promise<Answer>
  replica(address: string): ReplicaResult
  /** Called after each attempt to open a connection, whether it succeeded or not. */
  tried(flow: Flow): void
  connectionFailed(reason: string): void
  /** Counts an operation that is sent. Returns how many were sent before. */
  sent(): number
  /** Counts an operation that is sent more than 1 ms after it was due. */
  sentBehind(): void
  /** Counts an operation that has its outcome; `done`: the right reply came. */
  settled(done: boolean, nowMs: number): void
}

interface Operation {
  readonly dueMs: number
  readonly sentMs: number
}

const MIN_RETRY_MS = 50
const MAX_RETRY_MS = 1000
/** A UDP replica that answers none of so many times `outstanding` operations is considered dead. */
const SILENT_ROUNDS = 3
const MAX_REMEMBERED_LOST = 1024
const BEHIND_MS = 1
/** The longest latency that is recorded, in nanoseconds. */
export const HIGHEST_NS = 100e9

export class Flow {
  readonly #run: FlowRun
  #state: 'idle' | 'opening' | 'open' | 'pausing' = 'idle'
  /** Tells events of the present connection from those of the ones before. */
  #attempt = 0
  #attemptStartedMs = 0
  #wire: Wire | undefined
  #replica: ReplicaResult
  #retryMs = MIN_RETRY_MS
  #cancelRetry = () => {}
  /** Open loop: the index of the operation that is sent next. Operations are dealt to the flows in turn. */
  #next: number
  /** By number, in the order of sending. */
  readonly #pending = new Map<number, Operation>()
  /** The latest operations that were lost on this connection: their replies may still come. */
  readonly #recentlyLost = new Set<number>()
  /** TCP: how many octets of the first pending reply have come. */
  #matchedOctets = 0
  #lostSinceReply = 0

  constructor(run: FlowRun, index: number) {
    this.#run = run
    this.#next = index
    this.#replica = run.lookUps
  }

  /** Opens the connection if it is closed, and sends what may be sent. */
  pump(): void {
    const { phase, options } = this.#run
    if (phase !== 'running' && phase !== 'opening') return
    if (this.#state === 'idle' && (!options.newConnection || this.#isDue())) this.open()
    if (this.#state !== 'open' || phase !== 'running') return
    while (this.#pending.size < options.outstanding && this.#isDue()) this.#send()
  }

  open(answer = this.#run.lookUp()): void {
    const { transport, port } = this.#run.options
    const attempt = ++this.#attempt
    const ifCurrent = (act: () => void) => this.#attempt === attempt && act()
    const fail = (error?: Error) => ifCurrent(() => this.#fail(reasonOf(error)))
    this.#state = 'opening'
    this.#replica = this.#run.lookUps
    this.#attemptStartedMs = this.#run.clock.now()
    answer.then(({ addresses }) => {
      // Also the addresses that are not used: the report has a line for each.
      const [replica] = addresses.map(address => this.#run.replica(address))
      ifCurrent(() => {
        this.#replica = replica!
        this.#replica.connections++
        const server = { address: this.#replica.address, port }
        this.#wire = openWire(transport, server, {
          opened: () => ifCurrent(() => this.#opened()),
          received: octets => ifCurrent(() => this.#received(octets)),
          broken: fail,
        })
      })
    }, fail)
  }

  /** Closes the connection; what was in flight on it is lost. */
  close(): void {
    this.#attempt++
    this.#cancelRetry()
    this.#state = 'idle'
    this.#wire?.close()
    this.#wire = undefined
    this.#matchedOctets = 0
    this.#lostSinceReply = 0
    this.#recentlyLost.clear()
    for (const number of this.#pending.keys()) this.#settle(number, 'lost')
  }

  /** Finds what has waited longer than `timeoutMs`. */
  sweep(nowMs: number): void {
    const { transport, outstanding, timeoutMs, newConnection } = this.#run.options
    if (this.#state === 'opening' && nowMs - this.#attemptStartedMs > timeoutMs)
      this.#fail('not open in time')
    const overdue = this.#overdue(nowMs)
    if (overdue.length === 0) return
    this.#lostSinceReply += overdue.length
    // After a lost reply nothing tells which octets of a stream belong to which operation.
    if (transport === 'tcp' || this.#lostSinceReply >= SILENT_ROUNDS * outstanding) this.#fail('silence')
    // A late reply must not be taken for that of the next operation.
    else if (newConnection || !this.#run.payloads.numbered) this.close()
    else for (const number of overdue) this.#lose(number)
    this.pump()
  }

  #overdue(nowMs: number): number[] {
    const numbers: number[] = []
    for (const [number, { sentMs }] of this.#pending) {
      if (nowMs - sentMs <= this.#run.options.timeoutMs) break
      numbers.push(number)
    }
    return numbers
  }

  /** Counts an operation as lost, and remembers it: its reply may still come. */
  #lose(number: number): void {
    this.#recentlyLost.add(number)
    if (this.#recentlyLost.size > MAX_REMEMBERED_LOST) this.#recentlyLost.delete(firstOf(this.#recentlyLost)!)
    this.#settle(number, 'lost')
  }

  #isDue(): boolean {
    const { pace } = this.#run
    return !pace || this.#next < pace.released
  }

  #send(): void {
    const { options, pace, clock, payloads } = this.#run
    const sentMs = clock.now()
    const count = this.#run.sent()
    let dueMs = options.newConnection ? this.#attemptStartedMs : sentMs
    // An operation may be released slightly before it is due, at the end of the run.
    if (pace) dueMs = Math.min(sentMs, pace.dueMs(this.#next))
    if (pace && sentMs - dueMs > BEHIND_MS) this.#run.sentBehind()
    const number = (pace ? this.#next : count) >>> 0
    this.#next += options.connections
    this.#pending.set(number, { dueMs, sentMs })
    this.#wire?.send(payloads.make(number))
  }

  #opened(): void {
    this.#state = 'open'
    this.#run.tried(this)
    this.pump()
  }

  /** The connection is of no more use: after a pause a new one is opened. */
  #fail(reason: string): void {
    this.#replica.failed++
    this.#run.connectionFailed(reason)
    this.close()
    // The last outcome ends the run.
    if (this.#run.phase === 'over') return
    this.#state = 'pausing'
    this.#cancelRetry = this.#run.clock.after(this.#retryMs, () => {
      this.#state = 'idle'
      this.pump()
    })
    this.#retryMs = Math.min(2 * this.#retryMs, MAX_RETRY_MS)
    this.#run.tried(this)
  }

  #received(octets: Buffer): void {
    this.#lostSinceReply = 0
    const { transport, newConnection } = this.#run.options
    if (transport === 'udp') this.#receivedDatagram(octets)
    if (transport === 'tcp' && !this.#receivedPiece(octets)) this.#fail('a wrong reply')
    else if (newConnection && this.#pending.size === 0) this.close()
    this.pump()
  }

  #receivedDatagram(reply: Buffer): void {
    const { payloads } = this.#run
    const number = payloads.numbered ? payloads.numberOf(reply) : firstOf(this.#pending)
    if (number !== undefined && this.#pending.has(number)) {
      const isRight = reply.length === payloads.size && payloads.matches(number, 0, reply)
      this.#settle(number, isRight ? 'done' : 'wrong')
    } else if (number !== undefined && this.#recentlyLost.delete(number)) {
      this.#replica.lost--
      this.#replica.late++
    } else this.#replica.wrong++
  }

  /** Takes a piece of the stream, wherever TCP cut it. Returns false when it differs from what was sent. */
  #receivedPiece(octets: Buffer): boolean {
    const { payloads } = this.#run
    let at = 0
    for (const number of this.#pending.keys()) {
      if (at === octets.length) return true
      const end = Math.min(octets.length, at + payloads.size - this.#matchedOctets)
      if (!payloads.matches(number, this.#matchedOctets, octets, at, end)) {
        this.#settle(number, 'wrong')
        return false
      }
      this.#matchedOctets += end - at
      at = end
      if (this.#matchedOctets < payloads.size) return true
      this.#matchedOctets = 0
      this.#settle(number, 'done')
    }
    if (at === octets.length) return true
    this.#replica.wrong++
    return false
  }

  #settle(number: number, outcome: 'done' | 'lost' | 'wrong'): void {
    const operation = this.#pending.get(number)
    // What is in flight when a run is ended early has no outcome.
    if (!operation || this.#run.phase === 'over') return
    this.#pending.delete(number)
    this.#replica[outcome]++
    const nowMs = this.#run.clock.now()
    if (outcome === 'done') {
      const latencyNs = Math.round((nowMs - operation.dueMs) * 1e6)
      this.#replica.latency.record(Math.min(HIGHEST_NS, Math.max(1, latencyNs)))
      this.#retryMs = MIN_RETRY_MS
    }
    this.#run.settled(outcome === 'done', nowMs)
  }
}

const reasonOf = (error?: NodeJS.ErrnoException): string =>
  error ? (error.code ?? error.message) : 'closed by the server'

const firstOf = (numbers: { keys(): Iterator<number> }): number | undefined => numbers.keys().next().value
