/** Which addresses the zone publishes for its own name server: pure. */
import { endpointProblem, isIpv6 } from '../address.ts'

/** What `os.networkInterfaces()` reports about an address. */
export interface InterfaceAddress {
  readonly address: string
  readonly family: string
  readonly internal: boolean
}

/**
 * Where a client can reach a listener at `address`. A wildcard stands for the machine's own addresses of its
 * family, except loopback ones, which another machine would take for its own. Addresses that no client can
 * use, such as link-local ones, are left out.
 */
export function reachableAddresses(address: string, interfaces: readonly InterfaceAddress[]): string[] {
  const family = isIpv6(address) ? 'IPv6' : 'IPv4'
  const isWildcard = address === '0.0.0.0' || address === '::'
  const candidates = isWildcard
    ? interfaces.filter(each => each.family === family && !each.internal).map(each => each.address)
    : [address]
  return candidates.filter(candidate => endpointProblem(candidate) === undefined)
}
