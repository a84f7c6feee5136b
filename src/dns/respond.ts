/**
 * One query in, one reply out, over octets: the guards, the look-up, the turn of the cursor, the encoding.
 * Pure but for the turns, which are the caller's.
 */
import { Packet, type Resource, type Writer } from 'dns2'
import { keyOf, type NameKey, wireLength } from './name.ts'
import { HEADER_OCTETS, NSID, OPT, parseQuery, type Query, type Question } from './query.ts'
import { pick } from './rotation.ts'
import type { Node, Record, RRset, Zone } from './zone.ts'

const { TYPE, CLASS, RCODE } = Packet

/** Where a rotating RRset is in its order. It outlives Snapshots: a change of membership does not start it anew. */
export interface Turn {
  readonly name: string
  readonly type: number
  /** Answers given so far. */
  cursor: number
  /** By address: how often it stood first. */
  readonly firsts: Map<string, number>
}

export interface RespondOptions {
  readonly zone: Zone
  /** One for each owner name and type; begins empty, is the caller's to keep. */
  readonly turns: Map<string, Turn>
  /** At most so many records of a rotating RRset. */
  readonly maxAnswers: number
  /** What NSID, `id.server` and `hostname.bind` say. */
  readonly serverId: string
  /** What `version.bind` says. */
  readonly version: string
  /** Numbers in [0, 1). */
  readonly random: () => number
}

export interface Reply {
  readonly octets: Buffer
  /** The question's type, 0 where there is none that can be read. */
  readonly type: number
  readonly rcode: number
  readonly truncated: boolean
}

/** Our EDNS size: fits an IPv6 path of 1280 octets, as the DNS Flag Day 2020 has it. A client's own is capped at it. */
const EDNS_UDP_OCTETS = 1232
/** RFC 1035 4.2.1, without EDNS. */
const PLAIN_UDP_OCTETS = 512
const OPT_OCTETS = 11
const TCP_OCTETS = 65535

const QUERY = 0
const IXFR = 251
const FLAG = { qr: 0x8000, opcode: 0x7800, aa: 0x0400, tc: 0x0200, rd: 0x0100, cd: 0x0010 }
const HINFO = 13

/** What a question comes to, before it is encoded. */
interface Answer {
  readonly rcode: number
  readonly authoritative: boolean
  readonly rrset?: RRset
  readonly soa?: Record
  /** A name that stands at the end of the question, for compression. */
  readonly known?: string
}

const REFUSED: Answer = { rcode: RCODE.REFUSED, authoritative: false }

/** Undefined where no reply may be sent: no header, or itself a response. */
export function respond(
  message: Buffer,
  transport: 'udp' | 'tcp',
  options: RespondOptions,
): Reply | undefined {
  const query = parseQuery(message)
  if (query === undefined || query.isResponse) return undefined
  const answer = decide(query, options)
  const limit = transport === 'tcp' ? TCP_OCTETS : udpLimit(query)
  const { rrset } = answer
  const plan = rrset?.plan
  if (!query.question || !rrset || !plan) return encode(message, query, answer, undefined, limit, options)
  const { key, type } = query.question
  const turnKey = `${type} ${key}`
  const turn = options.turns.get(turnKey) ?? { name: answer.known ?? '', type, cursor: 0, firsts: new Map() }
  const order = pick(plan, turn.cursor, options.maxAnswers, options.random)
  const reply = encode(message, query, answer, order, limit, options)
  // A truncated answer will be asked for again over TCP: the turn is that one's.
  if (reply.truncated && transport === 'udp') return reply
  options.turns.set(turnKey, turn)
  turn.cursor++
  const first = rrset.addresses?.[order[0]!] ?? ''
  turn.firsts.set(first, (turn.firsts.get(first) ?? 0) + 1)
  return reply
}

/** The guards, in their order, then the zone. */
function decide(query: Query, options: RespondOptions): Answer {
  const { question } = query
  if (query.opcode !== QUERY) return { rcode: RCODE.NOTIMP, authoritative: false }
  // RFC 9619: one question. A query without one is only of use to DNS cookies, which are not ours.
  if (query.questionCount !== 1 || query.malformed || !question)
    return { rcode: RCODE.FORMERR, authoritative: false }
  if (query.edns && query.edns.version > 0) return { rcode: RCODE.BADVERS, authoritative: false }
  if (question.type === TYPE.AXFR || question.type === IXFR) return REFUSED
  if (question.class === CLASS.CH) return chaos(question, options)
  return question.class === CLASS.IN ? lookUp(question, options.zone) : REFUSED
}

function lookUp({ key, type }: Question, zone: Zone): Answer {
  if (!isBelow(key, zone.apexKey)) return REFUSED
  const node = zone.nodes.get(key)
  const unknown = node ? node.pending : zone.pending.some(service => isBelow(key, service))
  // An apex that is itself a service still has its SOA and NS, which probes ask for.
  if (unknown && !node?.rrsets.has(type)) return { rcode: RCODE.SERVFAIL, authoritative: false }
  const { soa } = zone
  if (!node) return { rcode: RCODE.NXDOMAIN, authoritative: true, soa, known: zone.apex }
  const rrset = type === TYPE.ANY ? minimalAny(node, soa.ttl) : node.rrsets.get(type)
  const known = node.name
  return rrset
    ? { rcode: RCODE.NOERROR, authoritative: true, rrset, known }
    : { rcode: RCODE.NOERROR, authoritative: true, soa, known }
}

/** Whether the name is `ancestor` or below it: the tail is the same, and starts where a label does. */
function isBelow(key: NameKey, ancestor: NameKey): boolean {
  if (!key.endsWith(ancestor)) return false
  let at = 0
  while (at < key.length - ancestor.length) at += key.charCodeAt(at) + 1
  return at === key.length - ancestor.length
}

/** RFC 8482 4.2: a synthesised HINFO in place of everything. */
function minimalAny({ name, rrsets }: Node, ttl: number): RRset | undefined {
  if (rrsets.size === 0) return undefined
  const data = Buffer.from('\x07RFC8482\x00', 'latin1')
  return { records: [{ name, type: HINFO, class: CLASS.IN, ttl, data }], additional: [] }
}

/** RFC 4892: who answers, in class CH. */
function chaos({ key, type }: Question, { serverId, version }: RespondOptions): Answer {
  const texts = new Map([
    ['version.bind', `roundelay ${version}`],
    ['version.server', `roundelay ${version}`],
    ['hostname.bind', serverId],
    ['id.server', serverId],
  ])
  for (const [name, text] of texts) {
    if (keyOf(name) !== key) continue
    const records = [{ name, type: TYPE.TXT, class: CLASS.CH, ttl: 0, data: [text] }]
    const asked = type === TYPE.TXT || type === TYPE.ANY
    const found = { rcode: RCODE.NOERROR, authoritative: true, known: name }
    return asked ? { ...found, rrset: { records, additional: [] } } : found
  }
  return REFUSED
}

const udpLimit = ({ edns }: Query): number =>
  edns ? Math.max(PLAIN_UDP_OCTETS, Math.min(edns.udpOctets, EDNS_UDP_OCTETS)) : PLAIN_UDP_OCTETS

/**
 * The reply in wire form. Answer records are written in `order` until one does not fit, which sets TC;
 * additional ones are left out silently where they do not fit (RFC 2181 9).
 */
function encode(
  message: Buffer,
  query: Query,
  answer: Answer,
  order: readonly number[] | undefined,
  limit: number,
  { serverId }: RespondOptions,
): Reply {
  const writer: Writer & { names?: Map<string, number> } = new Packet.Writer()
  const materialize = writer.toBuffer
  // dns2 makes a Buffer of the whole message after each record and throws it away: n records, n² work.
  writer.toBuffer = () => message
  const questionEnd = query.question?.end ?? HEADER_OCTETS
  for (let i = 0; i < questionEnd; i++) writer.write(message[i]!, 8)
  const names = suffixOffsets(answer.known, questionEnd)

  const id = Buffer.from(serverId).subarray(0, 255)
  // A long one and a long question may be more than 512 octets: the question must stand.
  const nsid = query.edns?.nsid && questionEnd + OPT_OCTETS + 4 + id.length <= limit ? id : undefined
  const opt = query.edns ? OPT_OCTETS + (nsid ? 4 + nsid.length : 0) : 0
  const add = (record: Record): boolean => {
    const before = writer.bitLength()
    // dns2 points at every name it knows. The target of an SRV is written whole (RFC 2782),
    // so there it knows only the owner, which is the question's name.
    writer.names = record.type === TYPE.SRV ? new Map([[record.name, HEADER_OCTETS]]) : names
    Packet.Resource.encode(record as Resource, writer)
    const fits = writer.byteLength() + opt <= limit
    if (!fits) writer.buffer.length = before
    else if (writer.names !== names) for (const [name, offset] of writer.names) names.set(name, offset)
    return fits
  }

  const { rrset } = answer
  const wanted = rrset ? (order ?? rrset.records.map((_, i) => i)) : []
  const written = rrset ? countWhile(wanted, i => add(rrset.records[i]!)) : 0
  const truncated = written < wanted.length
  const authority = answer.soa && add(answer.soa) ? 1 : 0
  const extra = truncated ? [] : wanted.flatMap(i => rrset?.additional[i] ?? [])
  let additional = countWhile(extra, add)
  if (query.edns) {
    writeOpt(writer, answer.rcode, query.edns.dnssecOk, nsid)
    additional++
  }

  const octets = materialize.call(writer)
  const kept = query.flags & (FLAG.opcode | FLAG.rd | FLAG.cd)
  const set = FLAG.qr | (answer.authoritative ? FLAG.aa : 0) | (truncated ? FLAG.tc : 0)
  octets.writeUInt16BE(kept | set | (answer.rcode & 0xf), 2)
  const counts = [query.question ? 1 : 0, written, authority, additional]
  for (const [i, count] of counts.entries()) octets.writeUInt16BE(count, 4 + 2 * i)
  return { octets, type: query.question?.type ?? 0, rcode: answer.rcode, truncated }
}

function countWhile<T>(items: readonly T[], take: (item: T) => boolean): number {
  const stop = items.findIndex(item => !take(item))
  return stop === -1 ? items.length : stop
}

/** Where in the question the name `known` and each of its parents stand (RFC 1035 4.1.4). */
function suffixOffsets(known: string | undefined, questionEnd: number): Map<string, number> {
  const offsets = new Map<string, number>()
  if (known === undefined) return offsets
  const nameEnd = questionEnd - 4
  for (let suffix = known; ; suffix = suffix.slice(suffix.indexOf('.') + 1)) {
    offsets.set(suffix, nameEnd - wireLength(suffix))
    if (!suffix.includes('.')) return offsets
  }
}

/** RFC 6891 6.1.3. By hand, since dns2 knows no NSID and would leave it out. */
function writeOpt(writer: Writer, rcode: number, dnssecOk: boolean, nsid: Buffer | undefined): void {
  writer.write(0, 8)
  writer.write(OPT, 16)
  writer.write(EDNS_UDP_OCTETS, 16)
  writer.write(rcode >> 4, 8)
  writer.write(0, 8)
  writer.write(dnssecOk ? 0x8000 : 0, 16)
  writer.write(nsid ? 4 + nsid.length : 0, 16)
  if (!nsid) return
  writer.write(NSID, 16)
  writer.write(nsid.length, 16)
  for (const octet of nsid) writer.write(octet, 8)
}
