/** How code below the commands reports to the operator: through a function that is handed in. */

/**
 * Reports one event. `details` become fields of the log line. Never called once for each client or datagram.
 */
export type Say = (level: 'info' | 'warn' | 'error', message: string, details: object) => void

const REPEAT_AFTER_MS = 60_000

/** For an event that may happen with every client: it is reported at most once a minute. */
export function sparingly(say: (details: object) => void): (details: object) => void {
  let last = -Infinity
  return details => {
    const now = performance.now()
    if (now - last < REPEAT_AFTER_MS) return
    last = now
    say(details)
  }
}
