/** A DNS query as far as an authoritative server must read it: pure, over the message's own octets. */
import { skipName } from './name.ts'
import { HEADER_OCTETS, NSID, TYPE } from './wire.ts'

/** What was read of one query. One is used for all, so that a query costs no allocation. */
export class Query {
  id = 0
  /** Octets 2 and 3 of the header. */
  flags = 0
  opcode = 0
  questionCount = 0
  /**
   * The question's name stands in the message from octet 12 to here; 0 where there is not one readable
   * question.
   */
  nameEnd = 0
  type = 0
  class = 0
  /** The query has an OPT pseudo-record (RFC 6891). */
  edns = false
  udpOctets = 0
  version = 0
  dnssecOk = false
  /** The client wants to know which server answers (RFC 5001). */
  nsid = false
  /** Something in the message is not as RFC 1035 or RFC 6891 wants it. */
  malformed = false
}

const u16 = (message: Uint8Array, at: number): number => (message[at]! << 8) | message[at + 1]!

/** False where no reply is due: there is not even a header, or the message is itself a response. */
export function parseQuery(message: Uint8Array, length: number, query: Query): boolean {
  if (length < HEADER_OCTETS) return false
  query.id = u16(message, 0)
  query.flags = u16(message, 2)
  query.opcode = (query.flags >> 11) & 0xf
  query.questionCount = u16(message, 4)
  query.nameEnd = 0
  query.type = 0
  query.class = 0
  query.edns = false
  query.udpOctets = 0
  query.version = 0
  query.dnssecOk = false
  query.nsid = false
  query.malformed = false
  if ((query.flags & 0x8000) !== 0) return false
  let offset = HEADER_OCTETS
  for (let i = 0; i < query.questionCount; i++) {
    const end = skipName(message, length, offset, true)
    if (end === -1 || end + 4 > length) {
      query.malformed = true
      return true
    }
    if (query.questionCount === 1) {
      query.nameEnd = end
      query.type = u16(message, end)
      query.class = u16(message, end + 2)
    }
    offset = end + 4
  }
  query.malformed = !parseRecords(message, length, offset, query)
  return true
}

/** What follows the questions: of interest is only the one OPT in the additional section. */
function parseRecords(message: Uint8Array, length: number, start: number, query: Query): boolean {
  const before = u16(message, 6) + u16(message, 8)
  const count = before + u16(message, 10)
  let offset = start
  for (let i = 0; i < count; i++) {
    const fixed = skipName(message, length, offset)
    if (fixed === -1 || fixed + 10 > length) return false
    const end = fixed + 10 + u16(message, fixed + 8)
    if (end > length) return false
    if (u16(message, fixed) === TYPE.OPT) {
      // There may be one, of the root, in the additional section.
      if (query.edns) return false
      query.edns = true
      query.udpOctets = u16(message, fixed + 2)
      query.version = message[fixed + 5]!
      query.dnssecOk = (message[fixed + 6]! & 0x80) !== 0
      const sound = parseOptions(message, fixed + 10, end, query)
      if (!sound || i < before || fixed !== offset + 1) return false
    }
    offset = end
  }
  return true
}

/** The options of an OPT (RFC 6891 6.1.2): unknown ones are ignored, but they must fit. */
function parseOptions(message: Uint8Array, start: number, end: number, query: Query): boolean {
  let offset = start
  while (offset < end) {
    if (offset + 4 > end) return false
    if (u16(message, offset) === NSID) query.nsid = true
    offset += 4 + u16(message, offset + 2)
  }
  return offset === end
}
