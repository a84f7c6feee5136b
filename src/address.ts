/** IP addresses and socket addresses: parse, format and classify. */
import { isIP } from 'node:net'
import { Expected } from './errors.ts'

/** An IP address and a port; port 0 means that the system chooses one. */
export interface SocketAddress {
  readonly address: string
  readonly port: number
}

export type Transport = 'udp' | 'tcp'

/** A port that clients use, so it is never 0. */
export function portNumber(text: string): number {
  const value = Number(text)
  if (/^\d{1,15}$/.test(text) && value >= 1 && value <= 65535) return value
  throw new Expected('an integer from 1 to 65535')
}

/** The family of a text that is known to be an IP address. */
export const isIpv6 = (address: string): boolean => address.includes(':')

/** IPv6 comes out as RFC 5952 writes it, in hexadecimal throughout, so that equal addresses are equal texts. */
export function ipAddress(text: string): string {
  const family = isIP(text)
  if (family === 4) return text
  if (family === 6 && !text.includes('%')) return new URL(`http://[${text}]`).hostname.slice(1, -1)
  throw new Expected('an IPv4 or IPv6 address')
}

/**
 * Why clients cannot reach one server at this address, such as "a multicast address"; undefined where they can.
 * An IPv4-mapped address is judged as the IPv4 address in it.
 */
export function endpointProblem(text: string): string | undefined {
  if (!isIP(text)) return 'not an IP address'
  const [bare = '', zone] = text.split('%')
  const address = ipAddress(bare)
  const octets = ipv4Octets(address)
  if (octets) {
    const [first = 0] = octets
    if (first === 0) return 'an unspecified address'
    if (first >= 224 && first < 240) return 'a multicast address'
    return octets.every(octet => octet === 255) ? 'the broadcast address' : undefined
  }
  if (address === '::') return 'the unspecified address'
  if (address.startsWith('ff') && isLongGroup(address)) return 'a multicast address'
  // An address record has no place for the interface that such an address needs (RFC 4007 11).
  if (/^fe[89ab][0-9a-f]:/.test(address)) return 'a link-local address, which needs an interface'
  return zone === undefined ? undefined : 'an address with an interface'
}

/** Of an IPv4 address, or of an IPv4-mapped one as `ipAddress` writes it. */
function ipv4Octets(address: string): readonly number[] | undefined {
  if (!isIpv6(address)) return address.split('.').map(Number)
  const [, high, low] = /^::ffff:([0-9a-f]+):([0-9a-f]+)$/.exec(address) ?? []
  if (high === undefined || low === undefined) return undefined
  return [high, low].flatMap(group => [Number.parseInt(group, 16) >> 8, Number.parseInt(group, 16) & 255])
}

/** The first group has all four digits: `ff::1` is 00ff:: and not multicast. */
const isLongGroup = (address: string): boolean => address.indexOf(':') === 4

/** An address that the zone publishes for clients. */
export function endpointAddress(text: string): string {
  const address = ipAddress(text)
  const problem = endpointProblem(address)
  if (problem === undefined) return address
  throw new Expected(`an address at which clients can reach a server, not ${problem}`)
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
  // With a default port, this is the address of a server to ask, which cannot have port 0.
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

export const formatAddress = ({ address, port }: SocketAddress): string =>
  isIpv6(address) ? `[${address}]:${port}` : `${address}:${port}`
