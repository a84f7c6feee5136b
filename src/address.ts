/** IP addresses and socket addresses: parse and format. */
import { isIP } from 'node:net'
import { Expected } from './errors.ts'

/** An IP address and a port, 0 where the system shall choose one. */
export interface SocketAddress {
  readonly address: string
  readonly port: number
}

export type Transport = 'udp' | 'tcp'

/** A port that clients are told, so never 0. */
export function portNumber(text: string): number {
  const value = Number(text)
  if (/^\d{1,15}$/.test(text) && value >= 1 && value <= 65535) return value
  throw new Expected('an integer from 1 to 65535')
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

/**
 * A DNS server to ask, on port 53 unless the text has another. Node's `Resolver.setServers` drops the zone of a
 * link-local address without an error, and the queries then go nowhere.
 */
export function dnsServer(text: string): SocketAddress {
  const server = socketAddress(text, 53)
  if (!server.address.includes('%')) return server
  throw new Expected('an address without a zone: Node cannot send DNS queries to a link-local address')
}

export const formatAddress = ({ address, port }: SocketAddress): string =>
  isIpv6(address) ? `[${address}]:${port}` : `${address}:${port}`
