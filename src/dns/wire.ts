/** The wire format of DNS (RFC 1035): its numbers, and a writer of octets. */

export const HEADER_OCTETS = 12
/** A compression pointer to the name of the question, which stands right behind the header. */
export const QUESTION_POINTER = 0xc000 | HEADER_OCTETS

export const TYPE = {
  A: 1,
  NS: 2,
  CNAME: 5,
  SOA: 6,
  PTR: 12,
  HINFO: 13,
  MX: 15,
  TXT: 16,
  AAAA: 28,
  SRV: 33,
  NAPTR: 35,
  OPT: 41,
  DS: 43,
  RRSIG: 46,
  DNSKEY: 48,
  SVCB: 64,
  HTTPS: 65,
  SPF: 99,
  AXFR: 252,
  ANY: 255,
  CAA: 257,
} as const

/** RFC 1995; refused with AXFR, and too rare for a name of its own in metrics. */
export const IXFR = 251

export const CLASS = { IN: 1, CH: 3 } as const

export const RCODE = {
  NOERROR: 0,
  FORMERR: 1,
  SERVFAIL: 2,
  NXDOMAIN: 3,
  NOTIMP: 4,
  REFUSED: 5,
  NOTAUTH: 9,
  /** More than the header's four bits hold: the upper eight stand in the OPT (RFC 6891 6.1.3). */
  BADVERS: 16,
} as const

export const FLAG = {
  response: 0x8000,
  opcode: 0x7800,
  authoritative: 0x0400,
  truncated: 0x0200,
  recursionDesired: 0x0100,
  checkingDisabled: 0x0010,
} as const

/** Option code of OPT (RFC 5001). */
export const NSID = 3
/** An OPT without options. */
export const OPT_OCTETS = 11

const typeNames = new Map(Object.entries(TYPE).map(([name, code]) => [code as number, name]))
const rcodeNames = new Map(Object.entries(RCODE).map(([name, code]) => [code as number, name]))
/** For metrics. All types without a name share one, so that clients cannot create labels. */
export const typeName = (type: number): string => typeNames.get(type) ?? 'other'
export const rcodeName = (rcode: number): string => rcodeNames.get(rcode) ?? 'other'

const MAX_STRING_OCTETS = 255
const MAX_LABEL_OCTETS = 63
const DOT = 0x2e
const ZERO = 0x30
/** Type, class, TTL and the length of the data. */
const FIXED_OCTETS = 10

export interface Soa {
  readonly primary: string
  readonly admin: string
  readonly serial: number
  readonly refresh: number
  readonly retry: number
  readonly expire: number
  readonly minimum: number
}

/** The data of one record. Its type is that of its RRset. */
export interface Rdata {
  readonly address?: string
  readonly ns?: string
  readonly soa?: Soa
  readonly srv?: { readonly weight: number; readonly port: number; readonly target: string }
  /** The strings of a TXT or HINFO. */
  readonly texts?: readonly string[]
}

/** Appends to an array of octets that grows. */
export class Writer {
  octets: Uint8Array
  length = 0
  readonly #encoder = new TextEncoder()

  constructor(capacity = 512) {
    this.octets = new Uint8Array(capacity)
  }

  /** Makes room for `more` octets. */
  reserve(more: number): void {
    if (this.length + more <= this.octets.length) return
    const grown = new Uint8Array(Math.max(2 * this.octets.length, this.length + more))
    grown.set(this.octets)
    this.octets = grown
  }

  u8(value: number): void {
    this.reserve(1)
    this.octets[this.length++] = value
  }

  u16(value: number): void {
    this.reserve(2)
    this.octets[this.length++] = value >>> 8
    this.octets[this.length++] = value
  }

  u32(value: number): void {
    this.u16(value >>> 16)
    this.u16(value & 0xffff)
  }

  setU16(at: number, value: number): void {
    this.octets[at] = value >>> 8
    this.octets[at + 1] = value
  }

  /** Repeats what was written from `start` to `end`. */
  repeat(start: number, end: number): void {
    this.reserve(end - start)
    this.octets.copyWithin(this.length, start, end)
    this.length += end - start
  }

  /** A character-string (RFC 1035 3.3), cut at what its length octet can say. */
  string(text: string): void {
    this.reserve(1 + MAX_STRING_OCTETS)
    const start = this.length + 1
    this.length = start
    const count = Math.min(text.length, MAX_STRING_OCTETS)
    for (let i = 0; i < count; i++) {
      const code = text.charCodeAt(i)
      // Most texts are ASCII, which is quicker to write than to encode.
      if (code >= 0x80) {
        this.#encode(text, start)
        return
      }
      this.octets[this.length++] = code
    }
    this.octets[start - 1] = count
  }

  #encode(text: string, start: number): void {
    const room = this.octets.subarray(start, start + MAX_STRING_OCTETS)
    const { written } = this.#encoder.encodeInto(text, room)
    this.octets[start - 1] = written
    this.length = start + written
  }

  /** The fixed part of a record, behind its owner; `data` octets follow. */
  fixed(type: number, dnsClass: number, ttl: number, data: number): void {
    this.reserve(FIXED_OCTETS)
    const { octets, length } = this
    octets[length] = type >>> 8
    octets[length + 1] = type
    octets[length + 2] = dnsClass >>> 8
    octets[length + 3] = dnsClass
    octets[length + 4] = ttl >>> 24
    octets[length + 5] = ttl >>> 16
    octets[length + 6] = ttl >>> 8
    octets[length + 7] = ttl
    octets[length + 8] = data >>> 8
    octets[length + 9] = data
    this.length = length + FIXED_OCTETS
  }

  /**
   * A name in text, without a final dot. What it has in common with `question`, the name in the question of
   * the reply, becomes a pointer there (RFC 1035 4.1.4).
   */
  name(name: string, question?: string): void {
    for (let start = 0; start < name.length; ) {
      if (question !== undefined && endsAtLabel(question, name, start)) {
        this.u16(QUESTION_POINTER + question.length - (name.length - start))
        return
      }
      const dot = name.indexOf('.', start)
      const end = dot === -1 ? name.length : dot
      this.#label(name, start, end)
      start = end + 1
    }
    this.u8(0)
  }

  #label(name: string, start: number, end: number): void {
    if (end === start || end - start > MAX_LABEL_OCTETS) throw new RangeError(`not a domain name: ${name}`)
    this.reserve(1 + end - start)
    this.octets[this.length++] = end - start
    for (let i = start; i < end; i++) this.octets[this.length++] = name.charCodeAt(i)
  }

  /**
   * The data of a record. Names in it become pointers where RFC 3597 4 allows that: not the target of an SRV.
   */
  rdata({ address, ns, soa, srv, texts }: Rdata, question: string): void {
    if (address !== undefined) this.address(address)
    if (ns !== undefined) this.name(ns, question)
    if (soa) {
      this.name(soa.primary, question)
      this.name(soa.admin, question)
      for (const value of [soa.serial, soa.refresh, soa.retry, soa.expire, soa.minimum]) this.u32(value)
    }
    if (srv) {
      this.u16(0)
      this.u16(srv.weight)
      this.u16(srv.port)
      this.name(srv.target)
    }
    for (const text of texts ?? []) this.string(text)
  }

  /** 4 octets of IPv4 or 16 of IPv6. */
  address(address: string): void {
    if (isIpv6(address)) for (const group of ipv6Groups(address)) this.u16(group)
    else this.u32(ipv4Number(address))
  }
}

function ipv4Number(address: string): number {
  let number = 0
  let part = 0
  for (let i = 0; i < address.length; i++) {
    const code = address.charCodeAt(i)
    if (code === DOT) {
      number = (number << 8) | part
      part = 0
    } else part = 10 * part + code - ZERO
  }
  return (number << 8) | part
}

/** Whether `name` from `start` on is the end of `whole`, and begins there where a label does. */
function endsAtLabel(whole: string, name: string, start: number): boolean {
  const at = whole.length - (name.length - start)
  if (at < 0 || (at > 0 && whole[at - 1] !== '.')) return false
  return whole.endsWith(name.slice(start))
}

/** `address.ts` is not used here, because it imports node:net. These are known to be IP addresses. */
export const isIpv6 = (address: string): boolean => address.includes(':')

/** The eight 16-bit numbers of an IPv6 address, whose last two may be written as IPv4. */
export function ipv6Groups(address: string): number[] {
  const [head = '', tail] = address.split('::')
  const before = groups(head)
  const after = tail === undefined ? [] : groups(tail)
  const zeros = tail === undefined ? 0 : 8 - before.length - after.length
  return [...before, ...new Array<number>(zeros).fill(0), ...after]
}

function groups(text: string): number[] {
  if (text === '') return []
  return text.split(':').flatMap(group => {
    if (!group.includes('.')) return Number.parseInt(group, 16)
    const number = ipv4Number(group)
    return [number >>> 16, number & 0xffff]
  })
}
