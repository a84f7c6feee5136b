/** Keeps the addresses that a DNS resolver leaves out of one answer: pure. */

export interface AddressHold {
  readonly addresses: readonly string[]
  /**
   * The answers seem to be changing parts of a larger set, and addresses leave that are still in use. Once
   * true it stays true.
   */
  readonly isTooShort: boolean
  /** Takes the addresses of one answer. */
  answer(found: readonly string[]): void
}

/** How many answers are looked at to find out whether each is only a part of the set. */
const WINDOW = 10
/** So many of them differ from the one before. A restart of a replica makes two of them differ. */
const MANY_CHANGES = 4
const MAX_DEPARTED = 1000

/** An address leaves when `hold` answers in a row do not have it. */
export function addressHold(hold: number): AddressHold {
  /** By address: how many answers in a row did not have it. */
  const missed = new Map<string, number>()
  /** Those that have left, oldest first. */
  const departed = new Set<string>()
  let before: string | undefined
  /** For each of the last answers: it differs from the one before; an address that had left is in it. */
  const recent: { differs: boolean; returned: boolean }[] = []
  let isTooShort = false
  return {
    get addresses() {
      return [...missed.keys()]
    },
    get isTooShort() {
      return isTooShort
    },
    answer(found) {
      for (const [address, count] of missed) {
        missed.set(address, count + 1)
        if (count + 1 < hold || found.includes(address)) continue
        missed.delete(address)
        departed.add(address)
      }
      let returned = false
      for (const address of found) {
        missed.set(address, 0)
        if (departed.delete(address)) returned = true
      }
      for (const oldest of departed) {
        if (departed.size <= MAX_DEPARTED) break
        departed.delete(oldest)
      }
      const now = [...found].sort().join()
      recent.push({ differs: before !== undefined && before !== now, returned })
      before = now
      if (recent.length > WINDOW) recent.shift()
      isTooShort ||=
        recent.some(answer => answer.returned) &&
        recent.filter(answer => answer.differs).length >= MANY_CHANGES
    },
  }
}
