/**
 * Parsers of the values that people write in flags and environment variables.
 * Each takes the text and returns the value, or throws `Expected` with what it wanted.
 */
import { isIP } from 'node:net'

/** The text of a value is wrong; the message says what was expected, as in "an integer from 0 to 9". */
export class Expected extends Error {}

/** The user asked for something that cannot be done: one line for them, exit code 2. */
export class UsageError extends Error {}

/** An IP address and a port, 0 where the system shall choose one. */
export interface SocketAddress {
  readonly address: string
  readonly port: number
}

export function integer(min: number, max: number): (text: string) => number {
  return text => {
    const value = Number(text)
    if (/^\d{1,15}$/.test(text) && value >= min && value <= max) return value
    throw new Expected(`an integer from ${min} to ${max}`)
  }
}

/** A port that clients are told, so never 0. */
export function port(text: string): number {
  try {
    return integer(1, 65535)(text)
  } catch (error) {
    // Kubernetes sets NAME_PORT=tcp://… for each Service that it knows when a pod starts.
    if (!/^(tcp|udp|sctp):\/\//.test(text)) throw error
    throw new Expected(
      'an integer from 1 to 65535 (this is a Kubernetes service link: set enableServiceLinks: false in the pod)',
    )
  }
}

const unitsMs = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }

/** The longest Node timer; a longer one would fire at once. */
const MAX_DURATION_MS = 2 ** 31 - 1

/** `500ms`, `7s`, `1.5m`, `1h` or `0` → milliseconds, at most 596 hours. */
export function duration(text: string): number {
  const match = /^(\d{1,10}(?:\.\d{1,3})?)(ms|s|m|h)$/.exec(text)
  const ms = match ? Math.round(Number(match[1]) * unitsMs[match[2] as keyof typeof unitsMs]) : Number.NaN
  if (text === '0' || ms <= MAX_DURATION_MS) return ms || 0
  throw new Expected(ms > MAX_DURATION_MS ? 'at most 596h' : 'a duration such as 500ms, 7s or 1m')
}

/** A duration that is a period or a limit, so never 0. */
export function period(text: string): number {
  const ms = duration(text)
  if (ms > 0) return ms
  throw new Expected('a duration above 0 such as 500ms, 7s or 1m')
}

/** The family of what is known to be an IP address. */
export const isIpv6 = (address: string): boolean => address.includes(':')

/** IPv6 comes out as RFC 5952 writes it, in hexadecimal throughout, so that equal addresses are equal texts. */
export function ipAddress(text: string): string {
  const family = isIP(text)
  if (family === 4) return text
  if (family === 6 && !text.includes('%')) return new URL(`http://[${text}]`).hostname.slice(1, -1)
  throw new Expected('an IPv4 or IPv6 address')
}

/** `127.0.0.1:53`, `[::1]:53`; a bare address where a default port is given. */
export function socketAddress(text: string, defaultPort?: number): SocketAddress {
  const wanted = defaultPort === undefined ? 'ADDRESS:PORT' : 'ADDRESS[:PORT]'
  if (defaultPort !== undefined && isIP(text)) return { address: text, port: defaultPort }
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(text)
  const address = match?.[1] ?? match?.[2] ?? ''
  const number = match?.[3] === undefined ? defaultPort : Number(match[3])
  const family = isIP(address)
  const bracketed = match?.[1] !== undefined
  // Where there is a default port this is a server to ask, and port 0 is none.
  const least = defaultPort === undefined ? 0 : 1
  if (
    family !== 0 &&
    (family === 6) === bracketed &&
    number !== undefined &&
    number >= least &&
    number <= 65535
  )
    return { address: address.includes('%') ? address : ipAddress(address), port: number }
  throw new Expected(`${wanted} with an IP address, such as 127.0.0.1:5300 or [::1]:5300`)
}

/** A name as people write it: lower-cased, without the final dot. Limits of RFC 1035 2.3.4. */
export function domainName(text: string): string {
  const name = text.endsWith('.') ? text.slice(0, -1) : text
  const labels = name.split('.')
  // On the wire there is an octet before the first label and one after the last.
  if (labels.every(label => /^[a-z0-9_-]{1,63}$/i.test(label)) && name.length + 2 <= 255)
    return name.toLowerCase()
  throw new Expected(
    'a domain name of letters, digits, "-" and "_", labels up to 63, in all up to 255 octets',
  )
}

export function oneOf<const T extends string>(...values: readonly T[]): (text: string) => T {
  return text => {
    if ((values as readonly string[]).includes(text)) return text as T
    throw new Expected(`one of ${values.join(', ')}`)
  }
}

export const formatAddress = ({ address, port }: SocketAddress): string =>
  isIpv6(address) ? `[${address}]:${port}` : `${address}:${port}`
