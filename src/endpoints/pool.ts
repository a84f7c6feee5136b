/** The endpoints of one service: what the source says and what the checks find, as one frozen Snapshot. */

import { setTimeout as sleep } from 'node:timers/promises'
import { isIpv6 } from '../address.ts'
import { type CheckOptions, checkForever } from './checks.ts'
import { type Member as Chosen, choose } from './choose.ts'
import type { Endpoint, Source } from './endpoint.ts'
import { ALWAYS_UP, type Health, nextHealth, type State, UNCHECKED } from './health.ts'

export interface EndpointStatus {
  readonly address: string
  readonly family: 4 | 6
  readonly weight: number
  readonly state: State
  readonly terminating: boolean
  /** It stands in answers. */
  readonly answered: boolean
  readonly detail: string
  readonly activeConnections: number | undefined
}

/** All that DNS needs to know of a service. Replaced whole, never edited. */
export interface Snapshot {
  readonly service: string
  /** False until the source has published and each of the first endpoints has been checked once. */
  readonly ready: boolean
  /** No endpoint is well, and those that are not stand in the answer all the same. */
  readonly failedOpen: boolean
  readonly endpoints: readonly EndpointStatus[]
}

/** What happens in a pool, for log and metrics. */
export interface PoolEvents {
  snapshot(snapshot: Snapshot): void
  state(address: string, from: State | 'absent', to: State | 'absent', detail: string): void
  checked(address: string, ok: boolean, seconds: number): void
  /** `error` is undefined when the source is well again. */
  source(error: Error | undefined): void
}

interface PoolOptions extends CheckOptions {
  readonly service: string
  readonly source: Source
  /** When no endpoint is well: answer with all of them, or with none. */
  readonly fail: 'open' | 'closed'
}

export interface Pool {
  readonly snapshot: Snapshot
  close(): Promise<void>
}

const SOURCE_RESTART_MS = 1000

interface Member {
  endpoint: Endpoint
  health: Health
  readonly stop: AbortController
}

export function startPool(options: PoolOptions, events: PoolEvents): Pool {
  const { service, checks, rise, fall } = options
  const members = new Map<string, Member>()
  /** Of departed members too: a check that is under way ends with its answer or its timeout. */
  const checking = new Set<Promise<void>>()
  const stop = new AbortController()
  const checked = checks.some(check => check.kind !== 'none')
  let firstRound: Set<string> | undefined
  let sourceFailed = false
  let snapshot: Snapshot = freeze({ service, ready: false, failedOpen: false, endpoints: [] })
  let pending: NodeJS.Immediate | undefined

  // A round of a thousand results becomes one Snapshot, not a thousand.
  const changed = () => {
    pending ??= setImmediate(() => {
      pending = undefined
      const list = [...members.values()]
      const ready = firstRound?.size === 0
      const { failedOpen, answered } = choose(list, options.fail)
      const endpoints = list.map(member => status(member, answered(member)))
      snapshot = freeze({ service, ready, failedOpen, endpoints })
      events.snapshot(snapshot)
    })
  }

  const add = (endpoint: Endpoint): Member => {
    const { address } = endpoint
    const stopMember = new AbortController()
    const report = (result: Parameters<typeof nextHealth>[1], seconds: number) => {
      const before = member.health
      member.health = nextHealth(before, result, rise, fall)
      events.checked(address, result.ok, seconds)
      if (before.state !== member.health.state)
        events.state(address, before.state, member.health.state, member.health.detail)
      const said = firstRound?.delete(address)
      if (said || !same(before, member.health)) changed()
    }
    const member: Member = {
      endpoint,
      health: checked ? UNCHECKED : ALWAYS_UP,
      stop: stopMember,
    }
    if (checked) {
      const run = checkForever(address, options, report, stopMember.signal)
      checking.add(run)
      run.finally(() => checking.delete(run))
    }
    events.state(address, 'absent', member.health.state, member.health.detail)
    return member
  }

  const publish = (endpoints: readonly Endpoint[]) => {
    if (stop.signal.aborted) return
    if (sourceFailed) events.source(undefined)
    sourceFailed = false
    const wanted = new Map(endpoints.map(endpoint => [endpoint.address, endpoint]))
    // The Map's order is the source's order, which rotation follows.
    let different = !firstRound || [...members.keys()].join() !== [...wanted.keys()].join()
    for (const [address, member] of members) {
      if (wanted.has(address)) continue
      member.stop.abort()
      members.delete(address)
      firstRound?.delete(address)
      events.state(address, member.health.state, 'absent', 'the source no longer has it')
    }
    const ordered: [string, Member][] = []
    for (const [address, endpoint] of wanted) {
      const member = members.get(address)
      if (member && !sameEndpoint(member.endpoint, endpoint)) different = true
      if (member) member.endpoint = endpoint
      ordered.push([address, member ?? add(endpoint)])
    }
    members.clear()
    for (const [address, member] of ordered) members.set(address, member)
    firstRound ??= new Set(checked ? members.keys() : [])
    if (different) changed()
  }

  const fail = (error: Error) => {
    // A source may reject with the abort itself.
    if (stop.signal.aborted) return
    if (!sourceFailed) events.source(error)
    sourceFailed = true
  }

  const following = (async () => {
    while (!stop.signal.aborted) {
      try {
        return await options.source({ publish, fail }, stop.signal)
      } catch (error) {
        fail(error as Error)
        await sleep(SOURCE_RESTART_MS, undefined, { signal: stop.signal }).catch(() => {})
      }
    }
  })()

  return {
    get snapshot() {
      return snapshot
    },
    async close() {
      stop.abort()
      if (pending) clearImmediate(pending)
      for (const member of members.values()) member.stop.abort()
      await Promise.all([following, ...checking])
    },
  }
}

const status = ({ endpoint, health }: Chosen, answered: boolean): EndpointStatus => ({
  address: endpoint.address,
  family: isIpv6(endpoint.address) ? 6 : 4,
  weight: endpoint.weight,
  state: health.state,
  terminating: endpoint.terminating,
  answered,
  detail: health.detail,
  activeConnections: health.activeConnections,
})

const same = (a: Health, b: Health) =>
  a.state === b.state && a.detail === b.detail && a.activeConnections === b.activeConnections

const sameEndpoint = (a: Endpoint, b: Endpoint) =>
  a.weight === b.weight && a.ready === b.ready && a.serving === b.serving && a.terminating === b.terminating

function freeze(snapshot: Snapshot): Snapshot {
  for (const endpoint of snapshot.endpoints) Object.freeze(endpoint)
  Object.freeze(snapshot.endpoints)
  return Object.freeze(snapshot)
}
