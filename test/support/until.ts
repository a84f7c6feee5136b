/** One way to wait for what has no event. */
import { setTimeout as sleep } from 'node:timers/promises'

const POLL_MS = 5

/**
 * Polls until `holds` is true, and resolves with the milliseconds that it took. `what` completes the sentence
 * "waited … until …" of the error that ends the wait. The deadline bounds a broken test, it is not a
 * measurement.
 */
export async function until(
  what: string,
  holds: () => boolean | Promise<boolean>,
  deadlineMs = 20_000,
): Promise<number> {
  const startedMs = performance.now()
  const tookMs = () => Math.round(performance.now() - startedMs)
  while (!(await holds())) {
    if (tookMs() > deadlineMs) throw new Error(`waited ${deadlineMs} ms in vain until ${what}`)
    await sleep(POLL_MS)
  }
  return tookMs()
}
