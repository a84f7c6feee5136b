/**
 * The event hub: what happens in a farm is published here once, and the log, the metrics and the table of
 * `up` subscribe to it. A subscriber receives the present state first and then each difference. The hub is
 * not on the path of a query: what is counted there is sampled, and only while a subscriber asks for it.
 */
import type { Clock } from '../clock.ts'

export type EndpointState = 'checking' | 'up' | 'down' | 'draining'

export interface ServiceView {
  readonly service: string
  readonly ready: boolean
  readonly failedOpen: boolean
  readonly endpoints: readonly {
    readonly address: string
    readonly state: EndpointState
    readonly answered: boolean
    readonly detail: string
  }[]
}

/** What is counted for each query. */
export interface Tallies {
  /** DNS queries that received a reply. */
  readonly answers: number
  /** How often an address was the first of an answer. */
  readonly firsts: readonly {
    readonly name: string
    readonly type: string
    readonly address: string
    readonly count: number
  }[]
}

export type FarmEvent =
  | {
      readonly type: 'endpoint'
      readonly service: string
      readonly address: string
      readonly from: EndpointState | 'absent'
      readonly to: EndpointState | 'absent'
      readonly detail: string
    }
  | { readonly type: 'snapshot'; readonly snapshot: ServiceView }
  /** The hub derives this event and the next from the Snapshots. */
  | { readonly type: 'ready'; readonly service: string; readonly endpoints: number }
  | { readonly type: 'failed-open'; readonly service: string; readonly failedOpen: boolean }
  /** A source began to fail, or (without `error`) recovered. */
  | { readonly type: 'source'; readonly service: string; readonly source: string; readonly error?: string }
  /** One address family of a DNS source began to fail, or (without `error`) recovered. */
  | {
      readonly type: 'source-family'
      readonly service: string
      readonly source: string
      readonly family: 'A' | 'AAAA'
      readonly error?: string
    }
  /** What an operator should know about a source that goes on working. */
  | {
      readonly type: 'source-warning'
      readonly service: string
      readonly source: string
      readonly message: string
      readonly details: object
    }
  /** One round of checks of one endpoint. */
  | { readonly type: 'check'; readonly service: string; readonly ok: boolean; readonly seconds: number }
  | { readonly type: 'tallies'; readonly tallies: Tallies }
  /** A replica process that `up` started runs, or (with `ended`) has ended. */
  | {
      readonly type: 'replica'
      readonly address: string
      readonly pid: number | undefined
      readonly ended?: string
      /** The command that starts it again. */
      readonly startAgain: string
    }

export interface FarmState {
  readonly services: ReadonlyMap<string, ServiceView>
  /** The services whose source fails, with the reason. */
  readonly failingSources: ReadonlyMap<string, string>
  /** By service and family: the last event of each. */
  readonly sourceFamilies: ReadonlyMap<string, Extract<FarmEvent, { type: 'source-family' }>>
  /** By address: the last event of each replica process. */
  readonly replicas: ReadonlyMap<string, Extract<FarmEvent, { type: 'replica' }>>
  readonly tallies: Tallies
}

export interface PastEvent {
  readonly atSeconds: number
  readonly event: FarmEvent
}

/** The first thing that a subscriber receives. */
export interface Present {
  readonly type: 'present'
  readonly state: FarmState
  /** Oldest first; of the events that are rare enough to be kept. */
  readonly history: readonly PastEvent[]
}

export type Subscriber = (event: FarmEvent | Present) => void

const HISTORY_LENGTH = 1000
const TALLY_MS = 1000

/**
 * What the history leaves out: a Snapshot holds every endpoint, so that a thousand of them would fill the
 * memory; checks and tallies are so many that they would push out everything else.
 */
const forgotten: ReadonlySet<FarmEvent['type']> = new Set(['snapshot', 'check', 'tallies'])

const initialState: FarmState = {
  services: new Map(),
  failingSources: new Map(),
  sourceFamilies: new Map(),
  replicas: new Map(),
  tallies: { answers: 0, firsts: [] },
}

/** The state after an event. */
function nextState(state: FarmState, event: FarmEvent): FarmState {
  switch (event.type) {
    case 'snapshot': {
      const { snapshot } = event
      return { ...state, services: new Map(state.services).set(snapshot.service, snapshot) }
    }
    case 'source': {
      const failingSources = new Map(state.failingSources)
      if (event.error === undefined) failingSources.delete(event.service)
      else failingSources.set(event.service, event.error)
      return { ...state, failingSources }
    }
    case 'source-family': {
      const key = `${event.service} ${event.family}`
      return { ...state, sourceFamilies: new Map(state.sourceFamilies).set(key, event) }
    }
    case 'replica':
      return { ...state, replicas: new Map(state.replicas).set(event.address, event) }
    case 'tallies':
      return { ...state, tallies: event.tallies }
    default:
      return state
  }
}

export class EventHub {
  readonly #clock: Clock
  readonly #subscribers = new Set<Subscriber>()
  readonly #tallySubscribers = new Set<Subscriber>()
  readonly #history: PastEvent[] = []
  #state = initialState
  #readTallies: (() => Tallies) | undefined
  #cancelSample: (() => void) | undefined

  constructor(clock: Clock) {
    this.#clock = clock
  }

  get state(): FarmState {
    return this.#state
  }

  publish(event: FarmEvent): void {
    const before = this.#state
    this.#state = nextState(before, event)
    if (!forgotten.has(event.type)) {
      this.#history.push({ atSeconds: this.#clock.wallSeconds(), event })
      if (this.#history.length > HISTORY_LENGTH) this.#history.shift()
    }
    const subscribers = event.type === 'tallies' ? this.#tallySubscribers : this.#subscribers
    // A copy, because a subscriber that is added meanwhile finds this event in the present state already.
    for (const subscriber of [...subscribers]) subscriber(event)
    if (event.type === 'snapshot') this.#derive(before.services.get(event.snapshot.service), event.snapshot)
  }

  /** Tallies go once a second to those that want `tallies`. Returns how to unsubscribe. */
  subscribe(subscriber: Subscriber, { tallies = false } = {}): () => void {
    if (tallies && !this.#cancelSample) this.#sample()
    this.#subscribers.add(subscriber)
    if (tallies) this.#tallySubscribers.add(subscriber)
    subscriber({ type: 'present', state: this.#state, history: [...this.#history] })
    return () => {
      this.#subscribers.delete(subscriber)
      this.#tallySubscribers.delete(subscriber)
      if (this.#tallySubscribers.size === 0) this.#stopSampling()
    }
  }

  /** Sets where tallies are read while a subscriber wants them. */
  tallyWith(read: () => Tallies): void {
    this.#readTallies = read
    if (this.#tallySubscribers.size > 0) this.#sample()
  }

  #sample(): void {
    this.#stopSampling()
    if (!this.#readTallies) return
    this.publish({ type: 'tallies', tallies: this.#readTallies() })
    this.#cancelSample = this.#clock.after(TALLY_MS, () => this.#sample())
  }

  #stopSampling(): void {
    this.#cancelSample?.()
    this.#cancelSample = undefined
  }

  #derive(before: ServiceView | undefined, now: ServiceView): void {
    const { service, ready, failedOpen, endpoints } = now
    if (ready && !before?.ready) this.publish({ type: 'ready', service, endpoints: endpoints.length })
    if (failedOpen !== (before?.failedOpen ?? false))
      this.publish({ type: 'failed-open', service, failedOpen })
  }
}
