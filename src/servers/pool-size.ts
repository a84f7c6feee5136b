/**
 * How many processes a prefork pool should have: a pure function that decides once a tick. It grows like
 * Apache's prefork MPM (perform_idle_server_maintenance) and PHP-FPM's dynamic manager, and shrinks after a
 * window like Kubernetes' HorizontalPodAutoscaler.
 */
import type { Children } from './service.ts'

type Scoreboard = Children['scoreboard']

export interface PoolLimits {
  readonly minSpare: number
  readonly maxSpare: number
  readonly maxChildren: number
}

/** What a decision has to know about those before it. */
export interface PoolHistory {
  /** How many may be created in the next tick. */
  readonly rate: number
  /** Ticks in a row with too many idle. */
  readonly surplusTicks: number
  /** Processes that died as soon as they had started, in a row. */
  readonly earlyDeaths: number
  /** Ticks until another may be created. */
  readonly holdTicks: number
  /** Processes that died and were not replaced yet. */
  readonly owed: number
}

export interface PoolDecision {
  readonly fork: number
  /** The pid of an idle process that must end. */
  readonly stop: number | undefined
  readonly history: PoolHistory
}

export const MAX_RATE = 32
export const WINDOW_TICKS = 10
const MAX_HOLD_TICKS = 32

export const newHistory: PoolHistory = { rate: 1, surplusTicks: 0, earlyDeaths: 0, holdTicks: 0, owed: 0 }

/** Called once a tick. Processes that are starting or stopping count towards `maxChildren` too. */
export function decide(scoreboard: Scoreboard, limits: PoolLimits, history: PoolHistory): PoolDecision {
  const inState = (wanted: string) => scoreboard.filter(({ state }) => state === wanted)
  const idle = inState('idle')
  const surplus = idle.length > limits.maxSpare
  // A pool with too many processes does not replace those that died.
  const owed = surplus ? 0 : history.owed
  const starting = inState('starting').length
  const missing = Math.max(limits.minSpare - idle.length - starting, owed)
  const room = limits.maxChildren - scoreboard.length
  const held = history.holdTicks > 0
  const fork = held ? 0 : Math.max(0, Math.min(history.rate, missing, room))
  const surplusTicks = surplus ? history.surplusTicks + 1 : 0
  return {
    fork,
    // The one that has served most: if there is a leak, it has leaked most.
    stop: surplusTicks > WINDOW_TICKS ? mostUsed(idle)?.pid : undefined,
    history: {
      rate: held ? history.rate : missing > 0 ? Math.min(MAX_RATE, history.rate * 2) : 1,
      surplusTicks,
      earlyDeaths: missing > 0 || starting > 0 ? history.earlyDeaths : 0,
      holdTicks: Math.max(0, history.holdTicks - 1),
      owed: Math.max(0, owed - fork),
    },
  }
}

const mostUsed = (idle: Scoreboard) =>
  idle.reduce<Scoreboard[number] | undefined>(
    (most, c) => (most && most.served >= c.served ? most : c),
    undefined,
  )

/** A process died. When processes die as soon as they have started, the pool waits 1, 2, 4 … ticks. */
export function died(history: PoolHistory, early: boolean): PoolHistory {
  const owed = history.owed + 1
  if (!early) return { ...history, owed, earlyDeaths: 0, holdTicks: 0 }
  // Several that die together count as one.
  if (history.holdTicks > 0) return { ...history, owed }
  const earlyDeaths = history.earlyDeaths + 1
  return { ...history, owed, earlyDeaths, holdTicks: Math.min(MAX_HOLD_TICKS, 2 ** (earlyDeaths - 1)) }
}
