/**
 * Ends loops between two servers that answer each other. One forged datagram from the address of a server
 * starts such a loop, and ports alone do not show it when the other server listens on a port of its own choice.
 * Everything here is pure: every transport calls it, with a table, a clock and randomness of its own.
 */
import type { Clock, Random } from './clock.ts'

/** A fixed number, so that forged addresses cost no memory. A peer takes over the entry of another one. */
export const GUARD_ENTRIES = 4096
/** A peer that sent more datagrams than this within `WINDOW_MS` may be in a loop. */
export const GUARD_LIMIT = 64
const WINDOW_MS = 1000
/** Each datagram of such a peer is dropped with this probability, so that it is never blocked altogether. */
const DROP_PROBABILITY = 1 / 8

interface Table {
  /** The hash of the peer that has the entry. */
  readonly peers: Uint32Array
  /** How many datagrams came from it. */
  readonly seen: Uint32Array
  /** When the last `GUARD_LIMIT` of them came, as a ring for each entry. */
  readonly times: Float64Array
}

/** A new table has only zeros: the kernel gives it memory for the entries that are used. */
export const newTable = (): Table => ({
  peers: new Uint32Array(GUARD_ENTRIES),
  seen: new Uint32Array(GUARD_ENTRIES),
  times: new Float64Array(GUARD_ENTRIES * GUARD_LIMIT),
})

/** Counts a datagram. Returns whether more than `GUARD_LIMIT` came from this peer within the last second. */
export function tooMany({ peers, seen, times }: Table, peer: number, nowMs: number): boolean {
  const entry = peer % GUARD_ENTRIES
  if (peers[entry] !== peer) {
    peers[entry] = peer
    seen[entry] = 0
  }
  const count = seen[entry]!
  const at = entry * GUARD_LIMIT + (count % GUARD_LIMIT)
  const many = count >= GUARD_LIMIT && nowMs - times[at]! < WINDOW_MS
  times[at] = nowMs
  seen[entry] = count + 1
  return many
}

/** FNV-1a, with a last step that spreads the differences over all 32 bits. */
const FNV_PRIME = 0x01000193
const mix = (hash: number, value: number): number => Math.imul(hash ^ value, FNV_PRIME)
const spread = (hash: number): number => {
  const mixed = Math.imul(hash ^ (hash >>> 16), 0x45d9f3b)
  return (mixed ^ (mixed >>> 16)) >>> 0
}

export interface LoopGuard {
  /** Whether to drop a datagram from this peer. */
  drops(address: string, port: number): boolean
  /** The same for the `length` octets of an encoded socket address, whose port is `port`. */
  dropsEncoded(address: Uint8Array, length: number, port: number): boolean
}

/**
 * A guard against peers whose port is below `below`. Servers have such ports; clients have ports of the
 * ephemeral range, and may send as fast as they like. 0 guards against nobody.
 */
export function loopGuard(below: number, clock: Pick<Clock, 'now'>, random: Random): LoopGuard {
  const table = newTable()
  // It is secret, or a forger could choose addresses that take over an entry.
  const seed = Math.floor(random() * 2 ** 32)
  const drops = (hash: number) => tooMany(table, spread(hash), clock.now()) && random() < DROP_PROBABILITY
  return {
    drops(address, port) {
      if (port >= below) return false
      let hash = mix(seed, port)
      for (let i = 0; i < address.length; i++) hash = mix(hash, address.charCodeAt(i))
      return drops(hash)
    },
    dropsEncoded(address, length, port) {
      if (port >= below) return false
      let hash = seed
      for (let i = 0; i < length; i++) hash = mix(hash, address[i]!)
      return drops(hash)
    },
  }
}
