/** The zone as a table from names to RRsets, made anew from each Snapshot: pure. */

import { Packet, type Resource } from 'dns2'
import { isIpv6 } from '../address.ts'
import type { EndpointStatus, Snapshot } from '../endpoints/pool.ts'
import { keyOf, type NameKey } from './name.ts'
import type { Plan, Policy } from './rotation.ts'

const { TYPE, CLASS } = Packet

export type Record = Partial<Resource> & Pick<Resource, 'name' | 'type' | 'class' | 'ttl'>

/** The records of one type at one name, and what goes with each in the additional section. */
export interface RRset {
  readonly records: readonly Record[]
  readonly additional: readonly (readonly Record[])[]
  /** Present where the records take turns; its candidates are the records. */
  readonly plan?: Plan
  /** The address that each record stands for, beside `plan`. */
  readonly addresses?: readonly string[]
}

export interface Node {
  readonly name: string
  /** By type number. Empty for a name that exists only because one below it does (RFC 4592 2.2.2). */
  readonly rrsets: Map<number, RRset>
  /** What is here is not known yet. */
  readonly pending: boolean
}

export interface Zone {
  readonly apex: string
  readonly apexKey: NameKey
  readonly soa: Record
  readonly nodes: ReadonlyMap<NameKey, Node>
  /** Keys of services that wait for their first check round: what lies below them is not known either. */
  readonly pending: readonly NameKey[]
}

export interface ZoneOptions {
  readonly apex: string
  /** TTL of every record, and of negative answers. */
  readonly ttlSeconds: number
  /** Addresses of this server, for the glue of its NS. */
  readonly nsAddresses: readonly string[]
  /** Where the replicas listen, for SRV. */
  readonly port: number
  readonly policy: Policy
}

/** RFC 1912 2.2 has longer ones; nobody transfers this zone. */
const SOA_TIMES = { refresh: 3600, retry: 600, expiration: 86400 }

/** The name of the zone's one NS, and of whom to write to about it. */
export const nameServer = (apex: string): string => `ns.${apex}`
const hostmaster = (apex: string): string => `hostmaster.${apex}`

/** Services are named whole, as in `echo.roundelay.test`; the apex may be one. */
export function compileZone(options: ZoneOptions, snapshots: readonly Snapshot[], serial: number): Zone {
  const { apex, ttlSeconds: ttl, nsAddresses } = options
  const nodes = new Map<NameKey, Node>()
  const pending = snapshots.filter(snapshot => !snapshot.ready).map(snapshot => keyOf(snapshot.service))
  const node = (name: string): Node => {
    const key = keyOf(name)
    const known = nodes.get(key)
    if (known) return known
    const made: Node = { name, rrsets: new Map(), pending: pending.includes(key) }
    nodes.set(key, made)
    if (name !== apex) node(name.slice(name.indexOf('.') + 1))
    return made
  }
  const base = (name: string, type: number) => ({ name, type, class: CLASS.IN, ttl })
  const soa: Record = {
    ...base(apex, TYPE.SOA),
    primary: nameServer(apex),
    admin: hostmaster(apex),
    serial,
    ...SOA_TIMES,
    minimum: ttl,
  }
  const addressRecord = (name: string, address: string): Record => ({
    ...base(name, isIpv6(address) ? TYPE.AAAA : TYPE.A),
    address,
  })

  const ns = nameServer(apex)
  const glue = nsAddresses.map(address => addressRecord(ns, address))
  node(apex).rrsets.set(TYPE.SOA, { records: [soa], additional: [] })
  node(apex).rrsets.set(TYPE.NS, { records: [{ ...base(apex, TYPE.NS), ns }], additional: [glue] })
  node(ns)
  for (const record of glue) addRecord(node(ns), record)

  for (const { service, ready, endpoints } of snapshots) {
    const owner = node(service)
    if (!ready) continue
    const answered = endpoints.filter(endpoint => endpoint.answered)
    const rotate = (name: string, type: number, members: readonly EndpointStatus[], record: RecordOf) => {
      if (members.length === 0) return
      const made = members.map(record)
      node(name).rrsets.set(type, {
        records: made.map(([main]) => main),
        additional: made.map(([, ...rest]) => rest),
        plan: options.policy.compile(members),
        addresses: members.map(member => member.address),
      })
    }
    for (const [family, type] of [
      [4, TYPE.A],
      [6, TYPE.AAAA],
    ] as const) {
      const members = answered.filter(endpoint => endpoint.family === family)
      rotate(service, type, members, ({ address }) => [addressRecord(service, address)])
    }
    for (const transport of ['udp', 'tcp']) {
      const name = `_echo._${transport}.${service}`
      node(name)
      rotate(name, TYPE.SRV, answered, ({ address, weight }) => {
        const target = hostName(address, service)
        const srv = { ...base(name, TYPE.SRV), priority: 0, weight, port: options.port, target }
        return [srv, addressRecord(target, address)]
      })
    }
    for (const { address } of endpoints) {
      const name = hostName(address, service)
      addRecord(node(name), addressRecord(name, address))
    }
    for (const { address, state, terminating } of endpoints) {
      const text = `${address} ${terminating ? 'terminating' : state}`
      addRecord(owner, { ...base(service, TYPE.TXT), data: [text] })
    }
  }
  return { apex, apexKey: keyOf(apex), soa, nodes, pending }
}

type RecordOf = (member: EndpointStatus) => [main: Record, ...additional: Record[]]

function addRecord(node: Node, record: Record): void {
  const records = node.rrsets.get(record.type)?.records ?? []
  node.rrsets.set(record.type, { records: [...records, record], additional: [] })
}

/** `10.0.0.1` → `10-0-0-1.SERVICE`; IPv6 in full, since a label must not start with "-". */
export function hostName(address: string, service: string): string {
  const label = isIpv6(address)
    ? Packet.fromIPv6(address).map(group => Number.parseInt(group, 16).toString(16))
    : address.split('.')
  return `${label.join('-')}.${service}`
}

/**
 * The serial after a change: it never goes back, and reads as the time of the change while changes are rarer
 * than one a second. Serial arithmetic of RFC 1982.
 */
export function nextSerial(previous: number | undefined, unixSeconds: number): number {
  const now = unixSeconds >>> 0
  if (previous === undefined || ((now - previous) | 0) > 0) return now
  return (previous + 1) >>> 0
}
