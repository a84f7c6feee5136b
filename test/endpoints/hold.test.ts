import assert from 'node:assert/strict'
import { test } from 'node:test'
import { addressHold } from '../../src/endpoints/hold.ts'

/** mulberry32: the same seed gives the same numbers. */
function seeded(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const eight = Array.from({ length: 8 }, (_, i) => `127.0.4.${i + 1}`)

/** The resolver gives a random `count` of the eight. */
function polls(count: number, holdOf: number, times: number) {
  const random = seeded(1)
  const hold = addressHold(holdOf)
  const sizes: number[] = []
  let tooShortAt: number | undefined
  for (let poll = 0; poll < times; poll++) {
    const order = eight.map(address => [random(), address] as const).sort(([a], [b]) => a - b)
    hold.answer(order.slice(0, count).map(([, address]) => address))
    sizes.push(hold.addresses.length)
    if (hold.isTooShort) tooShortAt ??= poll
  }
  return { sizes, tooShortAt }
}

test('with a hold of 30, a resolver that gives a random 2 of 8 keeps at least 7 of 8, without a warning', () => {
  const { sizes, tooShortAt } = polls(2, 30, 2000)
  assert.ok(Math.min(...sizes.slice(60)) >= 7, String(Math.min(...sizes.slice(60))))
  assert.ok(sizes.slice(60).filter(size => size === 8).length > 1900)
  assert.ok(tooShortAt === undefined || tooShortAt > 60)
})

test('a hold that is too short for parts of a set is found out, whatever the size of the part', () => {
  for (const count of [1, 2, 3, 4]) assert.ok((polls(count, 2, 200).tooShortAt ?? 200) < 200, String(count))
})

test('an address leaves after the hold, and each answer that has it starts the count again', () => {
  const hold = addressHold(3)
  const steps: readonly (readonly [string, string])[] = [
    ['a b', 'a b'],
    ['a', 'a b'],
    ['a', 'a b'],
    ['b', 'a b'],
    ['', 'a b'],
    ['', 'b'],
    ['', ''],
    ['a', 'a'],
  ]
  for (const [answer, wanted] of steps) {
    hold.answer(answer.split(' ').filter(Boolean))
    assert.equal([...hold.addresses].sort().join(' '), wanted)
  }
})

test('with a hold of 1 an address leaves at once', () => {
  const hold = addressHold(1)
  hold.answer(['a', 'b'])
  hold.answer(['b'])
  assert.deepEqual(hold.addresses, ['b'])
})

test('rolling updates and restarts do not look like parts of a set', () => {
  const hold = addressHold(2)
  // Every replica gets a new address, one after the other.
  for (let i = 0; i < 100; i++) hold.answer([`a${i}`, `a${i + 1}`, `a${i + 2}`])
  // One replica is away for 5 of 15 polls, again and again.
  for (let i = 0; i < 300; i++) hold.answer(i % 15 < 5 ? ['b'] : ['b', 'c'])
  assert.equal(hold.isTooShort, false)
})
