/**
 * Answers one query: guards, look-up, turn of the cursor, copy. All queries take this one path. It allocates
 * nothing: whatever must be remembered is kept in the context.
 */
import type { Transport } from '../address.ts'
import { NO_REPLY } from '../protocols.ts'
import {
  ENTRY,
  FAILED_OPEN,
  findEntry,
  HAS_RECORDS,
  nameQuestion,
  PENDING,
  question,
  RRSET,
  SOA_POINTERS,
  SOURCE_FAILED,
  storedRecords,
  type Zone,
} from './compiled.ts'
import { EDE, NO_EDE } from './ede.ts'
import { hashName } from './name.ts'
import { parseQuery, Query } from './query.ts'
import { type Lots, policies, turnWindows } from './rotation.ts'
import { CLASS, FLAG, HEADER_OCTETS, IXFR, OPT_OCTETS, RCODE, TYPE } from './wire.ts'

/**
 * Our EDNS size fits an IPv6 path of 1280 octets (DNS Flag Day 2020). A client's own size is capped at it.
 */
const EDNS_UDP_OCTETS = 1232
/** RFC 1035 4.2.1, without EDNS. */
const PLAIN_UDP_OCTETS = 512
export const MAX_MESSAGE_OCTETS = 65535

/** What a compression pointer can point at (RFC 1035 4.1.4). */
const MAX_POINTER = 0x3fff
const QUERY = 0
/** Shorter copies are faster octet by octet. */
const SHORT_COPY_OCTETS = 48
/** The size of an A record, the smallest that rotates. */
const MIN_RECORD_OCTETS = 16

/** Indices into the counters: queries by type, with one for all other types; responses by rcode; the rest. */
export const COUNTERS = {
  type: 0,
  otherType: 258,
  rcode: 259,
  truncated: 276,
  dropped: 277,
  words: 278,
} as const

/** What `respond` needs besides the message. Each thread has one for each transport. */
export interface Context extends Lots {
  readonly transport: Transport
  zone: Zone
  /**
   * One for each rotating RRset. They outlive Snapshots, so a change of membership does not restart the
   * order.
   */
  readonly cursors: Int32Array
  /** For each endpoint and kind of RRset: how often the endpoint was first in an answer. */
  firsts: Float64Array
  /** See `COUNTERS`. */
  readonly counters: Float64Array
  memory: Int32Array
  /** The order of the current answer. */
  windows: Int32Array
  readonly query: Query
  readonly draft: Draft
}

/** What the current reply has so far. */
class Draft {
  end = 0
  /** Where the records must end, so that the OPT has room behind them. */
  limit = 0
  /** The RRset of the answer, or 0 if there is none. */
  rrset = 0
  /** How many windows the order of the answer has. */
  windows = 0
  nsidOctets = 0
  /** The extended DNS error: an encoded option, or nothing. */
  ede: Uint8Array = NO_EDE
  answers = 0
  authorities = 0
  additionals = 0
  authoritative = false
  truncated = false
}

export function createContext(
  options: Pick<Context, 'transport' | 'zone' | 'cursors' | 'firsts' | 'random'>,
): Context {
  const context = {
    ...options,
    counters: new Float64Array(COUNTERS.words),
    memory: new Int32Array(0),
    windows: new Int32Array(0),
    query: new Query(),
    draft: new Draft(),
  }
  useZone(context, options.zone, options.firsts)
  return context
}

/** Replaces the zone between two queries. */
export function useZone(context: Context, zone: Zone, firsts: Float64Array): void {
  context.zone = zone
  context.firsts = firsts
  if (context.memory.length >= zone.largest) return
  context.memory = Int32Array.from({ length: zone.largest }, (_, i) => i)
  context.windows = new Int32Array(2 * zone.largest + 2)
}

/**
 * Answers `input[0, length)`: writes the reply into `output` and returns its length, or returns `NO_REPLY` if
 * none is due. `output` may be `input`, and otherwise must not overlap it. It must have room for the largest
 * reply: 1,232 octets over UDP, 65,535 over TCP.
 */
export function respond(input: Uint8Array, length: number, output: Uint8Array, context: Context): number {
  const { query, draft, counters } = context
  if (!parseQuery(input, length, query)) {
    counters[COUNTERS.dropped]!++
    return NO_REPLY
  }
  const questionEnd = query.nameEnd === 0 ? HEADER_OCTETS : query.nameEnd + 4
  if (output !== input) for (let i = HEADER_OCTETS; i < questionEnd; i++) output[i] = input[i]!
  draft.end = questionEnd
  draft.limit = replyLimit(context) - (query.edns ? OPT_OCTETS : 0)
  draft.rrset = 0
  draft.nsidOctets = 0
  draft.ede = NO_EDE
  draft.answers = 0
  draft.authorities = 0
  draft.additionals = 0
  draft.authoritative = false
  draft.truncated = false

  const refused = guard(output, context)
  const rcode = refused === RCODE.NOERROR ? look(output, context) : refused
  // Only required records have been written so far. Optional ones get the room that is left (RFC 2181 9).
  if (query.nsid && draft.end + context.zone.nsidOctets <= draft.limit)
    draft.nsidOctets = context.zone.nsidOctets
  draft.limit -= draft.nsidOctets
  if (draft.end + draft.ede.length > draft.limit) draft.ede = NO_EDE
  draft.limit -= draft.ede.length
  if (draft.rrset !== 0 && !draft.truncated) writeGlue(output, questionEnd, context)
  if (query.edns) writeOpt(output, rcode, context)
  writeHeader(output, rcode, context)

  const { type } = query
  counters[type < COUNTERS.otherType ? COUNTERS.type + type : COUNTERS.otherType]!++
  counters[COUNTERS.rcode + rcode]!++
  if (draft.truncated) counters[COUNTERS.truncated]!++
  return draft.end
}

function replyLimit({ transport, query }: Context): number {
  if (transport === 'tcp') return MAX_MESSAGE_OCTETS
  return query.edns
    ? Math.max(PLAIN_UDP_OCTETS, Math.min(query.udpOctets, EDNS_UDP_OCTETS))
    : PLAIN_UDP_OCTETS
}

/** Returns the error that a query gets before anything is looked up, or NOERROR. */
function guard(output: Uint8Array, { query, draft, zone }: Context): number {
  // RFC 6891 6.1.3. The rest of the message could mean something else in that version.
  if (query.edns && query.version > 0 && !query.malformed) return RCODE.BADVERS
  if (query.opcode !== QUERY) {
    draft.ede = EDE.notSupported
    return RCODE.NOTIMP
  }
  // RFC 9619 allows one question. Only DNS cookies use a query without one, and we do not implement them.
  if (query.malformed || query.questionCount !== 1) return RCODE.FORMERR
  draft.ede = EDE.notAuthoritative
  if (query.type === TYPE.AXFR || query.type === IXFR) {
    // RFC 5936 2.2.1: only the apex names a zone that could be transferred.
    const isApex = query.class === CLASS.IN && apexStart(zone, output, query.nameEnd) === HEADER_OCTETS
    if (isApex) draft.ede = EDE.notSupported
    return isApex ? RCODE.REFUSED : RCODE.NOTAUTH
  }
  if (query.class !== CLASS.IN && query.class !== CLASS.CH) return RCODE.REFUSED
  draft.ede = NO_EDE
  return RCODE.NOERROR
}

/** Writes the answer to the question, and returns the rcode. */
function look(output: Uint8Array, context: Context): number {
  const { zone, query, draft } = context
  const { nameEnd, type } = query
  const hash = hashName(output, HEADER_OCTETS, nameEnd)
  if (query.class === CLASS.CH) return lookInChaos(output, hash, context)
  // ANY has one entry for all names, and type 0 is that of the names themselves.
  if (type !== TYPE.ANY && type !== 0) {
    const entry = findEntry(zone, output, HEADER_OCTETS, nameEnd, hash, question(type, CLASS.IN))
    if (entry !== 0) {
      const remark = zone.words[entry + ENTRY.flags]!
      if ((remark & FAILED_OPEN) !== 0) draft.ede = EDE.failedOpen
      else if ((remark & SOURCE_FAILED) !== 0) draft.ede = EDE.sourceFailed
      return writeAnswer(output, entry, context)
    }
  }
  const name = findEntry(zone, output, HEADER_OCTETS, nameEnd, hash, nameQuestion(CLASS.IN))
  if (name === 0) {
    const apex = apexStart(zone, output, nameEnd)
    if (apex === 0) return notAuthoritative(draft)
    if (zone.pending && isBelowPending(zone, output, apex, nameEnd)) return notReady(draft)
    writeSoa(output, zone, draft, nameEnd)
    return RCODE.NXDOMAIN
  }
  const flags = zone.words[name + ENTRY.flags]!
  // If the service is the apex, its SOA and NS, which probes ask for, were already found above.
  if ((flags & PENDING) !== 0) return notReady(draft)
  if (type === TYPE.ANY && (flags & HAS_RECORDS) !== 0) return writeAnswer(output, zone.any, context)
  writeSoa(output, zone, draft, nameEnd)
  return RCODE.NOERROR
}

function notAuthoritative(draft: Draft): number {
  draft.ede = EDE.notAuthoritative
  return RCODE.REFUSED
}

function notReady(draft: Draft): number {
  draft.ede = EDE.notReady
  return RCODE.SERVFAIL
}

/** RFC 4892: which server this is. Class CH has no zone here: negative answers have neither SOA nor AA. */
function lookInChaos(output: Uint8Array, hash: number, context: Context): number {
  const { zone, query, draft } = context
  const type = query.type === TYPE.ANY ? TYPE.TXT : query.type
  const asked = type === 0 ? -1 : question(type, CLASS.CH)
  const entry = findEntry(zone, output, HEADER_OCTETS, query.nameEnd, hash, asked)
  if (entry !== 0) return writeAnswer(output, entry, context)
  const name = findEntry(zone, output, HEADER_OCTETS, query.nameEnd, hash, nameQuestion(CLASS.CH))
  return name === 0 ? notAuthoritative(draft) : RCODE.NOERROR
}

/** Returns where the apex begins within the question's name, or 0 if the name is outside the zone. */
function apexStart(zone: Zone, output: Uint8Array, nameEnd: number): number {
  const apex = nameEnd - zone.apexOctets
  let at = HEADER_OCTETS
  while (at < apex) at += output[at]! + 1
  if (at !== apex) return 0
  const hash = hashName(output, apex, nameEnd)
  return findEntry(zone, output, apex, nameEnd, hash, question(TYPE.SOA, CLASS.IN)) === 0 ? 0 : apex
}

function isBelowPending(zone: Zone, output: Uint8Array, apex: number, nameEnd: number): boolean {
  for (let at = HEADER_OCTETS; at <= apex; at += output[at]! + 1) {
    const hash = hashName(output, at, nameEnd)
    const name = findEntry(zone, output, at, nameEnd, hash, nameQuestion(CLASS.IN))
    if (name !== 0 && (zone.words[name + ENTRY.flags]! & PENDING) !== 0) return true
  }
  return false
}

/**
 * Writes the SOA of a negative answer (RFC 2308 3). Its pointers are set to where the apex stands in this
 * question.
 */
function writeSoa(output: Uint8Array, zone: Zone, draft: Draft, nameEnd: number): void {
  const { words } = zone
  draft.authoritative = true
  const rrset = zone.soa + words[zone.soa + ENTRY.rrset]!
  const start = 4 * rrset + words[rrset + RRSET.recordOctets]!
  const octets = words[rrset + RRSET.words + 1]!
  if (draft.end + octets > draft.limit) {
    draft.truncated = true
    return
  }
  copy(zone, start, start + octets, output, draft.end)
  // A name has at most 255 octets, so only the lower octet of a pointer changes.
  for (let i = 0; i < SOA_POINTERS.length; i++)
    output[draft.end + SOA_POINTERS[i]! + 1] = nameEnd - zone.apexOctets
  draft.end += octets
  draft.authorities = 1
}

/** Writes as many records of an entry as fit, takes its turn, and returns NOERROR. */
function writeAnswer(output: Uint8Array, entry: number, context: Context): number {
  const { zone, draft, windows } = context
  const { words } = zone
  const rrset = entry + words[entry + ENTRY.rrset]!
  draft.authoritative = true
  draft.rrset = rrset
  if (words[entry + ENTRY.cursor]! < 0) {
    windows[0] = 0
    windows[1] = words[rrset + RRSET.records]!
    draft.windows = 1
    fit(rrset, windows[1], context)
  } else {
    takeTurn(entry, rrset, context)
  }
  const starts = rrset + RRSET.words
  const records = 4 * rrset + words[rrset + RRSET.recordOctets]!
  for (let i = 0; i < draft.windows; i++) {
    const first = starts + windows[2 * i]!
    const from = words[first]!
    const to = words[first + windows[2 * i + 1]!]!
    copy(zone, records + from, records + to, output, draft.end)
    draft.end += to - from
  }
  return RCODE.NOERROR
}

/** If another thread takes the same turn at the same time, the order is computed again for the next turn. */
function takeTurn(entry: number, rrset: number, context: Context): void {
  const { zone, draft, transport, cursors } = context
  const { words } = zone
  const cursor = words[entry + ENTRY.cursor]!
  for (;;) {
    const turn = Atomics.load(cursors, cursor)
    fit(rrset, arrange(rrset, turn >>> 0, context), context)
    // The client asks again over TCP, and that answer takes the turn.
    if (draft.truncated && transport === 'udp') return
    if (Atomics.compareExchange(cursors, cursor, turn, (turn + 1) | 0) === turn) break
  }
  const first = storedIndex(words, rrset, context.windows[0]!)
  const counts = words[placesOf(words, rrset) + first]!
  context.firsts[counts + words[entry + ENTRY.count]!]!++
}

/** Writes the windows of the answer at this turn, and returns how many records the answer needs. */
function arrange(rrset: number, turn: number, context: Context): number {
  const { zone, draft, windows } = context
  const { words } = zone
  const records = words[rrset + RRSET.records]!
  // One record more than can fit is enough to see that the answer is truncated.
  const fitting = ((draft.limit - draft.end) / MIN_RECORD_OCTETS) | 0
  const taken = Math.min(records, zone.maxAnswers, fitting + 1)
  const policy = words[rrset + RRSET.policy]!
  if (policy >= 0) {
    draft.windows = policies[policy]?.arrange?.(records, taken, turn, context, windows) ?? 0
    return taken
  }
  const ring = words[rrset + RRSET.ring]!
  const turns = words[rrset + RRSET.turns]!
  const head = turns === 0 ? turn % ring : words[turnsOf(words, rrset) + (turn % turns)]!
  draft.windows = turnWindows(ring, head, taken, windows)
  return taken
}

/** Cuts the windows to the records that fit. */
function fit(rrset: number, wanted: number, { zone, draft, windows }: Context): void {
  const { words } = zone
  let room = draft.limit - draft.end
  let fitted = 0
  for (let i = 0; i < draft.windows; i++) {
    const first = rrset + RRSET.words + windows[2 * i]!
    const count = windows[2 * i + 1]!
    const fits = fittingRecords(words, first, count, room)
    fitted += fits
    room -= words[first + fits]! - words[first]!
    if (fits === count) continue
    windows[2 * i + 1] = fits
    draft.windows = i + 1
  }
  draft.answers = fitted
  draft.truncated = fitted < wanted
}

/** Returns how many of the `count` records whose starts stand at `first` have room. */
function fittingRecords(words: Int32Array, first: number, count: number, room: number): number {
  const end = words[first]! + room
  if (words[first + count]! <= end) return count
  let fits = 0
  let tooMany = count
  while (tooMany - fits > 1) {
    const middle = (fits + tooMany) >> 1
    if (words[first + middle]! <= end) fits = middle
    else tooMany = middle
  }
  return fits
}

const turnsOf = (words: Int32Array, rrset: number): number =>
  rrset + RRSET.words + storedRecords(words[rrset + RRSET.records]!, words[rrset + RRSET.ring]!) + 1

const placesOf = (words: Int32Array, rrset: number): number =>
  turnsOf(words, rrset) + words[rrset + RRSET.turns]!

/** Converts a position to the index of its record, since the ring is stored twice. */
function storedIndex(words: Int32Array, rrset: number, position: number): number {
  const ring = words[rrset + RRSET.ring]!
  return position < ring ? position : position - ring
}

/** Writes as many addresses of the names in the answer as fit, in the order of the answer. */
function writeGlue(output: Uint8Array, answerStart: number, context: Context): void {
  const { zone, draft, windows } = context
  const { rrset } = draft
  const { words } = zone
  const glue = words[rrset + RRSET.glue]!
  const target = words[rrset + RRSET.target]!
  if (target === 0) {
    for (let i = 0; i < glue; i++) if (!writeGlueRecord(output, i, 0, context)) return
    return
  }
  let record = answerStart
  for (let i = 0; i < draft.windows; i++) {
    const first = windows[2 * i]!
    const end = first + windows[2 * i + 1]!
    for (let position = first; position < end; position++) {
      const index = storedIndex(words, rrset, position)
      if (!writeGlueRecord(output, index, record + target, context)) return
      const start = rrset + RRSET.words + position
      record += words[start + 1]! - words[start]!
    }
  }
}

/**
 * Returns false if the record does not fit. Its owner is a pointer to `name`, if a pointer can reach that
 * far.
 */
function writeGlueRecord(output: Uint8Array, index: number, name: number, context: Context): boolean {
  const { zone, draft } = context
  const { rrset } = draft
  const { words } = zone
  const starts = placesOf(words, rrset) + words[rrset + RRSET.places]! + 2 * index
  const pointer = name > 0 && name <= MAX_POINTER
  const from = words[pointer ? starts + 1 : starts]!
  const to = words[starts + 2]!
  if (draft.end + (pointer ? 2 : 0) + to - from > draft.limit) return false
  if (pointer) {
    output[draft.end] = 0xc0 | (name >> 8)
    output[draft.end + 1] = name
    draft.end += 2
  }
  const glue = 4 * rrset + words[rrset + RRSET.glueOctets]!
  copy(zone, glue + from, glue + to, output, draft.end)
  draft.end += to - from
  draft.additionals++
  return true
}

/** RFC 6891 6.1.3. */
function writeOpt(output: Uint8Array, rcode: number, { zone, query, draft }: Context): void {
  const { nsidOctets } = draft
  let at = draft.end
  output[at++] = 0
  at = writeU16(output, at, TYPE.OPT)
  at = writeU16(output, at, EDNS_UDP_OCTETS)
  at = writeU16(output, at, (rcode >> 4) << 8)
  at = writeU16(output, at, query.dnssecOk ? 0x8000 : 0)
  at = writeU16(output, at, nsidOctets + draft.ede.length)
  copy(zone, zone.nsid, zone.nsid + nsidOctets, output, at)
  at += nsidOctets
  for (let i = 0; i < draft.ede.length; i++) output[at + i] = draft.ede[i]!
  draft.end = at + draft.ede.length
  draft.additionals++
}

function writeHeader(output: Uint8Array, rcode: number, { query, draft }: Context): void {
  const kept = query.flags & (FLAG.opcode | FLAG.recursionDesired | FLAG.checkingDisabled)
  const authoritative = draft.authoritative ? FLAG.authoritative : 0
  const truncated = draft.truncated ? FLAG.truncated : 0
  writeU16(output, 0, query.id)
  writeU16(output, 2, FLAG.response | kept | authoritative | truncated | (rcode & 0xf))
  writeU16(output, 4, query.nameEnd === 0 ? 0 : 1)
  writeU16(output, 6, draft.answers)
  writeU16(output, 8, draft.authorities)
  writeU16(output, 10, draft.additionals)
}

function writeU16(output: Uint8Array, at: number, value: number): number {
  output[at] = value >> 8
  output[at + 1] = value
  return at + 2
}

function copy({ octets }: Zone, from: number, to: number, output: Uint8Array, at: number): void {
  if (to - from > SHORT_COPY_OCTETS) octets.copy(output, at, from, to)
  else for (let i = from; i < to; i++) output[at + i - from] = octets[i]!
}
