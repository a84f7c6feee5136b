/** What a source tells of the replicas of a service. */
import { ipAddress, isIpv6 } from '../address.ts'

/** What a source knows of a replica; the words are those of a Kubernetes EndpointSlice. */
export interface Endpoint {
  readonly address: string
  /** Its share under the `weighted` policy, 1 to 100. */
  readonly weight: number
  /** The platform would send it new clients. */
  readonly ready: boolean
  /** It can still serve, if need be. */
  readonly serving: boolean
  /** It is on its way out. */
  readonly terminating: boolean
}

/** Takes what a source finds: the whole set each time, or the reason why it could not look. */
export interface Sink {
  publish(endpoints: readonly Endpoint[]): void
  fail(error: Error): void
}

/** Resolves when it has no more to tell, at the latest when `signal` aborts. A rejected one may be started again. */
export type Source = (sink: Sink, signal: AbortSignal) => Promise<void>

export const endpoint = (address: string, weight = 1): Endpoint => ({
  address: ipAddress(address),
  weight,
  ready: true,
  serving: true,
  terminating: false,
})

const { compare } = new Intl.Collator('en', { numeric: true })

/** An order that does not hang on the order in which they were found: IPv4 before IPv6, then by number. */
export const byAddress = (a: Endpoint, b: Endpoint): number =>
  Number(isIpv6(a.address)) - Number(isIpv6(b.address)) || compare(a.address, b.address)
