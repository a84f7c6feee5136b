/** The authoritative server without its sockets: Snapshots in, the zone and its serial kept, queries answered. */
import { Packet } from 'dns2'
import type { Transport } from '../address.ts'
import type { Snapshot } from '../endpoints/pool.ts'
import { type Reply, type RespondOptions, respond, type Turn } from './respond.ts'
import { compileZone, nextSerial, type Zone, type ZoneOptions } from './zone.ts'

interface AuthorityOptions extends ZoneOptions, Pick<RespondOptions, 'maxAnswers' | 'serverId' | 'version'> {
  /** Whole names, as in `echo.roundelay.test`. */
  readonly services: readonly string[]
}

/** What became of a query, for metrics. The texts are few: types and codes without a name are "other". */
export interface AuthorityEvents {
  answered(transport: Transport, type: string, rcode: string, truncated: boolean, seconds: number): void
  /** No header, or itself a response: there was no reply. */
  dropped(transport: Transport): void
  /** A fault of ours; the query gets no reply, the server lives on. */
  failed(error: Error): void
}

/** How often an address stood first among the answers for a name and type. */
export interface First {
  readonly name: string
  readonly type: string
  readonly address: string
  readonly count: number
}

export class Authority {
  readonly #options: AuthorityOptions
  readonly #events: AuthorityEvents
  readonly #turns = new Map<string, Turn>()
  readonly #snapshots = new Map<string, Snapshot>()
  #serial: number | undefined
  #zone: Zone

  constructor(options: AuthorityOptions, events: AuthorityEvents) {
    this.#options = options
    this.#events = events
    for (const service of options.services)
      this.#snapshots.set(service, { service, ready: false, failedOpen: false, endpoints: [] })
    this.#zone = this.#compile()
  }

  get serial(): number {
    return this.#zone.soa.serial ?? 0
  }

  /** In the order of the options. */
  get snapshots(): readonly Snapshot[] {
    return [...this.#snapshots.values()]
  }

  update(snapshot: Snapshot): void {
    const before = this.#snapshots.get(snapshot.service)
    this.#snapshots.set(snapshot.service, snapshot)
    const sameMembers = before && membership(before) === membership(snapshot)
    this.#zone = sameMembers ? this.#compile(this.serial) : this.#compile()
    this.#forget()
  }

  #compile(serial = nextSerial(this.#serial, Date.now() / 1000)): Zone {
    this.#serial = serial
    return compileZone(this.#options, this.snapshots, serial)
  }

  answer(message: Buffer, transport: Transport): Reply | undefined {
    const started = performance.now()
    const { maxAnswers, serverId, version } = this.#options
    const options = {
      zone: this.#zone,
      turns: this.#turns,
      maxAnswers,
      serverId,
      version,
      random: Math.random,
    }
    try {
      const reply = respond(message, transport, options)
      if (reply) {
        const seconds = (performance.now() - started) / 1000
        this.#events.answered(
          transport,
          typeName(reply.type),
          rcodeName(reply.rcode),
          reply.truncated,
          seconds,
        )
      } else {
        this.#events.dropped(transport)
      }
      return reply
    } catch (error) {
      this.#events.failed(error as Error)
      return undefined
    }
  }

  /** Of the endpoints that are known now. */
  firsts(): First[] {
    return [...this.#turns.values()].flatMap(({ name, type, firsts }) =>
      [...firsts].map(([address, count]) => ({ name, type: typeName(type), address, count })),
    )
  }

  /** What a departed endpoint had is forgotten with it, or a year of rolling updates would fill the memory. */
  #forget(): void {
    const known = new Set(this.snapshots.flatMap(({ endpoints }) => endpoints.map(({ address }) => address)))
    for (const { firsts } of this.#turns.values())
      for (const address of firsts.keys()) if (!known.has(address)) firsts.delete(address)
  }
}

/** What the serial stands for: who is known, in which state, and who is answered. */
const membership = ({ ready, endpoints }: Snapshot): string =>
  `${ready} ${endpoints.map(e => `${e.address} ${e.weight} ${e.state} ${e.terminating} ${e.answered}`).join()}`

const rcodeNames = new Map(Object.entries(Packet.RCODE).map(([name, code]) => [code as number, name]))
const rcodeName = (code: number): string =>
  code === Packet.RCODE.BADVERS ? 'BADVERS' : (rcodeNames.get(code) ?? 'other')
const typeName = (type: number): string => Packet.TYPE_NAME[type] ?? 'other'
