/** What is asked of an endpoint to know its health, and when. */
import { setTimeout as sleep } from 'node:timers/promises'
import { type ProbeResult, probe } from '../client/probe.ts'

const MAX_JITTER_MS = 5000

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
}

/**
 * Checks one endpoint until `signal` aborts. The first start is put off by a random part of the interval (of its
 * first seconds, if it is long), so that a thousand endpoints added together are not asked together.
 */
export async function checkForever(
  address: string,
  options: CheckOptions,
  report: (result: ProbeResult, seconds: number) => void,
  signal: AbortSignal,
): Promise<void> {
  const targets = options.checks.filter(check => check.kind !== 'none').map(check => ({ ...check, address }))
  let due = performance.now() + Math.random() * Math.min(options.intervalMs, MAX_JITTER_MS)
  try {
    while (!signal.aborted) {
      await sleep(Math.max(0, due - performance.now()), undefined, { signal })
      const started = performance.now()
      const results = await Promise.all(targets.map(target => probe(target, options.timeoutMs)))
      if (!signal.aborted) report(combine(results), (performance.now() - started) / 1000)
      due = Math.max(due + options.intervalMs, performance.now())
    }
  } catch (error) {
    if (!signal.aborted) throw error
  }
}

/** The draining one speaks loudest, then the first failure; passes are summed up. */
function combine(results: readonly ProbeResult[]): ProbeResult {
  const worst = results.find(result => !result.ok && result.draining) ?? results.find(result => !result.ok)
  if (worst) return worst
  const passes = results.filter(result => result.ok)
  const detail = passes.map(pass => pass.detail).join(', ')
  const activeConnections = passes.find(pass => pass.activeConnections !== undefined)?.activeConnections
  return activeConnections === undefined ? { ok: true, detail } : { ok: true, detail, activeConnections }
}
