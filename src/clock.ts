/** Time and randomness as values that are handed in, so that the same code runs under virtual time. */

export interface Clock {
  /** Milliseconds since some moment in the past; never goes back. */
  now(): number
  /** Unix time in seconds, with a fraction. May be set back by an operator. */
  wallSeconds(): number
  /** Calls `task` once after `ms` milliseconds, unless the function that it returns is called before. */
  after(ms: number, task: () => void): () => void
}

/** Numbers in [0, 1). */
export type Random = () => number

/** The time of this machine. */
export const systemClock: Clock = {
  now: () => performance.now(),
  wallSeconds: () => Date.now() / 1000,
  after(ms, task) {
    const timer = setTimeout(task, ms)
    return () => clearTimeout(timer)
  },
}

/**
 * Resolves after `ms` milliseconds of `clock`, or at once when `signal` aborts: the caller looks at the
 * signal.
 */
export function pause(clock: Clock, ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise(resolve => {
    if (signal?.aborted) return resolve()
    const done = () => {
      cancel()
      signal?.removeEventListener('abort', done)
      resolve()
    }
    const cancel = clock.after(ms, done)
    signal?.addEventListener('abort', done)
  })
}

export interface Gathered {
  /** Something happened: the task runs `ms` after the first of the calls that it has not run for yet. */
  add(): void
  /** Runs the task now if calls wait for it. */
  flush(): void
  /** Drops the calls that wait. */
  cancel(): void
}

/** Makes one run of `task` of all that happens within `ms` milliseconds. */
export function gather(clock: Clock, ms: number, task: () => void): Gathered {
  let stop: (() => void) | undefined
  const cancel = () => {
    stop?.()
    stop = undefined
  }
  const run = () => {
    cancel()
    task()
  }
  return {
    add() {
      stop ??= clock.after(ms, run)
    },
    flush() {
      if (stop) run()
    },
    cancel,
  }
}
