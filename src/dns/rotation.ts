/** The order of an RRset from answer to answer. Pure: the cursor and the randomness are arguments. */
import type { Random } from '../clock.ts'

/** What a policy may look at. */
export interface Candidate {
  readonly weight: number
  readonly activeConnections: number | undefined
}

/** A policy compiled for one set of candidates. */
export interface Plan {
  /** The order in which the records are stored, as indices into the candidates. */
  readonly order: readonly number[]
  /** How many at the beginning of the order take turns, as a ring. The others follow in their order. */
  readonly ring: number
  /** Where in the ring each answer starts, one after the other. Empty if that is the order of the ring. */
  readonly turns: readonly number[]
}

/** What an arrangement may use besides the RRset and the cursor. */
export interface Lots {
  readonly random: Random
  /** The numbers 0, 1, 2, …, as many as the largest RRset has. An arrangement must restore it. */
  readonly memory: Int32Array
}

/**
 * Writes the order of one answer, `taken` of `count` records, as windows into the stored records: for each
 * its start and how many records it has. Returns the number of windows.
 */
type Arrange = (count: number, taken: number, cursor: number, lots: Lots, windows: Int32Array) => number

export interface Policy {
  readonly name: string
  /** Whether `activeConnections` makes a difference to `compile`. */
  readonly readsLoad: boolean
  compile(candidates: readonly Candidate[]): Plan
  /** Arranges each answer anew, instead of taking turns. The ring of the plan must then be 0. */
  readonly arrange?: Arrange
}

const indices = (count: number): number[] => Array.from({ length: count }, (_, i) => i)

/** All of them take turns, in the order that they came in. */
const wholeRing = (count: number, turns: readonly number[] = []): Plan => ({
  order: indices(count),
  ring: count,
  turns,
})

const cyclic: Policy = {
  name: 'cyclic',
  readsLoad: false,
  compile: candidates => wholeRing(candidates.length),
}

const random: Policy = {
  name: 'random',
  readsLoad: false,
  compile: candidates => ({ order: indices(candidates.length), ring: 0, turns: [] }),
  // Fisher–Yates, ended as soon as the first `taken` are drawn. Then the swaps are undone, so that an answer
  // costs as much as it is long, not as much as there are endpoints.
  arrange(count, taken, _cursor, { random, memory }, windows) {
    for (let i = 0; i < taken; i++) {
      const j = i + Math.floor(random() * (count - i))
      windows[2 * i] = memory[j]!
      windows[2 * i + 1] = j
      memory[j] = memory[i]!
    }
    for (let i = 0; i < taken; i++) {
      const j = windows[2 * i + 1]!
      memory[j] = j
      windows[2 * i + 1] = 1
    }
    return taken
  },
}

const weighted: Policy = {
  name: 'weighted',
  readsLoad: false,
  compile: candidates => wholeRing(candidates.length, smoothTurns(candidates.map(({ weight }) => weight))),
}

/**
 * The fewest active connections first; those with equally few take turns. An unknown load counts as the mean
 * of the known ones: a replica that does not tell its load must not be the first for ever.
 */
const leastLoaded: Policy = {
  name: 'least-loaded',
  readsLoad: true,
  compile(candidates) {
    const known = candidates.flatMap(({ activeConnections }) => activeConnections ?? [])
    const mean = known.reduce((sum, load) => sum + load, 0) / Math.max(1, known.length)
    const loads = candidates.map(({ activeConnections }) => activeConnections ?? mean)
    const load = (index: number) => loads[index]!
    const order = indices(candidates.length).sort((a, b) => load(a) - load(b))
    const least = load(order[0] ?? 0)
    return { order, ring: loads.filter(each => each === least).length, turns: [] }
  },
}

export const policies: readonly Policy[] = [cyclic, random, weighted, leastLoaded]

/**
 * The order of one answer that takes turns, as windows (see `Arrange`). The ring is stored twice in a row, so
 * that it is one window from wherever it starts; the other records follow behind.
 */
export function turnWindows(ring: number, head: number, taken: number, windows: Int32Array): number {
  windows[0] = head
  windows[1] = Math.min(taken, ring)
  if (taken <= ring) return 1
  windows[2] = 2 * ring
  windows[3] = taken - ring
  return 2
}

/**
 * One full period of smooth weighted round robin, as nginx does it: each turn every weight is added to its
 * credit, the largest credit has the turn and pays the sum. Weights 5, 1, 1 give 0 0 1 0 2 0 0.
 *
 * Those of equal weight have turns one after the other, so only the next of each weight is compared: the work
 * is a turn times the number of different weights, not of endpoints.
 */
export function smoothTurns(weights: readonly number[]): number[] {
  const divisor = weights.reduce(greatestDivisor, 0)
  const groups = new Map<number, { share: number; members: number[]; next: number; round: number }>()
  let sum = 0
  for (const [index, weight] of weights.entries()) {
    const share = weight / divisor
    sum += share
    const group = groups.get(share)
    if (group) group.members.push(index)
    else groups.set(share, { share, members: [index], next: 0, round: 0 })
  }
  const all = [...groups.values()]
  const turns: number[] = []
  for (let turn = 1; turn <= sum; turn++) {
    let best = all[0]!
    let bestCredit = Number.NEGATIVE_INFINITY
    for (const group of all) {
      const credit = group.share * turn - sum * group.round
      const tie = credit === bestCredit && group.members[group.next]! < best.members[best.next]!
      if (credit > bestCredit || tie) {
        best = group
        bestCredit = credit
      }
    }
    turns.push(best.members[best.next]!)
    best.next++
    if (best.next === best.members.length) {
      best.next = 0
      best.round++
    }
  }
  return turns
}

const greatestDivisor = (a: number, b: number): number => (b === 0 ? a : greatestDivisor(b, a % b))
