/** The endpoints of one service: what the source knows and what the checks find, as one frozen Snapshot. */

import { isIpv6 } from '../address.ts'
import type { ProbeResult } from '../client/probe.ts'
import { gather, pause } from '../clock.ts'
import { type CheckOptions, checkForever } from './checks.ts'
import { choose } from './choose.ts'
import type { Endpoint, Source, SourceNote } from './endpoint.ts'
import { ALWAYS_UP, type Health, nextHealth, type State, UNCHECKED } from './health.ts'

export interface EndpointStatus {
  readonly address: string
  readonly family: 4 | 6
  readonly weight: number
  readonly state: State
  readonly terminating: boolean
  /** It is in the answers. */
  readonly answered: boolean
  readonly detail: string
  readonly activeConnections: number | undefined
}

/**
 * All that DNS needs to know about a service. It is replaced, never edited; an endpoint that has not changed
 * is the same object in the next Snapshot.
 */
export interface Snapshot {
  readonly service: string
  /** False until the source has published and each of the first endpoints has been checked once. */
  readonly ready: boolean
  /** No endpoint is healthy, and unhealthy ones are answered nevertheless. */
  readonly failedOpen: boolean
  readonly endpoints: readonly EndpointStatus[]
}

/** What happens in a pool, for log and metrics. */
export interface PoolEvents {
  snapshot(snapshot: Snapshot): void
  state(address: string, from: State | 'absent', to: State | 'absent', detail: string): void
  checked(address: string, ok: boolean, seconds: number): void
  /** `error` is undefined when the source has recovered. */
  source(error: Error | undefined): void
  note(note: SourceNote): void
}

interface PoolOptions extends CheckOptions {
  readonly service: string
  readonly source: Source
  /** What to answer when no endpoint is healthy: all of them, or none. */
  readonly fail: 'open' | 'closed'
  /**
   * A change of `activeConnections` alone makes a new Snapshot. Needed only under a policy that reads the
   * load.
   */
  readonly watchLoad: boolean
}

export interface Pool {
  readonly snapshot: Snapshot
  close(): Promise<void>
}

const SOURCE_RESTART_MS = 1000
/** Whatever happens within this time makes one Snapshot: each costs DNS a compiled zone. */
const GATHER_MS = 10

interface PoolMember {
  endpoint: Endpoint
  health: Health
  /** As in the last Snapshot. */
  status: EndpointStatus | undefined
  readonly stop: AbortController
}

export function startPool(options: PoolOptions, events: PoolEvents): Pool {
  const { service, clock, random, rise, fall, watchLoad } = options
  const members = new Map<string, PoolMember>()
  /** Departed members are included: a check that has begun ends with its answer or its time-out. */
  const runningChecks = new Set<Promise<void>>()
  const stop = new AbortController()
  const hasChecks = options.checks.some(check => check.kind !== 'none')
  /** Those of the first endpoints that have no result yet. Undefined until the source has published. */
  let firstUnchecked: Set<string> | undefined
  let sourceFailed = false
  let snapshot: Snapshot = freeze({ service, ready: false, failedOpen: false, endpoints: [] })

  const changes = gather(clock, GATHER_MS, () => {
    const list = [...members.values()]
    const { failedOpen, isAnswered } = choose(list, options.fail)
    const endpoints = list.map(member => {
      member.status = statusOf(member, isAnswered(member))
      return member.status
    })
    snapshot = freeze({ service, ready: firstUnchecked?.size === 0, failedOpen, endpoints })
    events.snapshot(snapshot)
  })

  const add = (endpoint: Endpoint): PoolMember => {
    const { address } = endpoint
    const health = hasChecks ? UNCHECKED : ALWAYS_UP
    const member: PoolMember = { endpoint, health, status: undefined, stop: new AbortController() }
    const report = (result: ProbeResult, seconds: number) => {
      const before = member.health
      member.health = nextHealth(before, result, rise, fall)
      const { state, detail, activeConnections } = member.health
      events.checked(address, result.ok, seconds)
      if (before.state !== state) events.state(address, before.state, state, detail)
      const wasFirst = firstUnchecked?.delete(address)
      const loadChanged = watchLoad && before.activeConnections !== activeConnections
      if (wasFirst || before.state !== state || before.detail !== detail || loadChanged) changes.add()
    }
    if (hasChecks) {
      const run = checkForever(address, options, report, member.stop.signal)
      runningChecks.add(run)
      run.finally(() => runningChecks.delete(run))
    }
    events.state(address, 'absent', health.state, health.detail)
    return member
  }

  const publish = (endpoints: readonly Endpoint[]) => {
    if (stop.signal.aborted) return
    if (sourceFailed) events.source(undefined)
    sourceFailed = false
    const wanted = new Map(endpoints.map(endpoint => [endpoint.address, endpoint]))
    // The Map's order is the source's order, which rotation follows.
    let different = !firstUnchecked || [...members.keys()].join() !== [...wanted.keys()].join()
    for (const [address, member] of members) {
      if (wanted.has(address)) continue
      member.stop.abort()
      members.delete(address)
      firstUnchecked?.delete(address)
      events.state(address, member.health.state, 'absent', 'the source no longer has it')
    }
    const ordered: [string, PoolMember][] = []
    for (const [address, endpoint] of wanted) {
      const member = members.get(address)
      if (member && !sameEndpoint(member.endpoint, endpoint)) different = true
      if (member) member.endpoint = endpoint
      ordered.push([address, member ?? add(endpoint)])
    }
    members.clear()
    for (const [address, member] of ordered) members.set(address, member)
    firstUnchecked ??= new Set(hasChecks ? members.keys() : [])
    if (different) changes.add()
  }

  const fail = (error: Error) => {
    // A source may reject because of the abort itself.
    if (stop.signal.aborted) return
    if (!sourceFailed) events.source(error)
    sourceFailed = true
  }

  const runSource = async () => {
    while (!stop.signal.aborted) {
      try {
        return await options.source({ publish, fail, note: events.note }, stop.signal, clock, random)
      } catch (error) {
        fail(error as Error)
        await pause(clock, SOURCE_RESTART_MS, stop.signal)
      }
    }
  }
  const runningSource = runSource()

  return {
    get snapshot() {
      return snapshot
    },
    async close() {
      stop.abort()
      changes.cancel()
      for (const member of members.values()) member.stop.abort()
      await Promise.all([runningSource, ...runningChecks])
    },
  }
}

/** Is the object of the last Snapshot unless something has changed. */
function statusOf({ endpoint, health, status: last }: PoolMember, answered: boolean): EndpointStatus {
  const { address, weight, terminating } = endpoint
  const { state, detail, activeConnections } = health
  if (
    last?.answered === answered &&
    last.state === state &&
    last.detail === detail &&
    last.activeConnections === activeConnections &&
    last.weight === weight &&
    last.terminating === terminating
  )
    return last
  const family = isIpv6(address) ? 6 : 4
  return Object.freeze({ address, family, weight, state, terminating, answered, detail, activeConnections })
}

const sameEndpoint = (a: Endpoint, b: Endpoint) =>
  a.weight === b.weight && a.ready === b.ready && a.serving === b.serving && a.terminating === b.terminating

function freeze(snapshot: Snapshot): Snapshot {
  Object.freeze(snapshot.endpoints)
  return Object.freeze(snapshot)
}
