/**
 * The zone as one buffer, which threads can share, and which is replaced as a whole. It holds only numbers:
 * 32-bit words, and octets over the same memory.
 *
 *     header | slots of the table | the block of each part | NSID option
 *
 * The block of a part has its entries, its RRsets and their encoded records. All references within a block
 * are relative, so a zone is assembled by copying blocks, and a part that did not change is not compiled
 * again.
 *
 * A question (name, type, class) leads to an *entry*. An *RRset* stores its records as they are sent. The
 * owner of each record is a pointer to the question, so its TTL is always 6 octets behind its start. Records
 * that take turns are stored twice in a row, so every order of the ring is a window between two starts. The
 * other records follow them.
 */
import { hashName, mix, nameWord, wordsOf } from './name.ts'
import { type Plan, type Policy, policies } from './rotation.ts'
import { CLASS, isIpv6, NSID, QUESTION_POINTER, type Rdata, TYPE, Writer } from './wire.ts'
import type { Glue, Part, Rotation, RRset } from './zone.ts'

/** Words of the header. No entry stands at position 0, which therefore means "none". */
const HEADER = {
  mask: 0,
  apexOctets: 1,
  pending: 2,
  soa: 3,
  any: 4,
  nsid: 5,
  nsidOctets: 6,
  maxAnswers: 7,
  largest: 8,
  words: 9,
} as const

/** Words of an entry. Those of its name follow. */
export const ENTRY = {
  hash: 0,
  nameOctets: 1,
  question: 2,
  flags: 3,
  /** The index of the cursor, or -1 if the records do not rotate. */
  cursor: 4,
  /** Which of an endpoint's counts. */
  count: 5,
  /** The position of the RRset, relative to the entry; 0 if there is none. */
  rrset: 6,
  words: 7,
} as const

/**
 * Words of an RRset. Four tables follow: the starts of the stored records, relative to the first, and their
 * end; the turns; for each record, in stored order, where the counts of its endpoint begin; for each glue
 * record the start of its owner and of what follows the owner, and the end of the last.
 */
export const RRSET = {
  records: 0,
  ring: 1,
  turns: 2,
  /** The index of the policy that arranges each answer, or -1 if the records take turns. */
  policy: 3,
  places: 4,
  glue: 5,
  /**
   * The offset, in a record, of the name that its glue belongs to; 0 if the glue records have their owners in
   * full.
   */
  target: 6,
  /** Octets, relative to the RRset. */
  recordOctets: 7,
  glueOctets: 8,
  words: 9,
} as const

/** Flags of a name. */
export const HAS_RECORDS = 1
export const PENDING = 2
/** Flags of an RRset's entry: what an extended DNS error says about the answer. */
export const FAILED_OPEN = 4
export const SOURCE_FAILED = 8

const REMARKS = { 'failed open': FAILED_OPEN, 'source failed': SOURCE_FAILED } as const

/** The type under which a name itself is entered: it has no records. */
const NO_TYPE = 0
const SRV_TARGET = 18
/**
 * Where pointers to the apex stand in the record of the SOA: its owner, behind "ns" and behind "hostmaster".
 */
export const SOA_POINTERS = [0, 15, 28] as const
/** Slots of the table for each entry, at least. */
const SLOTS_PER_ENTRY = 2

/** What a compiler reserves at the start. */
const WORDS_PER_RECORD = 16
const OCTETS_PER_RECORD = 64

export const question = (type: number, dnsClass: number): number => (type << 16) | dnsClass
export const nameQuestion = (dnsClass: number): number => question(NO_TYPE, dnsClass)

/** Stored records: the ring twice, then the others. */
export const storedRecords = (records: number, ring: number): number => records + ring

/** One part, compiled. */
export interface Block {
  readonly words: Int32Array
  /** Where its entries stand. */
  readonly entries: readonly number[]
  /** The most records that one of its RRsets has. */
  readonly largest: number
  readonly pending: boolean
}

/** A view of a compiled zone, for `respond`. The buffer alone is enough to create one. */
export class Zone {
  readonly buffer: ArrayBufferLike
  readonly words: Int32Array
  readonly octets: Buffer
  readonly mask: number
  readonly apexOctets: number
  /** Some service waits for its first check round. */
  readonly pending: boolean
  /** The entry of the SOA. */
  readonly soa: number
  /** The entry of what ANY gets. */
  readonly any: number
  /** The NSID option, in octets. */
  readonly nsid: number
  readonly nsidOctets: number
  readonly maxAnswers: number
  readonly largest: number

  constructor(buffer: ArrayBufferLike) {
    this.buffer = buffer
    this.words = new Int32Array(buffer)
    this.octets = Buffer.from(buffer)
    const header = (word: number) => this.words[word]!
    this.mask = header(HEADER.mask)
    this.apexOctets = header(HEADER.apexOctets)
    this.pending = header(HEADER.pending) !== 0
    this.soa = header(HEADER.soa)
    this.any = header(HEADER.any)
    this.nsid = header(HEADER.nsid)
    this.nsidOctets = header(HEADER.nsidOctets)
    this.maxAnswers = header(HEADER.maxAnswers)
    this.largest = header(HEADER.largest)
  }
}

/**
 * Returns the entry of a question whose name is `octets[start, end)` and has this hash, or 0 if there is
 * none.
 */
export function findEntry(
  { words, mask }: Zone,
  octets: Uint8Array,
  start: number,
  end: number,
  nameHash: number,
  asked: number,
): number {
  const hash = mix(nameHash, asked)
  for (let slot = hash & mask; ; slot = (slot + 1) & mask) {
    const entry = words[HEADER.words + slot]!
    if (entry === 0) return 0
    if (
      words[entry + ENTRY.hash] === hash &&
      words[entry + ENTRY.question] === asked &&
      words[entry + ENTRY.nameOctets] === end - start &&
      isNamed(words, entry, octets, start, end)
    )
      return entry
  }
}

function isNamed(words: Int32Array, entry: number, octets: Uint8Array, start: number, end: number): boolean {
  const name = entry + ENTRY.words
  const count = wordsOf(end - start)
  for (let i = 0; i < count; i++) if (words[name + i] !== nameWord(octets, start, end, i)) return false
  return true
}

/** Assembles a zone from its compiled parts. The part of the zone itself comes first. */
export function assemble(
  blocks: readonly Block[],
  { apex, serverId, maxAnswers }: { apex: string; serverId: string; maxAnswers: number },
  allocate: (octets: number) => ArrayBufferLike = octets => new ArrayBuffer(octets),
): Zone {
  const names = new Writer()
  names.name(apex)
  const apexOctets = names.length
  names.u32(0)
  const nsid = new Writer()
  nsid.u16(NSID)
  // The length of an option has two octets. The lower one is that of the string.
  nsid.u8(0)
  nsid.string(serverId)

  const entries = blocks.reduce((sum, block) => sum + block.entries.length, 0)
  const slots = 2 ** Math.ceil(Math.log2(SLOTS_PER_ENTRY * entries + 1))
  const blockWords = blocks.reduce((sum, block) => sum + block.words.length, 0)
  const nsidWord = HEADER.words + slots + blockWords
  const buffer = allocate(4 * (nsidWord + wordsOf(nsid.length)))
  const words = new Int32Array(buffer)
  new Uint8Array(buffer).set(nsid.octets.subarray(0, nsid.length), 4 * nsidWord)

  let base = HEADER.words + slots
  for (const block of blocks) {
    words.set(block.words, base)
    for (const entry of block.entries) enter(words, slots - 1, base + entry)
    base += block.words.length
  }
  words[HEADER.mask] = slots - 1
  words[HEADER.apexOctets] = apexOctets
  words[HEADER.pending] = Number(blocks.some(({ pending }) => pending))
  words[HEADER.nsid] = 4 * nsidWord
  words[HEADER.nsidOctets] = nsid.length
  words[HEADER.maxAnswers] = Math.min(maxAnswers, 0x7fffffff)
  words[HEADER.largest] = Math.max(...blocks.map(({ largest }) => largest))
  const hash = hashName(names.octets, 0, apexOctets)
  const zone = new Zone(buffer)
  words[HEADER.soa] = findEntry(zone, names.octets, 0, apexOctets, hash, question(TYPE.SOA, CLASS.IN))
  words[HEADER.any] = findEntry(zone, names.octets, 0, apexOctets, hash, question(TYPE.ANY, 0))
  return new Zone(buffer)
}

/** Adds an entry to the table. If several parts have the same name, its flags are joined. */
function enter(words: Int32Array, mask: number, entry: number): void {
  const hash = words[entry + ENTRY.hash]!
  for (let slot = hash & mask; ; slot = (slot + 1) & mask) {
    const other = words[HEADER.words + slot]!
    if (other === 0) {
      words[HEADER.words + slot] = entry
      return
    }
    if (words[other + ENTRY.hash] !== hash || !sameEntry(words, other, entry)) continue
    words[other + ENTRY.flags] = words[other + ENTRY.flags]! | words[entry + ENTRY.flags]!
    return
  }
}

function sameEntry(words: Int32Array, a: number, b: number): boolean {
  if (words[a + ENTRY.question] !== words[b + ENTRY.question]) return false
  const octets = words[a + ENTRY.nameOctets]!
  if (words[b + ENTRY.nameOctets] !== octets) return false
  for (let i = ENTRY.words; i < ENTRY.words + wordsOf(octets); i++)
    if (words[a + i] !== words[b + i]) return false
  return true
}

/** Compiles one part. The work is proportional to the number of its records. */
export function compilePart(part: Part, policy: Policy): Block {
  const records = part.rrsets.reduce((sum, rrset) => sum + rrset.records.length, 0)
  const compiler = new Compiler(policy, records)
  for (const rrset of part.rrsets) compiler.add(rrset)
  for (const name of part.names) compiler.addName(name, name === part.pending ? PENDING : 0)
  return compiler.finish(part.pending !== undefined)
}

class Compiler {
  readonly #policy: Policy
  readonly #words: Words
  readonly #octets: Writer
  /** The name of the entry that is being written. */
  readonly #name = new Writer()
  #hash = 0
  readonly #entries: number[] = []
  readonly #names = new Set<string>()
  /** Those of class CH. */
  readonly #otherNames = new Set<string>()
  readonly #rrsets: number[] = []
  readonly #encoded = new Map<readonly Rdata[], number>()
  readonly #plans = new Map<Rotation['candidates'], Plan>()
  #largest = 0

  /** `records` is the expected number of records, so that memory need not grow. */
  constructor(policy: Policy, records: number) {
    this.#policy = policy
    this.#words = new Words(WORDS_PER_RECORD * records + 64)
    this.#octets = new Writer(OCTETS_PER_RECORD * records + 512)
  }

  add(rrset: RRset): void {
    const { name, type, rotation } = rrset
    const at = this.#encoded.get(rrset.records) ?? this.#addRRset(rrset)
    this.#encoded.set(rrset.records, at)
    this.#setName(name)
    const { cursor = -1, count = 0 } = rotation ?? {}
    const remark = rrset.remark === undefined ? 0 : REMARKS[rrset.remark]
    this.#addEntry(question(type, rrset.class), remark, cursor, count, at)
    this.#addNameOnce(name, rrset.class, HAS_RECORDS)
  }

  /** Adds a name, which may have no records. */
  addName(name: string, flags: number): void {
    this.#setName(name)
    this.#addNameOnce(name, CLASS.IN, flags)
  }

  finish(pending: boolean): Block {
    const words = new Int32Array(this.#words.length + wordsOf(this.#octets.length))
    words.set(this.#words.array.subarray(0, this.#words.length))
    const start = 4 * this.#words.length
    new Uint8Array(words.buffer).set(this.#octets.octets.subarray(0, this.#octets.length), start)
    for (const rrset of this.#rrsets)
      for (const field of [RRSET.recordOctets, RRSET.glueOctets])
        words[rrset + field] = words[rrset + field]! + start - 4 * rrset
    return { words, entries: this.#entries, largest: this.#largest, pending }
  }

  #setName(name: string): void {
    this.#name.length = 0
    this.#name.name(name)
    const end = this.#name.length
    // The last word of the name is read with the zeros behind it.
    this.#name.u32(0)
    this.#name.length = end
    this.#hash = hashName(this.#name.octets, 0, end)
  }

  #addNameOnce(name: string, dnsClass: number, flags: number): void {
    const seen = dnsClass === CLASS.IN ? this.#names : this.#otherNames
    if (seen.has(name)) return
    seen.add(name)
    this.#addEntry(nameQuestion(dnsClass), flags, -1, 0, undefined)
  }

  #addEntry(asked: number, flags: number, cursor: number, count: number, rrset?: number): void {
    const words = this.#words
    const nameOctets = this.#name.length
    const entry = words.length
    words.push(mix(this.#hash, asked))
    words.push(nameOctets)
    words.push(asked)
    words.push(flags)
    words.push(cursor)
    words.push(count)
    words.push(rrset === undefined ? 0 : rrset - entry)
    const nameWords = wordsOf(nameOctets)
    for (let i = 0; i < nameWords; i++) words.push(nameWord(this.#name.octets, 0, nameOctets, i))
    this.#entries.push(entry)
  }

  #addRRset(rrset: RRset): number {
    const { records, rotation, glue = [] } = rrset
    const words = this.#words
    const at = words.length
    const plan = rotation ? this.#plan(rotation.candidates) : undefined
    const ring = plan?.ring ?? 0
    const arranged = plan && this.#policy.arrange ? policies.indexOf(this.#policy) : -1
    this.#rrsets.push(at)
    this.#largest = Math.max(this.#largest, records.length)
    words.push(records.length)
    words.push(ring)
    words.push(plan?.turns.length ?? 0)
    words.push(arranged)
    words.push(rotation ? records.length : 0)
    words.push(glue.length)
    words.push(rrset.type === TYPE.SRV ? SRV_TARGET : 0)
    words.push(this.#octets.length)
    words.push(0)
    this.#addRecords(rrset, plan, ring)
    for (const turn of plan?.turns ?? []) words.push(turn)
    if (rotation) for (let i = 0; i < records.length; i++) words.push(rotation.places[stored(plan, i)]!)
    words.array[at + RRSET.glueOctets] = this.#octets.length
    const start = this.#octets.length
    for (let i = 0; i < glue.length; i++) this.#addGlue(rrset, glue[stored(plan, i)]!, start)
    if (glue.length > 0) words.push(this.#octets.length - start)
    return at
  }

  #addRecords(rrset: RRset, plan: Plan | undefined, ring: number): void {
    const words = this.#words
    const octets = this.#octets
    const start = octets.length
    const first = words.length
    const { records } = rrset
    for (let i = 0; i < ring; i++) {
      words.push(octets.length - start)
      this.#addRecord(rrset, records[stored(plan, i)]!)
    }
    const ringOctets = octets.length - start
    octets.repeat(start, octets.length)
    for (let i = 0; i < ring; i++) words.push(words.array[first + i]! + ringOctets)
    for (let i = ring; i < records.length; i++) {
      words.push(octets.length - start)
      this.#addRecord(rrset, records[stored(plan, i)]!)
    }
    words.push(octets.length - start)
  }

  #addRecord({ name, type, class: dnsClass, ttl }: RRset, rdata: Rdata): void {
    const octets = this.#octets
    octets.u16(QUESTION_POINTER)
    // The answer to ANY is a HINFO.
    if (type === TYPE.ANY) octets.fixed(TYPE.HINFO, CLASS.IN, ttl, 0)
    else octets.fixed(type, dnsClass, ttl, 0)
    const start = octets.length
    octets.rdata(rdata, name)
    octets.setU16(start - 2, octets.length - start)
  }

  #addGlue({ name, ttl }: RRset, { name: owner, address }: Glue, start: number): void {
    const octets = this.#octets
    this.#words.push(octets.length - start)
    octets.name(owner, name)
    this.#words.push(octets.length - start)
    if (isIpv6(address)) octets.fixed(TYPE.AAAA, CLASS.IN, ttl, 16)
    else octets.fixed(TYPE.A, CLASS.IN, ttl, 4)
    octets.address(address)
  }

  #plan(candidates: Rotation['candidates']): Plan {
    const plan = this.#plans.get(candidates) ?? this.#policy.compile(candidates)
    this.#plans.set(candidates, plan)
    return plan
  }
}

const stored = (plan: Plan | undefined, i: number): number => (plan ? plan.order[i]! : i)

/** An Int32Array that grows. */
class Words {
  array: Int32Array
  length = 0

  constructor(capacity: number) {
    this.array = new Int32Array(capacity)
  }

  push(word: number): void {
    if (this.length === this.array.length) {
      const grown = new Int32Array(2 * this.length)
      grown.set(this.array)
      this.array = grown
    }
    this.array[this.length++] = word
  }
}
