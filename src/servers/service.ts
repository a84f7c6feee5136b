/** What all server models have in common: what each one receives, and what each one gives. */
import type { SocketAddress, Transport } from '../address.ts'
import type { Clock, Random } from '../clock.ts'
import type { Service } from '../lifecycle.ts'
import type { Listeners } from '../net/listeners.ts'
import type { Protocol } from '../protocols.ts'
import type { Say } from '../say.ts'

/** All counts since the start, except `active` and `waiting`, which are as of now. */
export interface EchoCounters {
  datagrams: number
  datagramsLoopDropped: number
  datagramsOverloadDropped: number
  datagramsFailed: number
  connections: number
  active: number
  waiting: number
}

export const noCounts = (): EchoCounters => ({
  datagrams: 0,
  datagramsLoopDropped: 0,
  datagramsOverloadDropped: 0,
  datagramsFailed: 0,
  connections: 0,
  active: 0,
  waiting: 0,
})

/** Counters whose `active` and `waiting` are those of `listeners` at the time of reading. */
export const countersOf = (listeners: Listeners): EchoCounters => ({
  ...noCounts(),
  get active() {
    return listeners.active
  },
  get waiting() {
    return listeners.waiting
  },
})

export type ChildState = 'starting' | 'idle' | 'busy' | 'stopping'

/** One child process. */
export interface ScoreboardRow {
  readonly pid: number
  readonly state: ChildState
  /** Clients that it has had, including the present one. */
  readonly served: number
}

/** The child processes of a model that has some. */
export interface Children {
  /** One row for each process that is alive. */
  readonly scoreboard: readonly ScoreboardRow[]
  /** Processes created since the start. */
  readonly forks: number
  /** Processes that failed. */
  readonly failures: number
}

export interface EchoService extends Service {
  /** Where it listens, with the ports that the system chose. */
  readonly addresses: readonly SocketAddress[]
  readonly counters: Readonly<EchoCounters>
  /** As they are now. */
  children?(): Children
  /** What it waits for; undefined while it serves. */
  notReady?(): string | undefined
}

export interface ServerOptions {
  readonly listen: readonly SocketAddress[]
  /** Which of the model's transports to serve. */
  readonly transports: readonly Transport[]
  /** A connection on which nothing moves for this long is closed. */
  readonly idleMs: number
  /** event-loop: clients beyond this number wait in the kernel's queue. */
  readonly maxConnections: number
  /** concurrent, prefork: the same, and there are never more processes than this. */
  readonly maxChildren: number
  /** prefork: processes that are created at the start. */
  readonly start: number
  /** prefork: with fewer idle processes than this, more are created. */
  readonly minSpare: number
  /** prefork: with more idle processes than this for a while, some are stopped. */
  readonly maxSpare: number
  /** prefork: a process ends after this number of clients; 0: never. */
  readonly maxRequests: number
  /** UDP: peers with lower ports than this are guarded against loops; 0: none. */
  readonly guardBelow: number
  readonly clock: Clock
  readonly random: Random
  /** Reports to the operator; never once for each client. */
  readonly say: Say
}

/**
 * Starts a server. Resolves when every address listens; rejects with Node's error (`code`, `address`, `port`)
 * if one cannot.
 */
export type ServerModel = (protocol: Protocol, options: ServerOptions) => Promise<EchoService>
