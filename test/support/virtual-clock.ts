/** A clock that stands still until a test moves it. */
import type { Clock } from '../../src/clock.ts'

interface Task {
  readonly dueMs: number
  readonly run: () => void
}

export class VirtualClock implements Clock {
  #nowMs = 0
  #wallOffsetSeconds: number
  readonly #tasks = new Set<Task>()

  /** `wallSeconds`: Unix time at the start. */
  constructor(wallSeconds = 1_800_000_000) {
    this.#wallOffsetSeconds = wallSeconds
  }

  now(): number {
    return this.#nowMs
  }

  wallSeconds(): number {
    return this.#wallOffsetSeconds + this.#nowMs / 1000
  }

  after(ms: number, run: () => void): () => void {
    const task = { dueMs: this.#nowMs + Math.max(0, ms), run }
    this.#tasks.add(task)
    return () => void this.#tasks.delete(task)
  }

  /** As an operator who sets the machine's time. */
  setWall(seconds: number): void {
    this.#wallOffsetSeconds = seconds - this.#nowMs / 1000
  }

  /** How many tasks wait. */
  get waiting(): number {
    return this.#tasks.size
  }

  /** Moves the time on by `ms`, and runs what is due on the way, in order. Promises settle in between. */
  async advance(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms
    for (;;) {
      await settle()
      let next: Task | undefined
      for (const task of this.#tasks) if (!next || task.dueMs < next.dueMs) next = task
      if (!next || next.dueMs > endMs) break
      this.#nowMs = Math.max(this.#nowMs, next.dueMs)
      this.#tasks.delete(next)
      next.run()
    }
    // Two calls may overlap.
    this.#nowMs = Math.max(this.#nowMs, endMs)
    await settle()
  }
}

/** Lets promises and what they start in this turn of the event loop run. */
const settle = () => new Promise<void>(resolve => setImmediate(resolve))
