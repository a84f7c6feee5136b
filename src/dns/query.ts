/** A DNS query as far as an authoritative server must read it: pure, over the message's own octets. */
import { keyOfWire, type NameKey, skipName } from './name.ts'

export const HEADER_OCTETS = 12
/** Type of the OPT pseudo-record (RFC 6891). */
export const OPT = 41
/** Option code (RFC 5001). */
export const NSID = 3

export interface Question {
  readonly key: NameKey
  readonly type: number
  readonly class: number
  /** The question stands in the message from octet 12 to here, as the client spelled it. */
  readonly end: number
}

/** The OPT pseudo-record of a query (RFC 6891). */
interface Edns {
  readonly udpOctets: number
  readonly version: number
  readonly dnssecOk: boolean
  /** The client wants to know which server answers (RFC 5001). */
  readonly nsid: boolean
}

export interface Query {
  readonly id: number
  /** Octets 2 and 3 of the header. */
  readonly flags: number
  readonly isResponse: boolean
  readonly opcode: number
  readonly questionCount: number
  /** Undefined where the count is not 1 or it cannot be parsed. */
  readonly question: Question | undefined
  readonly edns: Edns | undefined
  /** Something in the message is not as RFC 1035 or RFC 6891 wants it. */
  readonly malformed: boolean
}

/** Undefined where there is not even a header. */
export function parseQuery(message: Buffer): Query | undefined {
  if (message.length < HEADER_OCTETS) return undefined
  const flags = message.readUInt16BE(2)
  const questionCount = message.readUInt16BE(4)
  const query = {
    id: message.readUInt16BE(0),
    flags,
    isResponse: (flags & 0x8000) !== 0,
    opcode: (flags >> 11) & 0xf,
    questionCount,
  }
  let question: Question | undefined
  let offset = HEADER_OCTETS
  for (let i = 0; i < questionCount; i++) {
    const end = skipName(message, offset, true)
    if (end === -1 || end + 4 > message.length)
      return { ...query, question: undefined, edns: undefined, malformed: true }
    if (questionCount === 1)
      question = {
        key: keyOfWire(message, offset, end),
        type: message.readUInt16BE(end),
        class: message.readUInt16BE(end + 2),
        end: end + 4,
      }
    offset = end + 4
  }
  return { ...query, question, ...parseRecords(message, offset) }
}

/** What follows the questions: of interest is only the one OPT in the additional section. */
function parseRecords(message: Buffer, start: number): Pick<Query, 'edns' | 'malformed'> {
  const before = message.readUInt16BE(6) + message.readUInt16BE(8)
  const count = before + message.readUInt16BE(10)
  let edns: Edns | undefined
  let offset = start
  for (let i = 0; i < count; i++) {
    const fixed = skipName(message, offset)
    if (fixed === -1 || fixed + 10 > message.length) return { edns, malformed: true }
    const end = fixed + 10 + message.readUInt16BE(fixed + 8)
    if (end > message.length) return { edns, malformed: true }
    if (message.readUInt16BE(fixed) === OPT) {
      const misplaced = i < before || fixed !== offset + 1 || edns !== undefined
      const options = parseOptions(message, fixed + 10, end)
      edns ??= {
        udpOctets: message.readUInt16BE(fixed + 2),
        version: message[fixed + 5]!,
        dnssecOk: (message[fixed + 6]! & 0x80) !== 0,
        nsid: options.nsid,
      }
      if (misplaced || options.malformed) return { edns, malformed: true }
    }
    offset = end
  }
  return { edns, malformed: false }
}

/** The options of an OPT (RFC 6891 6.1.2): unknown ones are ignored, but they must fit. */
function parseOptions(message: Buffer, start: number, end: number): { nsid: boolean; malformed: boolean } {
  let nsid = false
  let offset = start
  while (offset < end) {
    if (offset + 4 > end) return { nsid, malformed: true }
    if (message.readUInt16BE(offset) === NSID) nsid = true
    offset += 4 + message.readUInt16BE(offset + 2)
  }
  return { nsid, malformed: offset !== end }
}
