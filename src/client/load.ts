/**
 * A load generator for echo servers: a number of flows, each of which keeps some operations in flight.
 *
 * Closed loop (`rate` 0): a reply makes the next request. A slow server is asked less, and its latencies are
 * only those of the requests that it let us send. Open loop: operation i is due at start + i / rate, whatever
 * the server does, and its latency counts from then, also while it waits for its connection. Otherwise a
 * stall would hide the very requests that it delayed: coordinated omission (Gil Tene, "How NOT to Measure
 * Latency"; his wrk2 measures in this way too).
 */
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks'
import { type Clock, systemClock } from '../clock.ts'
import { Flow, type FlowRun, HIGHEST_NS, type Phase } from './flow.ts'
import { Pace } from './pace.ts'
import { Payloads } from './payload.ts'
import { type Answer, resolver } from './resolve.ts'
import type { LoadOptions, LoadProgress, LoadResult, ReplicaResult } from './tally.ts'

/**
 * Node's timers are late by up to a millisecond or two: a shorter wait is spent by turning the event loop.
 */
const SPIN_MS = 2
const MAX_SWEEP_MS = 100
const PROGRESS_MS = 1000

/**
 * Sends for `durationMs`, then waits for what is in flight. When `signal` aborts, the run ends at once, and
 * what is in flight is not counted. Rejects only when the first look-up fails: later failures are part of the
 * result.
 */
export async function runLoad(
  options: LoadOptions,
  signal: AbortSignal,
  onProgress?: (progress: LoadProgress) => void,
  clock: Clock = systemClock,
): Promise<LoadResult> {
  const { promise, resolve, reject } = Promise.withResolvers<LoadResult>()
  const load = new Load(options, clock, resolve)
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

class Load implements FlowRun {
  readonly options: LoadOptions
  readonly clock: Clock
  readonly payloads: Payloads
  readonly pace: Pace | undefined
  readonly lookUp: () => Promise<Answer>
  readonly lookUps = newReplica('')
  phase: Phase = 'opening'
  readonly #onEnd: (result: LoadResult) => void
  readonly #flows: readonly Flow[]
  /** Flows that have not tried to open a connection yet. The first operation is sent when there are none. */
  readonly #untried: Set<Flow>
  readonly #replicas = new Map<string, ReplicaResult>()
  readonly #reasons = new Map<string, number>()
  readonly #timers = new Set<() => void>()
  #startedMs: number | undefined
  #endedMs = 0
  #sent = 0
  #inFlight = 0
  #behind = 0

  constructor(options: LoadOptions, clock: Clock, onEnd: (result: LoadResult) => void) {
    const { host, dns, timeoutMs, resolve, size, seed, connections, rate, durationMs } = options
    this.options = options
    this.clock = clock
    this.#onEnd = onEnd
    this.lookUp = resolver(host, dns, timeoutMs, resolve, clock)
    this.payloads = new Payloads(size, seed)
    this.pace = rate > 0 ? new Pace(rate, durationMs) : undefined
    this.#flows = Array.from({ length: connections }, (_, index) => new Flow(this, index))
    this.#untried = new Set(this.#flows)
  }

  async start(onProgress: ((progress: LoadProgress) => void) | undefined): Promise<void> {
    const { timeoutMs, newConnection } = this.options
    const first = await this.lookUp()
    if (this.phase === 'over') return
    // After a pause of this process the replies that came meanwhile are read first, in a turn of the event
    // loop.
    const sweep = () => setImmediate(() => this.#sweep())
    this.#every(Math.min(MAX_SWEEP_MS, Math.max(1, timeoutMs / 10)), sweep)
    if (onProgress) this.#every(PROGRESS_MS, () => onProgress(this.#progress()))
    for (const [index, flow] of this.#flows.entries())
      if (index === 0) flow.open(Promise.resolve(first))
      else if (!newConnection) flow.open()
    if (newConnection) this.#begin()
  }

  /** Ends the run in any phase. */
  end(): void {
    if (this.phase === 'over') return
    if (this.phase === 'running') this.#endedMs = this.clock.now()
    const result = this.#result()
    this.phase = 'over'
    for (const cancel of this.#timers) cancel()
    for (const flow of this.#flows) flow.close()
    this.#onEnd(result)
  }

  replica(address: string): ReplicaResult {
    const replica = this.#replicas.get(address) ?? newReplica(address)
    this.#replicas.set(address, replica)
    return replica
  }

  tried(flow: Flow): void {
    if (this.#untried.delete(flow) && this.#untried.size === 0 && this.phase === 'opening') this.#begin()
  }

  connectionFailed(reason: string): void {
    this.#reasons.set(reason, (this.#reasons.get(reason) ?? 0) + 1)
  }

  sent(): number {
    this.#inFlight++
    return this.#sent++
  }

  sentBehind(): void {
    this.#behind++
  }

  settled(done: boolean, nowMs: number): void {
    this.#inFlight--
    if (this.phase !== 'draining') return
    if (done) this.#endedMs = nowMs
    if (this.#inFlight === 0) this.end()
  }

  #begin(): void {
    const nowMs = this.clock.now()
    this.phase = 'running'
    this.#startedMs = nowMs
    this.#after(this.options.durationMs, () => this.#stopSending())
    if (this.pace) {
      this.pace.start(nowMs)
      this.#tick(this.pace)
    } else for (const flow of this.#flows) flow.pump()
  }

  #stopSending(): void {
    if (this.pace) this.#release(this.pace, pace => pace.releaseAll())
    this.#endedMs = this.clock.now()
    this.phase = 'draining'
    if (this.#inFlight === 0) this.end()
  }

  /** Sends what is due, and waits for what is due next. */
  #tick(pace: Pace): void {
    if (this.phase !== 'running') return
    this.#release(pace, pace => pace.release(this.clock.now()))
    const waitMs = pace.waitMs(this.clock.now())
    if (waitMs === undefined) return
    if (waitMs > SPIN_MS) this.#after(waitMs - SPIN_MS, () => this.#tick(pace))
    else setImmediate(() => this.#tick(pace))
  }

  /** Lets the flows whose turn it is send the operations that `release` releases. */
  #release(pace: Pace, release: (pace: Pace) => void): void {
    const from = pace.released
    release(pace)
    const { length } = this.#flows
    for (let i = 0; i < Math.min(pace.released - from, length); i++) this.#flows[(from + i) % length]!.pump()
  }

  #sweep(): void {
    for (const flow of this.#flows) {
      if (this.phase === 'over') return
      flow.sweep(this.clock.now())
    }
  }

  #after(ms: number, task: () => void): void {
    const cancel = this.clock.after(ms, () => {
      this.#timers.delete(cancel)
      task()
    })
    this.#timers.add(cancel)
  }

  #every(ms: number, task: () => void): void {
    this.#after(ms, () => {
      this.#every(ms, task)
      task()
    })
  }

  #progress(): LoadProgress {
    const endedMs = this.phase === 'running' ? this.clock.now() : this.#endedMs
    return {
      elapsedMs: this.#startedMs === undefined ? 0 : endedMs - this.#startedMs,
      behind: this.#behind,
      unsent: this.pace ? this.pace.released - this.#sent : 0,
      failedLookUps: this.lookUps.failed,
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

const newReplica = (address: string): ReplicaResult => {
  const counts = { connections: 0, done: 0, lost: 0, wrong: 0, late: 0, failed: 0 }
  return { address, ...counts, latency: newHistogram() }
}

const newHistogram = (): RecordableHistogram =>
  createHistogram({ lowest: 1, highest: HIGHEST_NS, figures: 3 })
