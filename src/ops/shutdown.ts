/**
 * How a server process ends on SIGTERM, SIGINT, SIGHUP and SIGQUIT: it reports "not ready" while it still serves (drain), then
 * it closes what is open under a deadline (grace). terminus stands behind this file only; ARCHITECTURE,
 * "Operations", lists its traps.
 */
import type { Server } from 'node:http'
import terminus from '@godaddy/terminus'
import { type Clock, pause, systemClock } from '../clock.ts'
import type { Logger } from './log.ts'

export interface ShutdownOptions {
  readonly log: Pick<Logger, 'info' | 'warn' | 'error'>
  /** Stops listening, lets what is open finish, cuts it off when `deadline` aborts. */
  readonly close: (deadline: AbortSignal) => Promise<void>
  /** After SIGTERM, how long the process still serves although it is not ready. */
  readonly drainMs: number
  /** How long open connections may then take to finish. */
  readonly graceMs: number
  /** Ends the process at once, on a second signal. */
  readonly exit: (code: number) => void
}

/** A person at a terminal, and a terminal that closes, do not wait for caches to forget this server, nor for idle clients. */
const INTERRUPT_GRACE_MS = 500
/** How long `close` may take after its deadline to cut off what is still open. */
const CUT_MS = 500
/** npm and the terminal both pass Ctrl-C on: two signals of one kind within this time count as one. */
const SAME_SIGNAL_MS = 300
const signalNumbers = { SIGHUP: 1, SIGINT: 2, SIGQUIT: 3, SIGTERM: 15 } as const
export type EndSignal = keyof typeof signalNumbers

/** The steps of a shutdown, without the process and terminus, so that tests can use virtual time. */
export class Shutdown {
  readonly #options: ShutdownOptions
  readonly #clock: Clock
  #signal: EndSignal | undefined
  #sinceMs = 0

  constructor(options: ShutdownOptions, clock = systemClock) {
    this.#options = options
    this.#clock = clock
  }

  /** A signal has arrived: the process must not be sent new clients. */
  get draining(): boolean {
    return this.#signal !== undefined
  }

  /** The first signal decides how the process ends; a second one ends it at once. */
  receive(signal: EndSignal): void {
    const nowMs = this.#clock.now()
    if (this.#signal === undefined) {
      this.#signal = signal
      this.#sinceMs = nowMs
    } else if (this.#signal !== signal || nowMs - this.#sinceMs > SAME_SIGNAL_MS) {
      this.#options.log.warn({ signal }, 'second signal: ending at once')
      this.#options.exit(128 + signalNumbers[signal])
    }
  }

  async drain(): Promise<void> {
    const drainMs = this.#interrupted ? 0 : this.#options.drainMs
    this.#options.log.info({ signal: this.#signal, drainMs }, 'draining: no longer ready, still serving')
    await pause(this.#clock, drainMs)
  }

  /** Resolves when `close` has ended, but at the latest shortly after the grace time: a hook may hang. */
  async close(): Promise<void> {
    const { log, close } = this.#options
    const graceMs = this.#interrupted
      ? Math.min(this.#options.graceMs, INTERRUPT_GRACE_MS)
      : this.#options.graceMs
    log.info({ graceMs }, 'closing: no new clients, open connections may finish')
    const deadline = new AbortController()
    const decided = new AbortController()
    const cancelDeadline = this.#clock.after(graceMs, () => deadline.abort())
    try {
      const closed = await Promise.race([
        close(deadline.signal).then(() => true),
        pause(this.#clock, graceMs + CUT_MS, decided.signal).then(() => false),
      ])
      if (!closed) log.warn({ graceMs }, 'closing takes too long: ending without it')
    } finally {
      cancelDeadline()
      decided.abort()
    }
  }

  get #interrupted(): boolean {
    return this.#signal !== 'SIGTERM'
  }
}

/** SIGHUP has another meaning in inetd. */
export const endSignalsOfInetd = ['SIGTERM', 'SIGINT', 'SIGQUIT'] as const
const endSignals: readonly EndSignal[] = ['SIGHUP', ...endSignalsOfInetd]

/** From now on these signals run `shutdown`. `server` must be listening; it closes after the drain. */
export function endOnSignals(
  server: Server,
  shutdown: Shutdown,
  log: Pick<Logger, 'info' | 'error'>,
  takeSignals: () => void,
  signals = endSignals,
): void {
  takeSignals()
  // Before terminus adds its own handlers: `drain` must know the signal.
  for (const signal of signals) process.on(signal, () => shutdown.receive(signal))
  terminus.createTerminus(server, {
    signals: [...signals],
    useExit0: true,
    timeout: 100,
    beforeShutdown: () => shutdown.drain(),
    onSignal: () => shutdown.close(),
    onShutdown: async () => log.info('ended'),
    logger: (message, error) => log.error({ err: error }, message),
  })
}
