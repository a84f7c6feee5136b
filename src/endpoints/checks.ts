/** Checks an endpoint again and again, to know its health. */
import type { ProbeResult, ProbeTarget } from '../client/probe.ts'
import { type Clock, pause, type Random } from '../clock.ts'

/** So many first checks may start at the same time. */
const MAX_TOGETHER = 50
const MAX_SPREAD_MS = 1000

export type Check =
  | { readonly kind: 'udp' | 'tcp'; readonly port: number }
  | { readonly kind: 'http'; readonly port: number; readonly path: string }
  | { readonly kind: 'none' }

export interface CheckOptions {
  /** All must pass. */
  readonly checks: readonly Check[]
  /** From start to start. */
  readonly intervalMs: number
  readonly timeoutMs: number
  /** Passes in a row that bring an endpoint back. */
  readonly rise: number
  /** Failures in a row that take it out. */
  readonly fall: number
  readonly clock: Clock
  readonly random: Random
  /** Never rejects: whatever goes wrong with a server is a result. */
  readonly probe: (target: ProbeTarget, timeoutMs: number, clock: Clock) => Promise<ProbeResult>
}

/**
 * When the first check of one of `added` endpoints starts, which the source added together: at once, except
 * that many are spread, so that a thousand are not checked at the same time.
 */
export const firstDelayMs = (added: number, intervalMs: number, random: Random): number =>
  added > MAX_TOGETHER ? random() * Math.min(intervalMs, MAX_SPREAD_MS) : 0

/** Checks one endpoint until `signal` aborts, for the first time after `delayMs`. */
export async function checkForever(
  address: string,
  options: Omit<CheckOptions, 'rise' | 'fall' | 'random'>,
  delayMs: number,
  report: (result: ProbeResult, seconds: number) => void,
  signal: AbortSignal,
): Promise<void> {
  const { clock, probe, intervalMs, timeoutMs } = options
  const targets = options.checks.filter(check => check.kind !== 'none').map(check => ({ ...check, address }))
  let dueMs = clock.now() + delayMs
  for (;;) {
    await pause(clock, Math.max(0, dueMs - clock.now()), signal)
    if (signal.aborted) return
    const startedMs = clock.now()
    const results = await Promise.all(targets.map(target => probe(target, timeoutMs, clock)))
    if (signal.aborted) return
    report(combine(results), (clock.now() - startedMs) / 1000)
    dueMs = Math.max(dueMs + intervalMs, clock.now())
  }
}

/**
 * Draining beats failure, failure beats an error of our own, that beats success. The details of passes are
 * joined.
 */
function combine(results: readonly ProbeResult[]): ProbeResult {
  const worst =
    results.find(result => !result.ok && result.draining) ??
    results.find(result => !result.ok && !result.own) ??
    results.find(result => !result.ok)
  if (worst) return worst
  const passes = results.filter(result => result.ok)
  const detail = passes.map(pass => pass.detail).join(', ')
  const activeConnections = passes.find(pass => pass.activeConnections !== undefined)?.activeConnections
  return activeConnections === undefined ? { ok: true, detail } : { ok: true, detail, activeConnections }
}
