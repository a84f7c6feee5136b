/** The payloads of `load`: computed, and compared, from an operation's number and a seed. Pure. */

const SEQUENCE_OCTETS = 4
const WINDOWS = 2 ** 16

/** A payload is a window of a pool of pseudo-random octets; its first four are the operation's number. */
export class Payloads {
  readonly size: number
  /** Below four octets there is no room for a number: all payloads are then the same. */
  readonly numbered: boolean
  readonly #pool: Buffer

  constructor(size: number, seed: number) {
    this.size = size
    this.numbered = size >= SEQUENCE_OCTETS
    this.#pool = randomOctets(WINDOWS + size, seed)
  }

  /** The payload of operation `n`, an unsigned 32-bit integer. */
  make(n: number): Buffer {
    const payload = Buffer.allocUnsafe(this.size)
    this.#pool.copy(payload, 0, this.#window(n))
    if (this.numbered) payload.writeUInt32BE(n)
    return payload
  }

  /** The number in a reply; undefined when the reply is too short to have one. */
  numberOf(reply: Buffer): number | undefined {
    return reply.length >= SEQUENCE_OCTETS ? reply.readUInt32BE() : undefined
  }

  /** Whether `octets` from `start` to `end` are those of payload `n` from its octet `at` on. */
  matches(n: number, at: number, octets: Buffer, start = 0, end = octets.length): boolean {
    if (at + end - start > this.size) return false
    if (this.numbered)
      for (; at < SEQUENCE_OCTETS && start < end; at++, start++)
        if (octets[start] !== ((n >>> (24 - 8 * at)) & 0xff)) return false
    const from = this.#window(n) + at
    return octets.compare(this.#pool, from, from + end - start, start, end) === 0
  }

  /**
   * Successive numbers get windows far apart, so that the reply to another operation differs nearly
   * everywhere.
   */
  #window(n: number): number {
    return this.numbered ? Math.imul(n, 0x9e3779b1) >>> 16 : 0
  }
}

/** splitmix32: every seed will do, also 0. */
function randomOctets(length: number, seed: number): Buffer {
  const octets = Buffer.alloc(length + 4)
  for (let at = 0, state = seed; at < length; at += 4) {
    state = (state + 0x9e3779b9) | 0
    let word = Math.imul(state ^ (state >>> 16), 0x85ebca6b)
    word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35)
    octets.writeInt32LE(word ^ (word >>> 16), at)
  }
  return octets.subarray(0, length)
}
