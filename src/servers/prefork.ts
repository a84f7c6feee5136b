/**
 * The prefork model (TLPI 60.4): a pool of processes that are created in advance; it grows and shrinks with
 * the load. They share the listening sockets, so the next idle child accepts a waiting client and the kernel
 * keeps the queue. The parent touches no connection. pool-size.ts decides, child.ts serves. Compare with
 * concurrent.ts.
 */
import type { Clock } from '../clock.ts'
import { untilDeadline } from '../lifecycle.ts'
import { descriptorRoom } from '../net/listeners.ts'
import type { Protocol } from '../protocols.ts'
import { sparingly } from '../say.ts'
import { headers } from '../sys/layouts.ts'
import { close, shutdown } from '../sys/libc.ts'
import { type BoundSocket, listenTcp, queued } from '../sys/sockets.ts'
import { type Child, startChild } from './children.ts'
import { BUSY, type ChildOrders } from './orders.ts'
import { decide, died, newHistory, type PoolHistory } from './pool-size.ts'
import {
  type Children,
  type ChildState,
  type EchoCounters,
  type EchoService,
  noCounts,
  type ServerOptions,
} from './service.ts'

const TICK_MS = 1000
/** A child that dies sooner than this has died of its start. */
const EARLY_MS = 500
const BUSY_CODE = BUSY.charCodeAt(0)

type Options = Omit<ServerOptions, 'transports' | 'maxConnections'>

export async function prefork(protocol: Protocol, options: Options): Promise<EchoService> {
  const listeners: BoundSocket[] = []
  try {
    for (const address of options.listen) listeners.push(listenTcp(address))
  } catch (error) {
    for (const { fd } of listeners) close(fd)
    throw error
  }
  const pool = new ChildPool(
    protocol,
    options,
    listeners.map(({ fd }) => fd),
  )
  return {
    name: protocol.name,
    addresses: listeners.map(({ address }) => address),
    counters: pool.counters,
    children: () => ({ scoreboard: pool.scoreboard, forks: pool.forks, failures: pool.failures }),
    notReady: () =>
      pool.scoreboard.some(({ state }) => state !== 'starting') ? undefined : 'no process is ready',
    close: deadline => pool.close(deadline),
  }
}

interface Member {
  readonly child: Child
  state: ChildState
  served: number
  readonly startedMs: number
}

class ChildPool {
  readonly counters: EchoCounters
  readonly #orders: ChildOrders
  readonly #options: Options
  readonly #maxChildren: number
  readonly #clock: Clock
  #listeners: readonly number[]
  readonly #full: (details: object) => void
  readonly #refused: (error: Error) => void
  readonly #members = new Map<number, Member>()
  #cancelTick = () => {}
  #history: PoolHistory = newHistory
  #closing = false
  #whenEmpty = () => {}
  forks = 0
  failures = 0

  constructor(protocol: Protocol, options: Options, listeners: readonly number[]) {
    const { idleMs, maxRequests, start, clock, say } = options
    this.#orders = { protocol: protocol.name, idleMs, listeners: listeners.length, maxRequests }
    this.#options = options
    this.#listeners = listeners
    this.#clock = clock
    this.#maxChildren = Math.min(options.maxChildren, descriptorRoom())
    this.#full = sparingly(details => say('warn', 'process cap reached: further clients wait', details))
    this.#refused = sparingly(err => say('error', 'cannot start a process', { err }))
    const pool = this
    this.counters = {
      ...noCounts(),
      get active() {
        return pool.scoreboard.filter(({ state }) => state === 'busy').length
      },
      get waiting() {
        return pool.#listeners.reduce((sum, fd) => sum + queued(fd), 0)
      },
    }
    this.#forkSome(Math.min(start, this.#maxChildren))
    this.#planTick()
  }

  get scoreboard(): Children['scoreboard'] {
    return [...this.#members.values()].map(({ child: { pid }, state, served }) => ({ pid, state, served }))
  }

  #planTick(): void {
    this.#cancelTick = this.#clock.after(TICK_MS, () => {
      this.#planTick()
      this.#tick()
    })
  }

  #tick(): void {
    const { minSpare, maxSpare } = this.#options
    const board = this.scoreboard
    const decision = decide(board, { minSpare, maxSpare, maxChildren: this.#maxChildren }, this.#history)
    this.#history = decision.history
    if (board.length >= this.#maxChildren && board.every(({ state }) => state === 'busy'))
      this.#full({ cap: this.#maxChildren })
    this.#forkSome(decision.fork)
    if (decision.stop !== undefined) this.#stop(decision.stop)
  }

  #forkSome(count: number): void {
    for (let i = 0; i < count; i++) if (!this.#fork()) return
  }

  /** False when the system has no more processes: then none is started for a while. */
  #fork(): boolean {
    const child = startChild(this.#orders, 'ignore', this.#listeners, this.#clock, this.#refused)
    if (!child) {
      this.#history = died(this.#history, true)
      return false
    }
    this.forks++
    const member: Member = { child, state: 'starting', served: 0, startedMs: this.#clock.now() }
    this.#members.set(child.pid, member)
    child.control.on('data', (states: Buffer) => {
      for (const state of states) this.#heard(member, state)
    })
    child.ended.then(failure => this.#ended(member, failure))
    return true
  }

  #heard(member: Member, state: number): void {
    if (state === BUSY_CODE) {
      member.served++
      this.counters.connections++
    }
    if (member.state !== 'stopping') member.state = state === BUSY_CODE ? 'busy' : 'idle'
  }

  #stop(pid: number): void {
    const member = this.#members.get(pid)
    if (!member) return
    member.state = 'stopping'
    member.child.control.write('stop')
  }

  #ended({ child: { pid }, state, served, startedMs }: Member, failure: string | undefined): void {
    this.#members.delete(pid)
    if (this.#members.size === 0) this.#whenEmpty()
    if (this.#closing || (state === 'stopping' && !failure)) return
    if (failure) {
      this.failures++
      this.#history = died(this.#history, state === 'starting' || this.#clock.now() - startedMs < EARLY_MS)
      const heldSeconds = (this.#history.holdTicks * TICK_MS) / 1000
      this.#options.say('warn', 'child died', { child: pid, reason: failure, served, heldSeconds })
    } else if (this.#members.size < this.#maxChildren) {
      // It has served as many clients as it should.
      this.#fork()
    }
  }

  async close(deadline: AbortSignal): Promise<void> {
    this.#closing = true
    this.#cancelTick()
    for (const fd of this.#listeners) {
      // The children have descriptors of their own, but no socket listens after this call.
      shutdown(fd, headers.SHUT_RDWR)
      close(fd)
    }
    this.#listeners = []
    for (const pid of this.#members.keys()) this.#stop(pid)
    const empty = new Promise<void>(resolve => {
      this.#whenEmpty = resolve
      if (this.#members.size === 0) resolve()
    })
    await untilDeadline(empty, deadline, () => {
      for (const { child } of this.#members.values()) child.process.kill('SIGKILL')
    })
  }
}
