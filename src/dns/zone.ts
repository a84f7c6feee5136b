/** The content of the zone as plain data, in parts: one for the zone itself, and two for each service. */
import type { EndpointStatus, Snapshot } from '../endpoints/pool.ts'
import type { Policy } from './rotation.ts'
import { CLASS, ipv6Groups, isIpv6, type Rdata, TYPE } from './wire.ts'

/** An address that goes with a record in the additional section. */
export interface Glue {
  readonly name: string
  readonly address: string
}

/** How the records of an RRset take turns. */
export interface Rotation {
  /** One for each record. */
  readonly candidates: readonly EndpointStatus[]
  /** For each record, where the counts of its endpoint begin. */
  readonly places: readonly number[]
  /** Which of these counts says how often it stood first here. */
  readonly count: number
  /** Where the cursor stands among those of all RRsets. */
  readonly cursor: number
}

/**
 * The records of one type at one name. RRsets with the same `records` object are encoded once: their names
 * are equally long and differ only in front of the names of their glue.
 */
export interface RRset {
  readonly name: string
  readonly type: number
  readonly class: number
  readonly ttl: number
  readonly records: readonly Rdata[]
  /** For SRV one for each record, for NS all of them. */
  readonly glue?: readonly Glue[]
  readonly rotation?: Rotation
  readonly remark?: Remark | undefined
}

/** Why these records may be wrong. Told to clients as an extended DNS error. */
export type Remark = 'failed open' | 'source failed'

export interface Part {
  /** Names that exist even if they have no records, because a name below them exists (RFC 4592 2.2.2). */
  readonly names: readonly string[]
  /** A service that waits for its first check round. What is at and below its name is not known yet. */
  readonly pending: string | undefined
  readonly rrsets: readonly RRset[]
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
  /** How many records an answer of a service has at most: A, AAAA, SRV and TXT. */
  readonly maxAnswers: number
  /** What `id.server` and `hostname.bind` say, and NSID. */
  readonly serverId: string
  /** What `version.bind` says. */
  readonly version: string
}

/** RFC 1912 2.2 recommends longer times, but this zone is never transferred. */
const SOA_TIMES = { refresh: 3600, retry: 600, expire: 86400 }
/** The name of the zone's one NS, and the mailbox of who answers for the zone. */
export const nameServer = (apex: string): string => `ns.${apex}`
const hostmaster = (apex: string): string => `hostmaster.${apex}`

/** SOA, NS with its glue, what ANY gets, and the names of class CH (RFC 4892). */
export function basePart(options: ZoneOptions, serial: number): Part {
  const { apex, ttlSeconds: ttl, nsAddresses, serverId, version } = options
  const ns = nameServer(apex)
  const here = { name: apex, class: CLASS.IN, ttl }
  const soa = { primary: ns, admin: hostmaster(apex), serial, ...SOA_TIMES, minimum: ttl }
  const glue = nsAddresses.map(address => ({ name: ns, address }))
  const addresses = [TYPE.A, TYPE.AAAA].map(type => ({
    ...here,
    name: ns,
    type,
    records: glue.filter(({ address }) => isIpv6(address) === (type === TYPE.AAAA)),
  }))
  const chaos = (name: string, text: string): RRset => ({
    name,
    type: TYPE.TXT,
    class: CLASS.CH,
    ttl: 0,
    records: [{ texts: [text] }],
  })
  return {
    names: [ns, apex],
    pending: undefined,
    rrsets: [
      { ...here, type: TYPE.SOA, records: [{ soa }] },
      { ...here, type: TYPE.NS, records: [{ ns }], glue },
      ...addresses.filter(({ records }) => records.length > 0),
      minimalAny(apex, ttl),
      chaos('version.bind', `roundelay ${version}`),
      chaos('version.server', `roundelay ${version}`),
      chaos('hostname.bind', serverId),
      chaos('id.server', serverId),
    ],
  }
}

/**
 * RFC 8482 4.2: a synthesised HINFO in place of everything, at whatever name. No query finds it by itself,
 * since class 0 is refused.
 */
const minimalAny = (apex: string, ttl: number): RRset => ({
  name: apex,
  type: TYPE.ANY,
  class: 0,
  ttl,
  records: [{ texts: ['RFC8482', ''] }],
})

/** A, AAAA, SRV over UDP, SRV over TCP: each RRset of a service that rotates has a cursor. */
export const CURSORS_PER_SERVICE = 4
/** An endpoint can stand first in the RRset of its family, and in the SRV of each transport. */
export const COUNTS_PER_ENDPOINT = 3

/** Which RRsets of a service rotate, in the order of their cursors. */
export function rotatingRRsets(service: string) {
  const srv = { type: TYPE.SRV, family: undefined }
  return [
    { name: service, type: TYPE.A, family: 4, count: 0 },
    { name: service, type: TYPE.AAAA, family: 6, count: 0 },
    { ...srv, name: `_echo._udp.${service}`, count: 1 },
    { ...srv, name: `_echo._tcp.${service}`, count: 2 },
  ] as const
}

/** Where the cursors and counts of a service stand. An endpoint keeps its place from Snapshot to Snapshot. */
export interface Places {
  readonly firstCursor: number
  firstCount(address: string): number
}

/** What a service answers. Services are named in full, as in `echo.roundelay.test`; the apex may be one. */
export function servicePart(
  options: ZoneOptions,
  snapshot: Snapshot,
  places: Places,
  sourceFailed = false,
): Part {
  const { apex, ttlSeconds: ttl, port } = options
  const { service, endpoints } = snapshot
  if (!snapshot.ready) return { names: ancestors(service, apex), pending: service, rrsets: [] }
  const remark: Remark | undefined = snapshot.failedOpen
    ? 'failed open'
    : sourceFailed
      ? 'source failed'
      : undefined
  const owner = { name: service, class: CLASS.IN, ttl, remark }
  const names = ancestors(service, apex)
  const rrsets: RRset[] = []

  const answered = endpoints.filter(endpoint => endpoint.answered)
  const glue = answered.map(({ address }) => ({ name: hostName(address, service), address }))
  const targets = answered.map(({ weight }, i) => ({ srv: { weight, port, target: glue[i]?.name ?? '' } }))
  for (const [i, { name, type, family, count }] of rotatingRRsets(service).entries()) {
    const isSrv = type === TYPE.SRV
    // Its owner exists also while it has no records, and so does the name between that and the service.
    if (isSrv) names.push(name, name.slice(name.indexOf('.') + 1))
    const candidates = isSrv ? answered : answered.filter(endpoint => endpoint.family === family)
    if (candidates.length === 0) continue
    rrsets.push({
      ...owner,
      name,
      type,
      records: isSrv ? targets : candidates,
      ...(isSrv && { glue }),
      rotation: {
        candidates,
        places: candidates.map(({ address }) => places.firstCount(address)),
        count,
        cursor: places.firstCursor + i,
      },
    })
  }
  // These records do not take turns: `--answers` keeps the first of them.
  const texts = endpoints.slice(0, options.maxAnswers).map(({ address, state, terminating, leaving }) => ({
    texts: [`${address} ${leaving ? 'leaving' : terminating ? 'terminating' : state}`],
  }))
  if (texts.length > 0) rrsets.push({ ...owner, type: TYPE.TXT, records: texts })
  return { names, pending: undefined, rrsets }
}

/**
 * The names of the endpoints themselves, which stand as long as the endpoint is known, whatever its state.
 */
export function hostsPart({ ttlSeconds: ttl }: ZoneOptions, { service, ready, endpoints }: Snapshot): Part {
  const rrsets = endpoints.map(({ address, family }) => ({
    name: hostName(address, service),
    type: family === 6 ? TYPE.AAAA : TYPE.A,
    class: CLASS.IN,
    ttl,
    records: [{ address }],
  }))
  return { names: [], pending: undefined, rrsets: ready ? rrsets : [] }
}

/** The name and those above it, down to the apex. */
function ancestors(name: string, apex: string): string[] {
  const names = [name]
  for (let above = name; above !== apex; names.push(above)) above = above.slice(above.indexOf('.') + 1)
  return names
}

/** `10.0.0.1` → `10-0-0-1.SERVICE`; IPv6 in full, since a label must not start with "-". */
export function hostName(address: string, service: string): string {
  if (!isIpv6(address)) return `${address.replaceAll('.', '-')}.${service}`
  const groups = ipv6Groups(address).map(group => group.toString(16))
  return `${groups.join('-')}.${service}`
}

/**
 * The serial after a change: the time of the change, or the previous serial if that is later because the
 * clock was set back. It identifies a second, not a change: changes within one second share it. So it is
 * never ahead of the time, and does not go back when the server restarts. Serial arithmetic of RFC 1982.
 */
export function nextSerial(previous: number | undefined, unixSeconds: number): number {
  const now = unixSeconds >>> 0
  if (previous === undefined || ((now - previous) | 0) > 0) return now
  return previous
}
