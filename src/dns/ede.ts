/** Extended DNS errors (RFC 8914): the reason for a reply, as an option of its OPT, encoded once. */

const OPTION = 15
const encoder = new TextEncoder()

function encode(infoCode: number, text = ''): Uint8Array {
  const extra = encoder.encode(text)
  return Uint8Array.of(0, OPTION, 0, 2 + extra.length, 0, infoCode, ...extra)
}

export const NO_EDE = new Uint8Array(0)
export const EDE = {
  notReady: encode(14),
  notAuthoritative: encode(20),
  notSupported: encode(21),
  failedOpen: encode(0, 'no endpoint is healthy, all are answered'),
  sourceFailed: encode(0, 'source failed, last known endpoints'),
} as const
