/** Which endpoints are answered: pure. */
import type { Endpoint } from './endpoint.ts'
import type { Health } from './health.ts'

/** An endpoint with its health. */
export interface Member {
  readonly endpoint: Endpoint
  readonly health: Health
  /** The source no longer lists it, and the time of its handover is not over. */
  readonly leaving: boolean
}

export interface Choice {
  /** No endpoint is healthy, and unhealthy ones are answered nevertheless. */
  readonly failedOpen: boolean
  readonly isAnswered: (member: Member) => boolean
}

/** The first tier that is answered only by a service that fails open. */
const FAIL_OPEN = 3
/**
 * No tier: an endpoint is not answered before its first result, so that a new replica serves after its first
 * pass. One that this machine failed to check has been asked: it belongs to those that fail open.
 */
const NEVER = 6

/** The members of the first tier that is not empty are answered. */
export function choose(members: readonly Member[], fail: 'open' | 'closed'): Choice {
  const limit = fail === 'open' ? NEVER : FAIL_OPEN
  const first = members.reduce((least, member) => Math.min(least, tier(member)), limit)
  return {
    failedOpen: first >= FAIL_OPEN && first < limit,
    isAnswered: m => first < limit && tier(m) === first,
  }
}

function tier({ endpoint: { ready, serving, terminating }, health, leaving }: Member): number {
  const { state, asked } = health
  if (state === 'checking' && !asked) return NEVER
  // While the endpoints that replaced it are not healthy yet. It never fails open: it is probably gone.
  if (leaving) return state === 'up' ? 2 : NEVER
  if (state === 'up' && ready && !terminating) return 0
  // As kube-proxy does. A draining replica reports itself that it still serves; the platform's `serving`
  // follows `/readyz`, and is false by then.
  if (terminating && (state === 'draining' || (state === 'up' && serving))) return 1
  // All that have been checked, the draining ones last: a flaky check must not become an outage (gdnsd, Route
  // 53).
  if (state === 'draining') return 5
  return terminating ? 4 : FAIL_OPEN
}
