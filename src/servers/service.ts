/** What all server models are: what each is given, what each gives. */
import type { SocketAddress, Transport } from '../address.ts'
import type { Service } from '../lifecycle.ts'
import type { Listeners } from '../net/listeners.ts'
import type { Protocol } from '../protocols.ts'
import type { Say } from '../say.ts'

/** The models in the book's order (TLPI 60 and 63), and the transports that each is made for. */
export const models = {
  iterative: ['udp'],
  concurrent: ['tcp'],
  prefork: ['tcp'],
  'event-loop': ['udp', 'tcp'],
} as const satisfies Record<string, readonly Transport[]>

export type ModelName = keyof typeof models

/** Monotonic since start, but for `active` and `waiting`. */
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

/** Counters whose connections are those of `listeners` at the time of reading. */
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

/** The child processes of a server that has some. */
export interface Children {
  /** One line for each that lives. `served`: clients it has had, the present one included. */
  readonly scoreboard: readonly {
    readonly pid: number
    readonly state: ChildState
    readonly served: number
  }[]
  /** Processes made since start. */
  readonly forks: number
  /** Processes that ended otherwise than they should. */
  readonly failures: number
}

export interface EchoService extends Service {
  /** Where it listens, with the ports that the system chose. */
  readonly addresses: readonly SocketAddress[]
  readonly counters: Readonly<EchoCounters>
  /** As they are now. */
  children?(): Children
  /** Undefined while it serves, else what it waits for. */
  notReady?(): string | undefined
}

export interface ServerOptions {
  readonly listen: readonly SocketAddress[]
  /** Which of the model's transports to serve. */
  readonly transports: readonly Transport[]
  /** A connection on which nothing moved for this long is closed. */
  readonly idleMs: number
  /** event-loop: over this number clients wait in the kernel's queue. */
  readonly maxConnections: number
  /** concurrent, prefork: likewise; never more processes than this. */
  readonly maxChildren: number
  /** prefork: processes made at the start. */
  readonly start: number
  /** prefork: fewer idle processes than this, and more are made. */
  readonly minSpare: number
  /** prefork: more idle processes than this for a while, and some are ended. */
  readonly maxSpare: number
  /** prefork: a process ends after so many clients; 0: never. */
  readonly maxRequests: number
  /** prefork: from one decision about the pool to the next; a second where nothing is said. */
  readonly tickMs?: number
  /** What an operator should know; never a line for each client. */
  readonly say: Say
}

/** A factory of servers: resolves when every address listens; rejects with Node's error (`code`, `address`, `port`) if one cannot. */
export type ServerModel = (protocol: Protocol, options: ServerOptions) => Promise<EchoService>
