/** How code below the commands reports to an operator: a function that it is given. */

/** One event. `details` become fields of the log line. Never called for each client or datagram. */
export type Say = (level: 'info' | 'warn' | 'error', message: string, details: object) => void

const SAY_AGAIN_MS = 60_000

/** For what may happen with every client: the line is written at most once a minute. */
export function sparingly(say: (details: object) => void): (details: object) => void {
  let last = -Infinity
  return details => {
    const now = performance.now()
    if (now - last < SAY_AGAIN_MS) return
    last = now
    say(details)
  }
}
