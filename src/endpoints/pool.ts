/** The endpoints of one service: what the source knows and what the checks find, as one frozen Snapshot. */

import { isIpv6 } from '../address.ts'
import type { ProbeResult } from '../client/probe.ts'
import { gather, pause } from '../clock.ts'
import { type CheckOptions, checkForever, firstDelayMs } from './checks.ts'
import { choose } from './choose.ts'
import type { Endpoint, Source, SourceNote } from './endpoint.ts'
import { ALWAYS_UP, type Health, nextHealth, relistedHealth, type State, UNCHECKED } from './health.ts'

export interface EndpointStatus {
  readonly address: string
  readonly family: 4 | 6
  readonly weight: number
  readonly state: State
  readonly terminating: boolean
  /** The source no longer lists it; it may still be answered until its replacements are healthy. */
  readonly leaving: boolean
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

/** What the log says of an endpoint: its state while it is listed. */
export type Standing = State | 'leaving' | 'absent'

/** What happens in a pool, for log and metrics. */
export interface PoolEvents {
  snapshot(snapshot: Snapshot): void
  /** The changes of health while an endpoint is leaving are not reported: it is expected to end. */
  state(address: string, from: Standing, to: Standing, detail: string): void
  checked(address: string, ok: boolean, seconds: number): void
  /** This machine could not check the endpoint, whose health is unchanged. */
  notChecked(address: string, detail: string): void
  /** `error` is undefined when the source has recovered. */
  source(error: Error | undefined): void
  note(note: SourceNote): void
}

interface PoolOptions extends CheckOptions {
  readonly service: string
  readonly source: Source
  /** What to answer when no endpoint is healthy: all of them, or none. */
  readonly fail: 'open' | 'closed'
  /** How long an endpoint that the source no longer lists is checked, and may be answered. */
  readonly handoverMs: number
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
  /** Ends the time of the handover; undefined while the source lists the endpoint. */
  cancelHandover: (() => void) | undefined
  /** As in the last Snapshot. */
  status: EndpointStatus | undefined
  readonly stop: AbortController
}

export function startPool(options: PoolOptions, events: PoolEvents): Pool {
  const { service, clock, random, rise, fall, watchLoad, handoverMs } = options
  /** The listed ones in the order of the source, then the departed ones in the order of their departure. */
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
    const candidates = list.map(member => ({ ...member, leaving: isLeaving(member) }))
    const { failedOpen, isAnswered } = choose(candidates, options.fail)
    const endpoints = list.map((member, i) => {
      member.status = statusOf(member, isAnswered(candidates[i]!))
      return member.status
    })
    snapshot = freeze({ service, ready: firstUnchecked?.size === 0, failedOpen, endpoints })
    events.snapshot(snapshot)
  })

  const add = (endpoint: Endpoint, delayMs: number): PoolMember => {
    const { address } = endpoint
    const health = hasChecks ? UNCHECKED : ALWAYS_UP
    const stop = new AbortController()
    const member: PoolMember = { endpoint, health, status: undefined, cancelHandover: undefined, stop }
    const report = (result: ProbeResult, seconds: number) => {
      const before = member.health
      member.health = nextHealth(before, result, rise, fall)
      const { state, detail, activeConnections } = member.health
      if (!result.ok && result.own) events.notChecked(address, result.detail)
      else events.checked(address, result.ok, seconds)
      if (before.state !== state && !isLeaving(member)) events.state(address, before.state, state, detail)
      const wasFirst = firstUnchecked?.delete(address)
      const loadChanged = watchLoad && before.activeConnections !== activeConnections
      if (wasFirst || before.state !== state || before.detail !== detail || loadChanged) changes.add()
    }
    if (hasChecks) {
      const run = checkForever(address, options, delayMs, report, stop.signal)
      runningChecks.add(run)
      run.finally(() => runningChecks.delete(run))
    }
    events.state(address, 'absent', health.state, health.detail)
    return member
  }

  const remove = (address: string, member: PoolMember) => {
    member.stop.abort()
    member.cancelHandover?.()
    members.delete(address)
    const from = isLeaving(member) ? 'leaving' : member.health.state
    events.state(address, from, 'absent', 'the source no longer has it')
  }

  /** The endpoint stays for a while, so that the answer does not become empty before others are healthy. */
  const depart = (address: string, member: PoolMember) => {
    if (isLeaving(member)) return
    events.state(address, member.health.state, 'leaving', 'the source no longer has it')
    member.cancelHandover = clock.after(handoverMs, () => {
      remove(address, member)
      changes.add()
    })
  }

  const comeBack = (address: string, member: PoolMember) => {
    if (!isLeaving(member)) return
    member.cancelHandover?.()
    member.cancelHandover = undefined
    member.health = relistedHealth(member.health)
    events.state(address, 'leaving', member.health.state, 'the source lists it again')
  }

  const publish = (endpoints: readonly Endpoint[]) => {
    if (stop.signal.aborted) return
    if (sourceFailed) events.source(undefined)
    sourceFailed = false
    const wanted = new Map(endpoints.map(endpoint => [endpoint.address, endpoint]))
    const before = [...members].filter(([, member]) => !isLeaving(member)).map(([address]) => address)
    // The Map's order is the source's order, which rotation follows.
    let different = !firstUnchecked || before.join() !== [...wanted.keys()].join()
    // An empty list is believed: then nothing is answered. Without checks nobody knows what still serves.
    const handsOver = wanted.size > 0 && hasChecks && handoverMs > 0
    for (const [address, member] of [...members]) {
      if (wanted.has(address)) continue
      firstUnchecked?.delete(address)
      if (handsOver) {
        depart(address, member)
      } else {
        remove(address, member)
        different = true
      }
    }
    const added = [...wanted.keys()].filter(address => !members.has(address)).length
    const departed = [...members].filter(([address]) => !wanted.has(address))
    const listed: [string, PoolMember][] = []
    for (const [address, endpoint] of wanted) {
      const member = members.get(address)
      if (member && !sameEndpoint(member.endpoint, endpoint)) different = true
      if (member) {
        member.endpoint = endpoint
        comeBack(address, member)
      }
      listed.push([address, member ?? add(endpoint, firstDelayMs(added, options.intervalMs, random))])
    }
    members.clear()
    for (const [address, member] of [...listed, ...departed]) members.set(address, member)
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
      for (const member of members.values()) {
        member.cancelHandover?.()
        member.stop.abort()
      }
      await Promise.all([runningSource, ...runningChecks])
    },
  }
}

const isLeaving = ({ cancelHandover }: PoolMember): boolean => cancelHandover !== undefined

/** Is the object of the last Snapshot unless something has changed. */
function statusOf(member: PoolMember, answered: boolean): EndpointStatus {
  const { endpoint, health, status: last } = member
  const { address, weight, terminating } = endpoint
  const leaving = isLeaving(member)
  const { state, detail, activeConnections } = health
  if (
    last?.answered === answered &&
    last.state === state &&
    last.detail === detail &&
    last.activeConnections === activeConnections &&
    last.weight === weight &&
    last.terminating === terminating &&
    last.leaving === leaving
  )
    return last
  const family = isIpv6(address) ? 6 : 4
  return Object.freeze({
    ...{ address, family, weight, state, terminating, leaving, answered, detail, activeConnections },
  })
}

const sameEndpoint = (a: Endpoint, b: Endpoint) =>
  a.weight === b.weight && a.ready === b.ready && a.serving === b.serving && a.terminating === b.terminating

function freeze(snapshot: Snapshot): Snapshot {
  Object.freeze(snapshot.endpoints)
  return Object.freeze(snapshot)
}
