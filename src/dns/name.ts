/**
 * Names on the wire (RFC 1035 3.1): compared as label octets, never as dotted text, since a label may hold a
 * dot.
 */

const MAX_LABEL_OCTETS = 63
const MAX_NAME_OCTETS = 255

/**
 * The end of the name that starts at `offset`, or -1 if there is none within the first `length` octets. A
 * compression pointer ends a name and is not followed, so loops cost nothing; where `plain`, a pointer is an
 * error.
 */
export function skipName(message: Uint8Array, length: number, offset: number, plain = false): number {
  for (let at = offset; at < length; ) {
    const label = message[at]!
    if (label === 0) return at + 1 - offset <= MAX_NAME_OCTETS ? at + 1 : -1
    if ((label & 0xc0) === 0xc0) return !plain && at + 2 <= length ? at + 2 : -1
    if (label > MAX_LABEL_OCTETS) return -1
    at += label + 1
  }
  return -1
}

/**
 * Four octets at once in lower case. Each octet's top bit shows whether it is at least "A", and whether it is
 * beyond "Z"; where only the first is true, bit 5 is set. Length octets are below "A" and stay as they are.
 */
export function foldCase(word: number): number {
  const low = word & 0x7f7f7f7f
  const capital = ((low + 0x3f3f3f3f) ^ (low + 0x25252525)) & ~word & 0x80808080
  return word | (capital >>> 2)
}

/** The number of 32-bit words that hold a name of so many octets. */
export const wordsOf = (nameOctets: number): number => (nameOctets + 3) >> 2

/**
 * Word `index` of the name in `octets[start, end)`, in lower case, with zeros behind its end. At least three
 * octets must follow the name, as type and class do in a question.
 */
export function nameWord(octets: Uint8Array, start: number, end: number, index: number): number {
  const at = start + 4 * index
  const word = octets[at]! | (octets[at + 1]! << 8) | (octets[at + 2]! << 16) | (octets[at + 3]! << 24)
  const left = end - at
  return foldCase(left >= 4 ? word : word & (0xffffffff >>> (32 - 8 * left)))
}

/** A hash of the name without regard to case. */
export function hashName(octets: Uint8Array, start: number, end: number): number {
  let hash = end - start
  const words = wordsOf(end - start)
  for (let i = 0; i < words; i++) hash = mix(hash, nameWord(octets, start, end, i))
  return hash
}

/** Takes one more word into a hash. */
export function mix(hash: number, word: number): number {
  const mixed = Math.imul(hash ^ word, 0x9e3779b1)
  return mixed ^ (mixed >>> 15)
}
