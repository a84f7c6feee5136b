/** What a parent and a child process of a server have agreed upon: no code, so that either loads nothing of the other. */
import type { Protocol } from '../protocols.ts'

/** The child's descriptors. */
export const CONNECTION = 0
/**
 * A socket to the parent. The child says `IDLE` or `BUSY` when it becomes so, first when it has started; whatever the parent says means: end when
 * idle. Its end of file means that the parent is gone: end now.
 */
export const CONTROL = 3
/** The first of the listening sockets. */
export const FIRST_LISTENER = 4

export const IDLE = 'i'
export const BUSY = 'b'

/** The only argument, in JSON. */
export interface ChildOrders {
  /** The protocol's own `module` and `name`. */
  readonly protocol: Pick<Protocol, 'module' | 'name'>
  readonly idleMs: number
  /** How many listening sockets there are; 0: serve descriptor 0 and end. */
  readonly listeners: number
  /** End after so many clients; 0: never. */
  readonly maxRequests: number
}
