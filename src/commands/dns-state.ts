/** What the DNS server tells of itself on its admin port: `/state`, and the sampled half of `/metrics`. */
import type { Authority } from '../dns/authority.ts'
import { hostName } from '../dns/zone.ts'
import type { Sample } from '../ops/metrics.ts'

interface StateOptions {
  readonly zone: string
  readonly policy: string
  readonly ttl: number
  readonly services: readonly { readonly name: string; readonly text: string }[]
}

/** `/state`: the Snapshots, and how often each endpoint stood first. */
export function state(authority: Authority, options: StateOptions, sourceUp: ReadonlyMap<string, boolean>) {
  const firsts = authority.firsts()
  return {
    zone: options.zone,
    serial: authority.serial,
    policy: options.policy,
    ttlSeconds: options.ttl,
    services: authority.snapshots.map(({ service, ready, failedOpen, endpoints }) => ({
      service,
      source: options.services.find(({ name }) => name === service)?.text,
      sourceUp: sourceUp.get(service),
      ready,
      failedOpen,
      endpoints: endpoints.map(endpoint => ({
        ...endpoint,
        hostName: hostName(endpoint.address, service),
        first: firstCount(firsts, service, endpoint.address),
      })),
    })),
  }
}

/** Over A and AAAA of the service. */
export const firstCount = (
  firsts: ReturnType<Authority['firsts']>,
  service: string,
  address: string,
): number =>
  firsts
    .filter(first => first.name === service && first.address === address)
    .reduce((sum, { count }) => sum + count, 0)

const states = ['checking', 'up', 'down', 'draining'] as const

/** What `/metrics` reads when it is scraped. */
export function samples(authority: Authority, sourceUp: ReadonlyMap<string, boolean>): Sample[] {
  const list: Sample[] = [['roundelay_dns_zone_serial', {}, authority.serial]]
  for (const { transport: proto, types, rcodes, truncated, dropped } of authority.tallies()) {
    for (const [type, count] of types) list.push(['roundelay_dns_requests_total', { proto, type }, count])
    for (const [rcode, count] of rcodes) list.push(['roundelay_dns_responses_total', { proto, rcode }, count])
    if (truncated > 0) list.push(['roundelay_dns_responses_truncated_total', { proto }, truncated])
    if (dropped > 0) list.push(['roundelay_dns_dropped_total', { proto }, dropped])
  }
  for (const { name, type, address, count } of authority.firsts())
    list.push(['roundelay_dns_first_total', { name, type, address }, count])
  for (const { service, ready, failedOpen, endpoints } of authority.snapshots) {
    list.push(['roundelay_service_ready', { service }, Number(ready)])
    list.push(['roundelay_service_failed_open', { service }, Number(failedOpen)])
    list.push(['roundelay_source_up', { service }, Number(sourceUp.get(service) ?? true)])
    for (const state of states) {
      const count = endpoints.filter(endpoint => endpoint.state === state).length
      list.push(['roundelay_service_endpoints', { service, state }, count])
    }
    for (const { address, answered } of endpoints)
      list.push(['roundelay_endpoint_answered', { service, address }, Number(answered)])
  }
  return list
}
