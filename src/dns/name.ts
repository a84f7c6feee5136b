/** Domain names: pure. Compared as label octets (RFC 1035 3.1), never as dotted strings: a label may hold a dot. */

const MAX_LABEL_OCTETS = 63
const MAX_NAME_OCTETS = 255

/**
 * What names are looked up by: the wire form with ASCII letters in lower case, an octet a character.
 * Length octets are at most 63, so none is taken for a letter ("A" is 65).
 */
export type NameKey = string

/** `octets[start, end)` is a whole uncompressed name in wire form. */
export function keyOfWire(octets: Buffer, start: number, end: number): NameKey {
  const lower = Buffer.from(octets.subarray(start, end))
  for (let i = 0; i < lower.length; i++) if (lower[i]! >= 0x41 && lower[i]! <= 0x5a) lower[i]! += 0x20
  return lower.toString('latin1')
}

/** The key of a name of ours in dotted text, which holds no odd characters. */
export const keyOf = (name: string): NameKey =>
  `${name
    .toLowerCase()
    .split('.')
    .map(label => String.fromCharCode(label.length) + label)
    .join('')}\0`

/** Octets of a name of ours on the wire, uncompressed. */
export const wireLength = (name: string): number => name.length + 2

/**
 * The end of the name that starts at `offset`, or -1 if there is none within the message. A compression
 * pointer ends a name and is not followed, so loops cost nothing; where `plain`, a pointer is an error.
 */
export function skipName(message: Buffer, offset: number, plain = false): number {
  for (let at = offset; at < message.length; ) {
    const length = message[at]
    if (length === 0) return at + 1 - offset <= MAX_NAME_OCTETS ? at + 1 : -1
    if ((length! & 0xc0) === 0xc0) return !plain && at + 2 <= message.length ? at + 2 : -1
    if (length! > MAX_LABEL_OCTETS) return -1
    at += length! + 1
  }
  return -1
}
