/** The order of an RRset, answer by answer: pure; the cursor and the randomness are arguments. */

/** What a policy may look at. */
export interface Candidate {
  readonly weight: number
  readonly activeConnections: number | undefined
}

/** A policy compiled for one set of candidates. */
export interface Plan {
  /** Indices into the candidates. The first `turning` of them are a ring that takes turns; the others follow as they are. */
  readonly order: readonly number[]
  readonly turning: number
  /** Where in the ring the answer starts at this cursor (0, 1, 2, …). */
  head(cursor: number): number
  /** The window is shuffled anew each time: `head` says nothing. */
  readonly shuffled: boolean
}

export interface Policy {
  readonly name: string
  compile(candidates: readonly Candidate[]): Plan
}

const indices = (count: number): number[] => Array.from({ length: count }, (_, i) => i)

/** All of them take turns, in the order that they came in. */
const ring = (candidates: readonly Candidate[]) => ({
  order: indices(candidates.length),
  turning: candidates.length,
  shuffled: false,
})

const cyclic: Policy = {
  name: 'cyclic',
  compile: candidates => ({ ...ring(candidates), head: cursor => cursor % candidates.length }),
}

const random: Policy = {
  name: 'random',
  compile: candidates => ({ ...ring(candidates), head: () => 0, shuffled: true }),
}

const weighted: Policy = {
  name: 'weighted',
  compile(candidates) {
    // Made when first asked for: most Snapshots are replaced before they are.
    let turns: number[] | undefined
    const head = (cursor: number) => {
      turns ??= smoothTurns(candidates.map(candidate => candidate.weight))
      return turns[cursor % turns.length]!
    }
    return { ...ring(candidates), head }
  },
}

/** The fewest active connections first; those with equally few take turns. A load not known yet counts as 0. */
const leastLoaded: Policy = {
  name: 'least-loaded',
  compile(candidates) {
    const load = (index: number) => candidates[index]!.activeConnections ?? 0
    const order = indices(candidates.length).sort((a, b) => load(a) - load(b))
    const turning = order.filter(index => load(index) === load(order[0]!)).length
    return { order, turning, head: cursor => cursor % turning, shuffled: false }
  },
}

export const policies: readonly Policy[] = [cyclic, random, weighted, leastLoaded]

/**
 * One full period of smooth weighted round robin, as nginx does it: each turn every weight is added to its
 * credit, the largest credit has the turn and pays the sum. Weights 5, 1, 1 give 0 0 1 0 2 0 0.
 */
export function smoothTurns(weights: readonly number[]): number[] {
  const divisor = weights.reduce(gcd, 0)
  const shares = weights.map(weight => weight / divisor)
  const sum = shares.reduce((a, b) => a + b, 0)
  const credit = shares.map(() => 0)
  return Array.from({ length: sum }, () => {
    let best = 0
    for (let i = 0; i < credit.length; i++) {
      credit[i]! += shares[i]!
      if (credit[i]! > credit[best]!) best = i
    }
    credit[best]! -= sum
    return best
  })
}

const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b))

/** The first `count` of the order at `cursor`, as indices into the candidates. `random` gives numbers in [0, 1). */
export function pick(plan: Plan, cursor: number, count: number, random: () => number): number[] {
  const { order, turning } = plan
  const taken = Math.min(count, order.length)
  if (!plan.shuffled) {
    const head = plan.head(cursor)
    return Array.from({ length: taken }, (_, i) => order[i < turning ? (head + i) % turning : i]!)
  }
  // Fisher–Yates, ended as soon as the first `taken` stand.
  const shuffled = [...order]
  for (let i = 0; i < taken; i++) {
    const j = i + Math.floor(random() * (shuffled.length - i))
    const swapped = shuffled[i]
    shuffled[i] = shuffled[j]!
    shuffled[j] = swapped!
  }
  return shuffled.slice(0, taken)
}
