/** What the admin server of `dns` shows: `/state`, and the part of `/metrics` that is sampled. */
import type { Authority } from '../dns/authority.ts'
import { hostName } from '../dns/zone.ts'
import type { FarmState, Tallies } from '../ops/events.ts'
import type { Sample } from '../ops/metrics.ts'

interface StateOptions {
  readonly zone: string
  readonly policy: string
  readonly ttl: number
  readonly services: readonly { readonly name: string; readonly text: string }[]
}

/** `/state`: the Snapshots, and how often each endpoint was the first of an answer. */
export function state(authority: Authority, options: StateOptions, { failingSources }: FarmState) {
  const firsts = authority.firsts()
  return {
    zone: options.zone,
    serial: authority.serial,
    changes: authority.changes,
    policy: options.policy,
    ttlSeconds: options.ttl,
    services: authority.snapshots.map(({ service, ready, failedOpen, endpoints }) => ({
      service,
      source: options.services.find(({ name }) => name === service)?.text,
      sourceUp: !failingSources.has(service),
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

/** The sum over A and AAAA of the service. */
export const firstCount = (firsts: Tallies['firsts'], service: string, address: string): number =>
  firsts
    .filter(first => first.name === service && first.address === address)
    .reduce((sum, { count }) => sum + count, 0)

const states = ['checking', 'up', 'down', 'draining', 'leaving'] as const

/** The values that `/metrics` reads when Prometheus scrapes. */
export function samples(
  authority: Authority,
  { failingSources, sourceFamilies }: Pick<FarmState, 'failingSources' | 'sourceFamilies'>,
): Sample[] {
  const list: Sample[] = [['roundelay_dns_zone_serial', {}, authority.serial]]
  for (const { transport: proto, types, rcodes, truncated, dropped } of authority.tallies()) {
    for (const [type, count] of types) list.push(['roundelay_dns_requests_total', { proto, type }, count])
    for (const [rcode, count] of rcodes) list.push(['roundelay_dns_responses_total', { proto, rcode }, count])
    if (truncated > 0) list.push(['roundelay_dns_responses_truncated_total', { proto }, truncated])
    if (dropped > 0) list.push(['roundelay_dns_dropped_total', { proto }, dropped])
  }
  for (const { name, type, address, count } of authority.firsts())
    list.push(['roundelay_dns_first_total', { name, type, address }, count])
  for (const { service, family, error } of sourceFamilies.values()) {
    const isUp = error === undefined && !failingSources.has(service)
    list.push(['roundelay_source_family_up', { service, family }, Number(isUp)])
  }
  for (const { service, ready, failedOpen, endpoints } of authority.snapshots) {
    list.push(['roundelay_service_ready', { service }, Number(ready)])
    list.push(['roundelay_service_failed_open', { service }, Number(failedOpen)])
    list.push(['roundelay_source_up', { service }, Number(!failingSources.has(service))])
    for (const state of states) {
      const count = endpoints.filter(each => (each.leaving ? 'leaving' : each.state) === state).length
      list.push(['roundelay_service_endpoints', { service, state }, count])
    }
    for (const { address, answered } of endpoints)
      list.push(['roundelay_endpoint_answered', { service, address }, Number(answered)])
  }
  return list
}
