/**
 * Which connection makes room for a new one, where a server has a cap. A server that closed the newcomer could
 * be locked up by anybody who opens connections and sends nothing.
 */

/** What the rule needs to know of an open connection. */
export interface Held {
  /** Who holds it: see `holderOf`. */
  readonly holder: string
  /**
   * When it became idle, on any clock that never goes back: at the last whole request, or at the last octet of
   * a reply that the peer accepted. Undefined while a request is under way: then it is never evicted.
   */
  readonly idleSince: number | undefined
}

/**
 * What to do with a new connection: `admit` it, admit it after closing the connection `evict`, or close it at
 * once, because no connection that may be closed for it is idle.
 */
export type Verdict<C> = 'admit' | 'refuse' | { readonly evict: C }

/**
 * At the cap, the connection that has been idle longest makes room. A holder of a quarter of the cap replaces
 * a connection of its own, so that one client cannot drive out the others.
 */
export function roomFor<C extends Held>(open: Iterable<C>, holder: string, cap: number): Verdict<C> {
  const share = Math.ceil(cap / 4)
  let count = 0
  let own = 0
  let idlest: C | undefined
  let ownIdlest: C | undefined
  for (const held of open) {
    count++
    const isOwn = held.holder === holder
    if (isOwn) own++
    if (held.idleSince === undefined) continue
    if (isOlder(held, idlest)) idlest = held
    if (isOwn && isOlder(held, ownIdlest)) ownIdlest = held
  }
  if (count < cap && own < share) return 'admit'
  const evict = own < share ? idlest : ownIdlest
  return evict ? { evict } : 'refuse'
}

const isOlder = (held: Held, other: Held | undefined): boolean =>
  other?.idleSince === undefined || (held.idleSince ?? Infinity) < other.idleSince

/**
 * The IPv4 address of a peer, or the /64 of its IPv6 address: a site receives at least a /64 and can use all of
 * its addresses. `address` is written as Node writes a peer's address.
 */
export function holderOf(address: string): string {
  if (!address.includes(':')) return address
  // A socket that serves both families writes the peers of IPv4 so.
  if (/^::ffff:\d+\.\d+\.\d+\.\d+$/i.test(address)) return address.slice('::ffff:'.length)
  const [host = ''] = address.split('%')
  const [head = '', tail] = host.split('::')
  const before = head === '' ? [] : head.split(':')
  if (tail === undefined) return before.slice(0, 4).join(':')
  const after = tail === '' ? 0 : tail.split(':').length + Number(tail.includes('.'))
  const zeros = new Array<string>(Math.max(0, 8 - before.length - after)).fill('0')
  return [...before, ...zeros, ...(tail === '' ? [] : tail.split(':'))].slice(0, 4).join(':')
}
