/**
 * A load generator for echo servers: connections that each keep some operations in flight, one clock, one sweep.
 *
 * Closed loop (`rate` 0): a reply makes the next request, so a slow server is asked less, and its latencies are those
 * of the requests that it let us send. Open loop: operation i is due at start + i / rate, whatever the server does, and
 * its latency counts from then, also while it waits for its connection. Otherwise a stall would hide the very requests
 * that it held up: coordinated omission (Gil Tene, "How NOT to Measure Latency"; his wrk2 measures so too).
 */
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks'
import type { SocketAddress, Transport } from '../address.ts'
import { Payloads } from './payload.ts'
import type { LoadProgress, LoadResult, ReplicaResult } from './report.ts'
import { type Answer, type ResolveMode, resolver } from './resolve.ts'
import { openWire, type Wire } from './wire.ts'

export interface LoadOptions {
  readonly transport: Transport
  /** A name or an address. */
  readonly host: string
  readonly port: number
  readonly connections: number
  /** Operations in flight on a connection at most; 1 where each opens a new one. */
  readonly outstanding: number
  /** Octets of a payload: up to 65507, over TCP at least 1. */
  readonly size: number
  /** Operations a second over all connections; 0 for a closed loop. */
  readonly rate: number
  readonly durationMs: number
  /** From sending; also for a look-up together with opening the connection. */
  readonly timeoutMs: number
  readonly dns?: SocketAddress | undefined
  readonly resolve: ResolveMode
  /** A new connection for each operation: its latency begins with the look-up. */
  readonly newConnection: boolean
  readonly seed: number
}

interface Operation {
  readonly dueMs: number
  readonly sentMs: number
}

const MIN_PAUSE_MS = 50
const MAX_PAUSE_MS = 1000
/** A UDP replica that is silent for so many rounds of what may be in flight is taken for dead. */
const SILENT_ROUNDS = 3
const MAX_GONE = 1024
/** Node's timers are late by up to a millisecond or two: what is nearer is waited for by spinning. */
const SPIN_MS = 2
const BEHIND_MS = 1
const PROGRESS_MS = 1000
const HIGHEST_NS = 100e9

/** One client: a connection, its successors after failures or after each operation, and what is in flight on it. */
class Flow {
  state: 'idle' | 'opening' | 'open' | 'pausing' = 'idle'
  /** Tells events of the connection of now from those of its predecessors. */
  attempt = 0
  begunMs = 0
  wire: Wire | undefined
  replica: ReplicaResult
  pauseMs = MIN_PAUSE_MS
  /** Open loop: which operation it sends next. They are dealt in turn, so this is all of its queue. */
  next: number
  /** By number, in the order of sending. */
  readonly pending = new Map<number, Operation>()
  /** The latest that were lost here, whose replies may still come. */
  readonly gone = new Set<number>()
  /** TCP: octets of the first pending reply that have come. */
  matched = 0
  /** Operations lost since the last reply. */
  unheard = 0

  constructor(next: number, nobody: ReplicaResult) {
    this.next = next
    this.replica = nobody
  }
}

/**
 * Runs for `durationMs`, then waits for what is in flight; ends at once when `signal` aborts, and then what is in flight
 * counts as nothing. Rejects only when the first look-up fails: later failures are part of the result.
 */
export async function runLoad(
  options: LoadOptions,
  signal: AbortSignal,
  onProgress?: (progress: LoadProgress) => void,
): Promise<LoadResult> {
  const { promise, resolve, reject } = Promise.withResolvers<LoadResult>()
  const load = new Load(options, resolve)
  const end = () => load.end()
  signal.addEventListener('abort', end)
  if (signal.aborted) end()
  else load.start(onProgress).catch(reject)
  try {
    return await promise
  } finally {
    signal.removeEventListener('abort', end)
  }
}

class Load {
  readonly #options: LoadOptions
  readonly #onEnd: (result: LoadResult) => void
  readonly #resolve: () => Promise<Answer>
  readonly #payloads: Payloads
  readonly #replicas = new Map<string, ReplicaResult>()
  /** Whose connection it is while the look-up is under way: look-ups that fail are counted here. */
  readonly #nobody = newReplica('')
  readonly #reasons = new Map<string, number>()
  readonly #flows: readonly Flow[]
  /** Connections that have neither been opened nor failed yet; the clock starts when there are none. */
  readonly #unopened: Set<Flow>
  /** Operations of the whole run, with a rate. */
  readonly #total: number
  #phase: 'opening' | 'running' | 'draining' | 'over' = 'opening'
  #timers: NodeJS.Timeout[] = []
  #startedMs = 0
  #endedMs = 0
  #sent = 0
  /** Operations that are due by now, with a rate. */
  #released = 0
  #inFlight = 0
  #behind = 0

  constructor(options: LoadOptions, onEnd: (result: LoadResult) => void) {
    const { host, dns, timeoutMs, resolve, size, seed, connections, rate, durationMs } = options
    this.#options = options
    this.#onEnd = onEnd
    this.#resolve = resolver(host, dns, timeoutMs, resolve)
    this.#payloads = new Payloads(size, seed)
    this.#flows = Array.from({ length: connections }, (_, i) => new Flow(i, this.#nobody))
    this.#unopened = new Set(this.#flows)
    this.#total = Math.ceil((durationMs * rate) / 1000)
  }

  async start(onProgress: ((progress: LoadProgress) => void) | undefined): Promise<void> {
    const { timeoutMs, newConnection } = this.#options
    const first = await this.#resolve()
    if (this.#phase === 'over') return
    // The turn of the event loop in between reads what came while the process was held up, before it is called lost.
    const sweep = () => setImmediate(() => this.#sweep())
    this.#timers.push(setInterval(sweep, Math.min(100, Math.max(1, timeoutMs / 10))))
    if (onProgress) this.#timers.push(setInterval(() => onProgress(this.#progress()), PROGRESS_MS))
    for (const flow of this.#flows)
      if (flow === this.#flows[0]) this.#open(flow, Promise.resolve(first))
      else if (!newConnection) this.#open(flow)
    if (newConnection) this.#begin()
  }

  /** Ends the run, wherever it is. */
  end(): void {
    if (this.#phase === 'over') return
    if (this.#phase === 'running') this.#endedMs = performance.now()
    const result = this.#result()
    this.#phase = 'over'
    for (const timer of this.#timers) clearTimeout(timer)
    for (const flow of this.#flows) this.#shut(flow)
    this.#onEnd(result)
  }

  #begin(): void {
    const { durationMs, rate } = this.#options
    this.#phase = 'running'
    this.#startedMs = performance.now()
    this.#timers.push(setTimeout(() => this.#stop(), durationMs))
    if (rate > 0) this.#tick()
    else for (const flow of this.#flows) this.#pump(flow)
  }

  /** The end of sending. */
  #stop(): void {
    this.#release(this.#total)
    this.#endedMs = performance.now()
    this.#phase = 'draining'
    if (this.#inFlight === 0) this.end()
  }

  /** The clock of the open loop. */
  #tick(): void {
    if (this.#phase !== 'running') return
    const { rate } = this.#options
    this.#release(Math.floor(((performance.now() - this.#startedMs) * rate) / 1000) + 1)
    if (this.#released === this.#total) return
    const restMs = this.#startedMs + (this.#released * 1000) / rate - performance.now()
    if (restMs > SPIN_MS) setTimeout(() => this.#tick(), restMs - SPIN_MS).unref()
    else setImmediate(() => this.#tick())
  }

  /** Lets the operations up to `count` be sent. */
  #release(count: number): void {
    const from = this.#released
    this.#released = Math.min(this.#total, count)
    const flows = this.#flows
    for (let i = 0; i < Math.min(this.#released - from, flows.length); i++)
      this.#pump(flows[(from + i) % flows.length]!)
  }

  /** Opens what is closed, and sends what may be sent. */
  #pump(flow: Flow): void {
    const { outstanding, newConnection } = this.#options
    if (this.#phase !== 'running' && this.#phase !== 'opening') return
    if (flow.state === 'idle' && (!newConnection || this.#isDue(flow))) this.#open(flow)
    if (flow.state !== 'open' || this.#phase !== 'running') return
    while (flow.pending.size < outstanding && this.#isDue(flow)) this.#send(flow)
  }

  #isDue = (flow: Flow): boolean => this.#options.rate === 0 || flow.next < this.#released

  #send(flow: Flow): void {
    const { rate, connections, newConnection } = this.#options
    const sentMs = performance.now()
    const index = rate > 0 ? flow.next : this.#sent
    // The timer of the end may be a little early.
    let dueMs = newConnection ? flow.begunMs : sentMs
    if (rate > 0) dueMs = Math.min(sentMs, this.#startedMs + (index * 1000) / rate)
    if (rate > 0 && sentMs - dueMs > BEHIND_MS) this.#behind++
    flow.next += connections
    const n = index >>> 0
    flow.pending.set(n, { dueMs, sentMs })
    this.#sent++
    this.#inFlight++
    flow.wire?.send(this.#payloads.make(n))
  }

  #open(flow: Flow, answer = this.#resolve()): void {
    const { transport, port } = this.#options
    const attempt = ++flow.attempt
    const ifCurrent = (act: () => void) => flow.attempt === attempt && act()
    const fail = (error?: Error) => ifCurrent(() => this.#fail(flow, reasonOf(error)))
    flow.state = 'opening'
    flow.replica = this.#nobody
    flow.begunMs = performance.now()
    answer.then(({ addresses }) => {
      const [replica] = addresses.map(address => this.#replica(address))
      ifCurrent(() => {
        flow.replica = replica!
        replica!.connections++
        const server = { address: replica!.address, port }
        flow.wire = openWire(transport, server, {
          opened: () => ifCurrent(() => this.#opened(flow)),
          received: octets => ifCurrent(() => this.#received(flow, octets)),
          broken: fail,
        })
      })
    }, fail)
  }

  #opened(flow: Flow): void {
    flow.state = 'open'
    this.#tried(flow)
    this.#pump(flow)
  }

  #tried(flow: Flow): void {
    if (this.#unopened.delete(flow) && this.#unopened.size === 0 && this.#phase === 'opening') this.#begin()
  }

  /** The connection is of no more use, and not by our choice: it is opened anew after a pause. */
  #fail(flow: Flow, reason: string): void {
    flow.replica.failed++
    this.#reasons.set(reason, (this.#reasons.get(reason) ?? 0) + 1)
    this.#shut(flow)
    flow.state = 'pausing'
    const retry = () => {
      flow.state = 'idle'
      this.#pump(flow)
    }
    // It must not hold up a process whose run is over.
    setTimeout(retry, flow.pauseMs).unref()
    flow.pauseMs = Math.min(2 * flow.pauseMs, MAX_PAUSE_MS)
    this.#tried(flow)
  }

  /** Closes the connection; what was in flight on it is lost. */
  #shut(flow: Flow): void {
    flow.attempt++
    flow.state = 'idle'
    flow.wire?.close()
    flow.wire = undefined
    flow.matched = 0
    flow.unheard = 0
    flow.gone.clear()
    for (const n of flow.pending.keys()) this.#settle(flow, n, 'lost')
  }

  #received(flow: Flow, octets: Buffer): void {
    flow.unheard = 0
    const { transport, newConnection } = this.#options
    if (transport === 'udp') this.#datagram(flow, octets)
    if (transport === 'tcp' && !this.#piece(flow, octets)) this.#fail(flow, 'a wrong reply')
    else if (newConnection && flow.pending.size === 0) this.#shut(flow)
    this.#pump(flow)
  }

  #datagram(flow: Flow, reply: Buffer): void {
    const { size, numbered } = this.#payloads
    const n = numbered ? this.#payloads.numberOf(reply) : firstOf(flow.pending)
    if (n !== undefined && flow.pending.has(n))
      this.#settle(flow, n, reply.length === size && this.#payloads.matches(n, 0, reply) ? 'done' : 'wrong')
    else if (n !== undefined && flow.gone.delete(n)) {
      flow.replica.lost--
      flow.replica.late++
    } else flow.replica.wrong++
  }

  /** A piece of the stream, however TCP cut it. False when it is not what was sent. */
  #piece(flow: Flow, octets: Buffer): boolean {
    let at = 0
    for (const n of flow.pending.keys()) {
      if (at === octets.length) return true
      const end = Math.min(octets.length, at + this.#payloads.size - flow.matched)
      if (!this.#payloads.matches(n, flow.matched, octets, at, end)) {
        this.#settle(flow, n, 'wrong')
        return false
      }
      flow.matched += end - at
      at = end
      if (flow.matched < this.#payloads.size) return true
      flow.matched = 0
      this.#settle(flow, n, 'done')
    }
    if (at === octets.length) return true
    flow.replica.wrong++
    return false
  }

  #settle(flow: Flow, n: number, outcome: 'done' | 'lost' | 'wrong'): void {
    const operation = flow.pending.get(n)
    if (!operation || this.#phase === 'over') return
    flow.pending.delete(n)
    flow.replica[outcome]++
    this.#inFlight--
    if (outcome === 'done') {
      const now = performance.now()
      const latencyNs = Math.round((now - operation.dueMs) * 1e6)
      flow.replica.latency.record(Math.min(HIGHEST_NS, Math.max(1, latencyNs)))
      flow.pauseMs = MIN_PAUSE_MS
      if (this.#phase === 'draining') this.#endedMs = now
    }
    if (this.#phase === 'draining' && this.#inFlight === 0) this.end()
  }

  /** Finds what waited too long. */
  #sweep(): void {
    const { transport, outstanding, timeoutMs, newConnection } = this.#options
    if (this.#phase === 'over') return
    const now = performance.now()
    for (const flow of this.#flows) {
      if (flow.state === 'opening' && now - flow.begunMs > timeoutMs) this.#fail(flow, 'not open in time')
      const before = flow.unheard
      for (const [n, { sentMs }] of flow.pending) {
        if (now - sentMs <= timeoutMs) break
        this.#settle(flow, n, 'lost')
        flow.unheard++
        flow.gone.add(n)
        if (flow.gone.size > MAX_GONE) flow.gone.delete(firstOf(flow.gone) as number)
      }
      if (flow.unheard === before) continue
      // A stream has no room for a lost reply.
      if (transport === 'tcp' || flow.unheard >= SILENT_ROUNDS * outstanding) this.#fail(flow, 'silence')
      // A late reply must not be taken for the next one's.
      else if (newConnection || !this.#payloads.numbered) this.#shut(flow)
      this.#pump(flow)
    }
  }

  #replica(address: string): ReplicaResult {
    const replica = this.#replicas.get(address) ?? newReplica(address)
    this.#replicas.set(address, replica)
    return replica
  }

  #progress(): LoadProgress {
    const endedMs = this.#phase === 'running' ? performance.now() : this.#endedMs
    return {
      elapsedMs: this.#startedMs > 0 ? endedMs - this.#startedMs : 0,
      behind: this.#behind,
      unsent: Math.max(0, this.#released - this.#sent),
      failedLookUps: this.#nobody.failed,
      reasons: Object.fromEntries(this.#reasons),
      replicas: [...this.#replicas.values()].sort((a, b) =>
        a.address.localeCompare(b.address, undefined, { numeric: true }),
      ),
    }
  }

  #result(): LoadResult {
    const latency = newHistogram()
    for (const replica of this.#replicas.values()) latency.add(replica.latency)
    return { ...this.#progress(), latency }
  }
}

const reasonOf = (error?: NodeJS.ErrnoException): string =>
  error ? (error.code ?? error.message) : 'closed by the server'

const newReplica = (address: string): ReplicaResult => {
  const counts = { connections: 0, done: 0, lost: 0, wrong: 0, late: 0, failed: 0 }
  return { address, ...counts, latency: newHistogram() }
}

const newHistogram = (): RecordableHistogram =>
  createHistogram({ lowest: 1, highest: HIGHEST_NS, figures: 3 })

const firstOf = (numbers: { keys(): Iterator<number> }): number | undefined => numbers.keys().next().value
