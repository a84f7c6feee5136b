/** What a source knows about the replicas of a service: pure. */
import { endpointProblem, ipAddress, isIpv6 } from '../address.ts'
import type { Clock, Random } from '../clock.ts'

/** What a source knows about a replica; the words are those of a Kubernetes EndpointSlice. */
export interface Endpoint {
  readonly address: string
  /** Its share under the `weighted` policy, 1 to 100. */
  readonly weight: number
  /** The platform would send new clients to it. */
  readonly ready: boolean
  /** It can still serve clients, even if the platform would rather send them elsewhere. */
  readonly serving: boolean
  /** The platform is ending it. */
  readonly terminating: boolean
}

/** What an operator should know about a source that goes on working. */
export type SourceNote =
  /** One address family began to fail, or (without `error`) recovered. */
  | { readonly type: 'source-family'; readonly family: 'A' | 'AAAA'; readonly error?: string }
  /** The source itself sees to it that this comes seldom. */
  | { readonly type: 'source-warning'; readonly message: string; readonly details: object }

/** Receives what a source finds: the whole set each time, or the reason why the source could not look. */
export interface Sink {
  publish(endpoints: readonly Endpoint[]): void
  fail(error: Error): void
  note(note: SourceNote): void
}

/**
 * Follows the endpoints of a service. Resolves when it has nothing more to publish, at the latest when
 * `signal` aborts. A source that rejected may be started again.
 */
export type Source = (sink: Sink, signal: AbortSignal, clock: Clock, random: Random) => Promise<void>

export const endpoint = (address: string, weight = 1): Endpoint => ({
  address: ipAddress(address),
  weight,
  ready: true,
  serving: true,
  terminating: false,
})

/** More are dropped without a word. */
const MAX_DROPPED_WARNINGS = 100

/** Returns whether an address can be an endpoint. Each of the others is reported once. */
export function endpointFilter(note: Sink['note']): (address: string) => boolean {
  const reported = new Set<string>()
  return address => {
    const problem = endpointProblem(address)
    if (problem === undefined) return true
    if (!reported.has(address) && reported.size < MAX_DROPPED_WARNINGS) {
      reported.add(address)
      const message = `the source has "${address}", which cannot be an endpoint: it is ${problem}`
      note({ type: 'source-warning', message, details: { address } })
    }
    return false
  }
}

const { compare } = new Intl.Collator('en', { numeric: true })

/** An order that does not depend on how the endpoints were found: IPv4 before IPv6, then by number. */
export const byAddress = (a: Endpoint, b: Endpoint): number =>
  Number(isIpv6(a.address)) - Number(isIpv6(b.address)) || compare(a.address, b.address)
