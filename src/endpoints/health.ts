/** How the results of checks become the state of an endpoint: pure. */
import type { ProbeResult } from '../client/probe.ts'

/** `checking`: added, and without a result yet. */
export type State = 'checking' | 'up' | 'down' | 'draining'

export interface Health {
  readonly state: State
  /** Results in a row; one of the two is 0. */
  readonly passes: number
  readonly failures: number
  /** It has not passed since the source listed it: its next pass suffices, whatever `rise` is. */
  readonly fresh: boolean
  /** It has been checked, or this machine failed to check it. */
  readonly asked: boolean
  /** The text of the last result. */
  readonly detail: string
  /** The open connections that its `/readyz` reported; undefined where no check asks for them. */
  readonly activeConnections: number | undefined
}

export const UNCHECKED: Health = {
  state: 'checking',
  passes: 0,
  failures: 0,
  fresh: true,
  asked: false,
  detail: 'not checked yet',
  activeConnections: undefined,
}

export const ALWAYS_UP: Health = { ...UNCHECKED, state: 'up', fresh: false, asked: true, detail: 'no check' }

/** The health of a departed endpoint that the source lists again. */
export const relistedHealth = (health: Health): Health => ({ ...health, fresh: health.state !== 'up' })

/**
 * The health after one more result. The first result of an endpoint decides at once, and so does its first
 * pass: a source may list a replica before it listens. "Draining" needs no second result, since it is the
 * replica's own word. An error of our own machine is no result.
 */
export function nextHealth(health: Health, result: ProbeResult, rise: number, fall: number): Health {
  if (!result.ok && result.own) return health.asked ? health : { ...health, asked: true }
  const { detail } = result
  const asked = true
  if (!result.ok && result.draining) return { ...UNCHECKED, state: 'draining', fresh: false, asked, detail }
  const passes = result.ok ? health.passes + 1 : 0
  const failures = result.ok ? 0 : health.failures + 1
  let { state } = health
  if (passes >= (health.fresh ? 1 : rise)) state = 'up'
  if (failures >= (state === 'checking' ? 1 : fall)) state = 'down'
  const activeConnections = result.ok ? result.activeConnections : undefined
  return { state, passes, failures, fresh: health.fresh && !result.ok, asked, detail, activeConnections }
}
