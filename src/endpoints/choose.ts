/** Which endpoints stand in the answer: pure. */
import type { Endpoint } from './endpoint.ts'
import type { Health } from './health.ts'

export interface Member {
  readonly endpoint: Endpoint
  readonly health: Health
}

/**
 * Which endpoints stand in the answer. First those that are well; else, as kube-proxy does, those that the
 * platform is ending but that still serve; else, unless closed, all that were looked at: a flaky check must
 * not become an outage (gdnsd, Route 53). Draining ones come last of all.
 */
export function choose(
  members: readonly Member[],
  fail: 'open' | 'closed',
): { readonly failedOpen: boolean; readonly answered: (member: Member) => boolean } {
  const up = ({ health }: Member) => health.state === 'up'
  const draining = ({ health }: Member) => health.state === 'draining'
  const checked = ({ health }: Member) => health.state !== 'checking'
  const tiers: ((member: Member) => boolean)[] = [
    m => up(m) && m.endpoint.ready && !m.endpoint.terminating,
    // One that drains says itself that it serves; the platform's `serving` follows `/readyz`, and is false by then.
    m => m.endpoint.terminating && (draining(m) || (up(m) && m.endpoint.serving)),
  ]
  if (fail === 'open') {
    const left = (m: Member) => checked(m) && !draining(m)
    tiers.push(m => left(m) && !m.endpoint.terminating, left, checked)
  }
  const tier = tiers.findIndex(fits => members.some(fits))
  return { failedOpen: tier >= 2, answered: tiers[tier] ?? (() => false) }
}
