import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type Candidate, type Policy, policies, smoothTurns, turnWindows } from '../../src/dns/rotation.ts'
import { policy, seeded } from './message.ts'

const candidates = (list: readonly Partial<Candidate>[]): Candidate[] =>
  list.map(each => ({ weight: 1, activeConnections: undefined, ...each }))
const equal = (count: number) => candidates(Array.from({ length: count }, () => ({})))
const never = () => assert.fail('this policy draws no lots')

/** The order of each answer, as indices into the candidates: what the windows show of the stored records. */
function picker({ compile, arrange }: Policy, members: Candidate[]) {
  const { order, ring, turns } = compile(members)
  const stored = [...order.slice(0, ring), ...order]
  const memory = Int32Array.from(members, (_, i) => i)
  const windows = new Int32Array(2 * members.length + 2)
  return (cursor: number, count: number, random: () => number): number[] => {
    const taken = Math.min(count, members.length)
    const head = turns.length === 0 ? cursor % ring : turns[cursor % turns.length]!
    const used = arrange
      ? arrange(members.length, taken, cursor, { random, memory }, windows)
      : turnWindows(ring, head, taken, windows)
    assert.deepEqual(
      memory,
      Int32Array.from(members, (_, i) => i),
    )
    const starts = Array.from({ length: used }, (_, i) => windows[2 * i]!)
    return starts.flatMap((start, i) => stored.slice(start, start + windows[2 * i + 1]!))
  }
}

/** The orders of `answers` answers in a row. */
const orders = (name: string, members: Candidate[], answers: number, count = Number.POSITIVE_INFINITY) => {
  const pick = picker(policy(name), members)
  return Array.from({ length: answers }, (_, cursor) => pick(cursor, count, never))
}

function firsts(list: readonly number[][], members: number): number[] {
  const counts = new Array(members).fill(0)
  for (const [first] of list) counts[first!]++
  return counts
}

describe('cyclic', () => {
  test('every answer begins one further and goes once around', () => {
    assert.deepEqual(orders('cyclic', equal(3), 4), [
      [0, 1, 2],
      [1, 2, 0],
      [2, 0, 1],
      [0, 1, 2],
    ])
  })

  for (const count of [1, 2, 3, 7, 200, 1000])
    test(`of ${count * 3} answers over ${count} endpoints each is first exactly 3 times`, () => {
      assert.deepEqual(firsts(orders('cyclic', equal(count), count * 3, 1), count), new Array(count).fill(3))
    })
})

describe('weighted', () => {
  const table: [weights: number[], turns: number[]][] = [
    [
      [5, 1, 1],
      [0, 0, 1, 0, 2, 0, 0],
    ],
    [[1], [0]],
    [[7], [0]],
    [
      [1, 1, 1],
      [0, 1, 2],
    ],
    [
      [3, 1],
      [0, 0, 1, 0],
    ],
    [
      [1, 3],
      [1, 0, 1, 1],
    ],
    [
      [2, 1],
      [0, 1, 0],
    ],
    [
      [4, 3, 2, 1],
      [0, 1, 2, 0, 1, 3, 0, 2, 1, 0],
    ],
  ]
  for (const [weights, turns] of table)
    test(`weights ${weights} take turns as ${turns.join(' ')}`, () =>
      assert.deepEqual(smoothTurns(weights), turns))

  test('weights with a common divisor have the same, short period', () => {
    assert.deepEqual(smoothTurns([50, 10, 10]), smoothTurns([5, 1, 1]))
    assert.deepEqual(smoothTurns([100, 100]), [0, 1])
  })

  test('the turns are those of nginx: the largest credit first, then the first endpoint', () => {
    const random = seeded(61)
    for (let round = 0; round < 200; round++) {
      const weights = Array.from({ length: 1 + Math.floor(random() * 9) }, () => 1 + Math.floor(random() * 6))
      const turns = smoothTurns(weights)
      const sum = weights.reduce((a, b) => a + b, 0)
      const credits = weights.map(() => 0)
      for (const turn of turns) {
        for (const [i, weight] of weights.entries()) credits[i]! += weight
        assert.equal(turn, credits.indexOf(Math.max(...credits)), String(weights))
        credits[turn]! -= sum
      }
    }
  })

  test('whatever the weights, each endpoint is first in exactly its share of a full period', () => {
    const random = seeded(60)
    for (let round = 0; round < 200; round++) {
      const weights = Array.from(
        { length: 1 + Math.floor(random() * 12) },
        () => 1 + Math.floor(random() * 100),
      )
      const sum = weights.reduce((a, b) => a + b, 0)
      const members = candidates(weights.map(weight => ({ weight })))
      assert.deepEqual(firsts(orders('weighted', members, sum), weights.length), weights, String(weights))
    }
  })

  test('a heavy endpoint is spread over the period, not served in one run', () => {
    const turns = smoothTurns([10, 5, 5]).join('')
    assert.equal(turns.length, 4)
    assert.doesNotMatch(turns + turns, /000/)
  })

  test('behind the first come the others in the order of the ring', () => {
    const members = candidates([{ weight: 1 }, { weight: 3 }, { weight: 1 }])
    for (const order of orders('weighted', members, 5))
      assert.deepEqual(
        order,
        [0, 1, 2].map(i => (order[0]! + i) % 3),
      )
  })
})

describe('random', () => {
  const pick = picker(policy('random'), equal(4))

  /** Pearson's statistic of how far these counts are from all alike. */
  const chiSquare = (counts: Iterable<number>, cells: number, draws: number) => {
    const expected = draws / cells
    const list = [...counts]
    const missing = (cells - list.length) * expected
    return list.reduce((sum, count) => sum + (count - expected) ** 2 / expected, missing)
  }
  const tally = (draws: number, draw: () => number[]) => {
    const counts = new Map<string, number>()
    for (let i = 0; i < draws; i++) {
      const key = draw().join()
      counts.set(key, (counts.get(key) ?? 0) + 1)
    }
    return counts
  }

  test('all 24 orders of 4 endpoints are equally likely (chi-square, 23 degrees, p > 0.001)', () => {
    const random = seeded(4)
    const counts = tally(24_000, () => pick(0, 4, random))
    assert.equal(counts.size, 24)
    const statistic = chiSquare(counts.values(), 24, 24_000)
    assert.ok(statistic < 49.7, `chi-square ${statistic}`)
  })

  test('the same bound finds out a shuffle that is not fair', () => {
    const random = seeded(4)
    // Swapping with any place, not only with those still open, is the classic mistake.
    const unfair = () => {
      const order = [0, 1, 2, 3]
      for (let i = 0; i < 4; i++) {
        const j = Math.floor(random() * 4)
        ;[order[i], order[j]] = [order[j]!, order[i]!]
      }
      return order
    }
    assert.ok(chiSquare(tally(24_000, unfair).values(), 24, 24_000) > 49.7)
  })

  test('with --answers 2 all 20 ordered pairs of 5 are equally likely (19 degrees, p > 0.001)', () => {
    const random = seeded(5)
    const pickOfFive = picker(policy('random'), equal(5))
    const counts = tally(20_000, () => pickOfFive(0, 2, random))
    assert.equal(counts.size, 20)
    assert.ok(chiSquare(counts.values(), 20, 20_000) < 43.8)
  })

  test('every order is a permutation, also at the ends of the range of the lots', () => {
    const random = seeded(6)
    const pickOfThousand = picker(policy('random'), equal(1000))
    const all = Array.from({ length: 1000 }, (_, i) => i)
    for (const lots of [random, random, () => 0, () => 1 - 2 ** -53])
      assert.deepEqual(
        pickOfThousand(0, 1000, lots).sort((a, b) => a - b),
        all,
      )
  })
})

describe('least-loaded', () => {
  const table: [loads: (number | undefined)[], firsts: number[]][] = [
    [
      [3, 1, 2],
      [1, 1, 1],
    ],
    [
      [2, 0, 0],
      [1, 2, 1],
    ],
    [
      [4, 4, 4],
      [0, 1, 2],
    ],
    [
      [1, undefined, 1],
      [0, 1, 2],
    ],
    [
      [4, undefined, 0],
      [2, 2, 2],
    ],
    [
      [undefined, undefined, undefined],
      [0, 1, 2],
    ],
    [
      [9, 5, 9, 5],
      [1, 3, 1],
    ],
  ]
  for (const [loads, expected] of table)
    test(`loads ${loads.map(load => load ?? 'unknown').join(', ')} put ${expected} first`, () => {
      const members = candidates(loads.map(activeConnections => ({ activeConnections })))
      assert.deepEqual(
        orders('least-loaded', members, 3).map(([first]) => first),
        expected,
      )
    })

  test('where none is as idle as the first, the order is that of the load', () => {
    const members = candidates([5, 1, 9, 3].map(activeConnections => ({ activeConnections })))
    assert.deepEqual(orders('least-loaded', members, 1), [[1, 3, 0, 2]])
  })

  test('those with equally few are first exactly equally often', () => {
    const members = candidates([0, 7, 0, 0].map(activeConnections => ({ activeConnections })))
    assert.deepEqual(firsts(orders('least-loaded', members, 300), 4), [100, 0, 100, 100])
  })
})

test('only least-loaded reads the load', () => {
  assert.deepEqual(
    policies.filter(({ readsLoad }) => readsLoad).map(({ name }) => name),
    ['least-loaded'],
  )
})

describe('--answers', () => {
  for (const each of policies)
    test(`${each.name} gives the first N of the order, and all of it where there are fewer`, () => {
      const pick = picker(each, candidates([{ weight: 2 }, { weight: 1 }, { weight: 5 }, { weight: 1 }]))
      for (let cursor = 0; cursor < 20; cursor++) {
        const whole = pick(cursor, 65535, seeded(cursor))
        assert.deepEqual(
          whole.toSorted((a, b) => a - b),
          [0, 1, 2, 3],
        )
        for (const count of [1, 2, 3, 4, 5])
          assert.deepEqual(pick(cursor, count, seeded(cursor)), whole.slice(0, count))
      }
    })

  test('with --answers 1 a cycle still gives each its turn', () => {
    assert.deepEqual(orders('cyclic', equal(3), 4, 1), [[0], [1], [2], [0]])
  })
})
