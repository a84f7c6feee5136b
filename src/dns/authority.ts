/** The authoritative server without its sockets: it takes Snapshots, keeps the zone and answers queries. */
import type { Transport } from '../address.ts'
import type { Clock, Random } from '../clock.ts'
import type { EndpointStatus, Snapshot } from '../endpoints/pool.ts'
import { NO_REPLY } from '../protocols.ts'
import { assemble, type Block, compilePart, type Zone } from './compiled.ts'
import { COUNTERS, type Context, createContext, MAX_MESSAGE_OCTETS, respond, useZone } from './respond.ts'
import { rcodeName, typeName } from './wire.ts'
import {
  basePart,
  COUNTS_PER_ENDPOINT,
  CURSORS_PER_SERVICE,
  hostsPart,
  nextSerial,
  rotatingRRsets,
  servicePart,
  type ZoneOptions,
} from './zone.ts'

interface AuthorityOptions extends ZoneOptions {
  /** Names in full, as in `echo.roundelay.test`. */
  readonly services: readonly string[]
  readonly clock: Clock
  readonly random: Random
}

export interface AuthorityEvents {
  /** A fault of the server. The query gets no reply, and the server goes on. */
  failed(error: Error): void
  /** The records of this service were encoded again. */
  compiled?(service: string): void
  /** An answer of this service has more than 100 records. Called once for each service. */
  tooMany?(service: string, records: number): void
}

/** How often an address was the first in an answer for this name and type. */
export interface FirstCount {
  readonly name: string
  readonly type: string
  readonly address: string
  readonly count: number
}

/** What became of the queries over one transport. Types and codes without a name are counted as "other". */
export interface Tally {
  readonly transport: Transport
  /** Queries answered, by type. */
  readonly types: ReadonlyMap<string, number>
  /** Responses, by code. */
  readonly rcodes: ReadonlyMap<string, number>
  readonly truncated: number
  /** Messages without a header and responses: they got no reply. */
  readonly dropped: number
}

interface Service {
  snapshot: Snapshot
  answers: Block
  /** The names of its endpoints, which are compiled only when one comes or goes. */
  hosts: Block
  /** Where the counts of each endpoint begin. */
  readonly places: Map<string, number>
  sourceFailed: boolean
  saidTooMany: boolean
}

const FIRST_CAPACITY = 256
/** BIND refuses RRsets with more records (max-records-per-type). */
const MANY_RECORDS = 100

/**
 * Returns the reply to one message, or undefined if none is due. The next call overwrites the reply. It must
 * not throw.
 */
export type Answerer = (message: Buffer, transport: Transport) => Uint8Array | undefined

export class Authority {
  readonly #options: AuthorityOptions
  readonly #events: AuthorityEvents
  readonly #services = new Map<string, Service>()
  readonly #contexts: Readonly<Record<Transport, Context>>
  readonly #output = Buffer.alloc(MAX_MESSAGE_OCTETS)
  #firsts = new Float64Array(FIRST_CAPACITY)
  /** Places that departed endpoints have left. */
  readonly #free: number[] = []
  #usedFirsts = 0
  #serial: number
  #changes = 0
  #zone: Zone

  constructor(options: AuthorityOptions, events: AuthorityEvents) {
    this.#options = options
    this.#events = events
    this.#serial = nextSerial(undefined, options.clock.wallSeconds())
    for (const service of options.services) {
      const snapshot = { service, ready: false, failedOpen: false, endpoints: [] }
      const places = new Map<string, number>()
      const hosts = this.#compileHosts(snapshot)
      const answers = this.#compile(snapshot, places, false)
      const said = { sourceFailed: false, saidTooMany: false }
      this.#services.set(service, { snapshot, places, hosts, answers, ...said })
    }
    this.#zone = this.#assemble()
    const cursors = new Int32Array(CURSORS_PER_SERVICE * options.services.length)
    const shared = { zone: this.#zone, cursors, firsts: this.#firsts, random: options.random }
    this.#contexts = {
      udp: createContext({ ...shared, transport: 'udp' }),
      tcp: createContext({ ...shared, transport: 'tcp' }),
    }
  }

  get serial(): number {
    return this.#serial
  }

  /** How often the membership of a service changed since the start. The serial cannot tell. */
  get changes(): number {
    return this.#changes
  }

  /** In the order of the options. */
  get snapshots(): readonly Snapshot[] {
    return [...this.#services.values()].map(({ snapshot }) => snapshot)
  }

  /** Compiles what has changed: nothing, or one service. */
  update(snapshot: Snapshot): void {
    const service = this.#services.get(snapshot.service)
    if (!service) return
    const before = service.snapshot
    service.snapshot = snapshot
    const sameMembers = sameMembership(before, snapshot)
    if (sameMembers && !(this.#options.policy.readsLoad && loadsDiffer(before, snapshot))) return
    if (!sameMembers) {
      this.#serial = nextSerial(this.#serial, this.#options.clock.wallSeconds())
      this.#changes++
    }
    if (before.ready !== snapshot.ready || !sameEach(before, snapshot, sameAddress)) {
      this.#givePlaces(service)
      service.hosts = this.#compileHosts(snapshot)
    }
    this.#renew(service)
    const records = Math.min(snapshot.endpoints.length, this.#options.maxAnswers)
    if (records <= MANY_RECORDS || service.saidTooMany) return
    service.saidTooMany = true
    this.#events.tooMany?.(snapshot.service, records)
  }

  /** Whether the source of this service fails, so that its answers are the last known ones. */
  sourceFailed(name: string, failed: boolean): void {
    const service = this.#services.get(name)
    if (!service || service.sourceFailed === failed) return
    service.sourceFailed = failed
    this.#renew(service)
  }

  #renew(service: Service): void {
    service.answers = this.#compile(service.snapshot, service.places, service.sourceFailed)
    this.#zone = this.#assemble()
    for (const context of Object.values(this.#contexts)) useZone(context, this.#zone, this.#firsts)
  }

  /** Returns the reply, which the next call overwrites, or undefined if none is due. Does not throw. */
  answer(message: Uint8Array, transport: Transport): Buffer | undefined {
    try {
      const length = respond(message, message.length, this.#output, this.#contexts[transport])
      return length === NO_REPLY ? undefined : this.#output.subarray(0, length)
    } catch (error) {
      this.#events.failed(error as Error)
      return undefined
    }
  }

  /** Covers the endpoints that are known now. */
  firsts(): FirstCount[] {
    return [...this.#services.values()].flatMap(({ snapshot, places }) =>
      rotatingRRsets(snapshot.service).flatMap(({ name, type, family, count }) =>
        snapshot.endpoints
          .filter(endpoint => family === undefined || endpoint.family === family)
          .map(({ address }) => ({
            name,
            type: typeName(type),
            address,
            count: this.#firsts[(places.get(address) ?? 0) + count] ?? 0,
          }))
          .filter(first => first.count > 0),
      ),
    )
  }

  /** Covers all queries since the start. */
  tallies(): Tally[] {
    return Object.values(this.#contexts).map(({ transport, counters }) => ({
      transport,
      types: named(counters, COUNTERS.type, COUNTERS.rcode, typeName),
      rcodes: named(counters, COUNTERS.rcode, COUNTERS.truncated, rcodeName),
      truncated: counters[COUNTERS.truncated] ?? 0,
      dropped: counters[COUNTERS.dropped] ?? 0,
    }))
  }

  #compile(snapshot: Snapshot, places: ReadonlyMap<string, number>, sourceFailed: boolean): Block {
    const { services, policy } = this.#options
    const firstCursor = CURSORS_PER_SERVICE * services.indexOf(snapshot.service)
    const firstCount = (address: string) => places.get(address) ?? 0
    const part = servicePart(this.#options, snapshot, { firstCursor, firstCount }, sourceFailed)
    this.#events.compiled?.(snapshot.service)
    return compilePart(part, policy)
  }

  #compileHosts(snapshot: Snapshot): Block {
    return compilePart(hostsPart(this.#options, snapshot), this.#options.policy)
  }

  #assemble(): Zone {
    const base = compilePart(basePart(this.#options, this.#serial), this.#options.policy)
    const services = [...this.#services.values()]
    return assemble([base, ...services.flatMap(({ answers, hosts }) => [answers, hosts])], this.#options)
  }

  /**
   * The counts of departed endpoints are forgotten. Otherwise a year of rolling updates would fill the
   * memory.
   */
  #givePlaces({ snapshot, places }: Service): void {
    const known = new Set(snapshot.endpoints.map(({ address }) => address))
    for (const [address, place] of places)
      if (!known.has(address)) {
        places.delete(address)
        this.#firsts.fill(0, place, place + COUNTS_PER_ENDPOINT)
        this.#free.push(place)
      }
    for (const address of known) if (!places.has(address)) places.set(address, this.#takePlace())
  }

  #takePlace(): number {
    const free = this.#free.pop()
    if (free !== undefined) return free
    const place = this.#usedFirsts
    this.#usedFirsts += COUNTS_PER_ENDPOINT
    if (this.#usedFirsts > this.#firsts.length) {
      const grown = new Float64Array(2 * this.#firsts.length)
      grown.set(this.#firsts)
      this.#firsts = grown
    }
    return place
  }
}

/** What the serial stands for: which endpoints are known, in which state, and which of them are answered. */
function sameMembership(a: Snapshot, b: Snapshot): boolean {
  return a.ready === b.ready && sameEach(a, b, sameMember)
}

const sameAddress = (a: EndpointStatus, b: EndpointStatus): boolean => a.address === b.address

const sameMember = (a: EndpointStatus, b: EndpointStatus): boolean =>
  a === b ||
  (a.address === b.address &&
    a.weight === b.weight &&
    a.state === b.state &&
    a.terminating === b.terminating &&
    a.leaving === b.leaving &&
    a.answered === b.answered)

const loadsDiffer = (a: Snapshot, b: Snapshot): boolean =>
  !sameEach(a, b, (one, other) => one.activeConnections === other.activeConnections)

const sameEach = (
  a: Snapshot,
  b: Snapshot,
  same: (one: EndpointStatus, other: EndpointStatus) => boolean,
): boolean =>
  a.endpoints.length === b.endpoints.length &&
  a.endpoints.every((endpoint, i) => {
    const other = b.endpoints[i]
    return other !== undefined && same(endpoint, other)
  })

/** The counters from `start` to `end` that are not 0, summed up by name. */
function named(
  counters: Float64Array,
  start: number,
  end: number,
  nameOf: (code: number) => string,
): Map<string, number> {
  const sums = new Map<string, number>()
  for (const [code, count] of counters.subarray(start, end).entries())
    if (count > 0) sums.set(nameOf(code), (sums.get(nameOf(code)) ?? 0) + count)
  return sums
}
