/**
 * What a parent and a child process of a server have agreed upon. There is no code, so neither loads the
 * other's.
 */

/** The child's descriptors. */
export const CONNECTION = 0
/**
 * A socket to the parent. The child sends `IDLE` or `BUSY` when its state changes, for the first time when it
 * has started. Any octet from the parent means: end when idle. End of file means that the parent is gone: end
 * now.
 */
export const CONTROL = 3
/** The first of the listening sockets. */
export const FIRST_LISTENER = 4

export const IDLE = 'i'
export const BUSY = 'b'

/** The only argument, in JSON. */
export interface ChildOrders {
  /** The name of a protocol. */
  readonly protocol: string
  readonly idleMs: number
  /** How many listening sockets there are; 0: serve descriptor 0 and end. */
  readonly listeners: number
  /** End after this number of clients; 0: never. */
  readonly maxRequests: number
}
