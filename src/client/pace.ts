/**
 * The clock of an open loop: operation i is due at start + i / rate, whatever the server does. Pure: callers
 * tell it the time.
 */
export class Pace {
  /** Operations of the whole run. */
  readonly total: number
  readonly #ratePerSecond: number
  #startMs = 0
  #released = 0

  constructor(ratePerSecond: number, durationMs: number) {
    this.#ratePerSecond = ratePerSecond
    this.total = Math.ceil((durationMs * ratePerSecond) / 1000)
  }

  start(nowMs: number): void {
    this.#startMs = nowMs
  }

  /** How many operations may be sent: those with an index below this number. */
  get released(): number {
    return this.#released
  }

  dueMs(index: number): number {
    return this.#startMs + (index * 1000) / this.#ratePerSecond
  }

  /** Releases the operations that are due at `nowMs`. */
  release(nowMs: number): void {
    let count = Math.floor(((nowMs - this.#startMs) * this.#ratePerSecond) / 1000) + 1
    // The division may round down. Then the operation that is due now would be waited for in vain.
    while (this.dueMs(count) <= nowMs) count++
    this.#released = Math.min(this.total, Math.max(this.#released, count))
  }

  /** Releases the rest: the timer that ends a run may be early by a fraction of a millisecond. */
  releaseAll(): void {
    this.#released = this.total
  }

  /** Milliseconds from `nowMs` until the next operation is due; undefined when all are released. */
  waitMs(nowMs: number): number | undefined {
    return this.#released < this.total ? Math.max(0, this.dueMs(this.#released) - nowMs) : undefined
  }
}
