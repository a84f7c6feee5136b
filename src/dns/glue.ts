/** Which addresses the zone tells for its own name server: pure. */
import { isIpv6 } from './wire.ts'

/** What `os.networkInterfaces()` tells of an address. */
export interface InterfaceAddress {
  readonly address: string
  readonly family: string
  readonly internal: boolean
}

/**
 * Where a client can reach a listener at `address`. A wildcard stands for the machine's own addresses of its
 * family, but not for loopback and link-local ones: to another machine they are another's.
 */
export function reachableAddresses(address: string, interfaces: readonly InterfaceAddress[]): string[] {
  if (address !== '0.0.0.0' && address !== '::') return [address]
  const family = isIpv6(address) ? 'IPv6' : 'IPv4'
  return interfaces
    .filter(each => each.family === family && !each.internal && !isLinkLocal(each.address))
    .map(each => each.address)
}

/** fe80::/10 (RFC 4291 2.5.6). */
const isLinkLocal = (address: string): boolean => /^fe[89ab][0-9a-f]:/i.test(address)
