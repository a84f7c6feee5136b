import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Pace } from '../../src/client/pace.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

/**
 * Runs the clock of an open loop; returns when each operation was released. `lateMs`: how late each timer is.
 */
async function releases(ratePerSecond: number, durationMs: number, lateMs = 0): Promise<number[]> {
  const clock = new VirtualClock()
  // A clock does not start at 0.
  await clock.advance(1234.5)
  const pace = new Pace(ratePerSecond, durationMs)
  pace.start(clock.now())
  const times: number[] = []
  const tick = () => {
    const from = pace.released
    pace.release(clock.now())
    for (let i = from; i < pace.released; i++) times.push(clock.now() - 1234.5)
    const waitMs = pace.waitMs(clock.now())
    if (waitMs !== undefined) clock.after(waitMs + lateMs, tick)
  }
  tick()
  await clock.advance(2 * durationMs)
  assert.equal(clock.waiting, 0)
  assert.equal(times.length, pace.total)
  return times
}

test('each operation is released once, when it is due, at any rate', async () => {
  for (const rate of [1, 3, 7, 300, 999]) {
    const times = await releases(rate, 1000)
    assert.equal(times.length, rate)
    for (const [i, at] of times.entries()) assert.ok(Math.abs(at - (i * 1000) / rate) < 1e-6, `${rate}: ${i}`)
  }
})

test('a late timer releases all that became due meanwhile, and delays nothing that follows', async () => {
  const times = await releases(1000, 100, 7.25)
  assert.deepEqual(times.slice(0, 10), [0, 8.25, 8.25, 8.25, 8.25, 8.25, 8.25, 8.25, 8.25, 16.25])
  for (const [i, at] of times.entries()) assert.ok(at >= i && at < i + 8.5, `${i} at ${at}`)
})

test('a fraction of an operation counts as one, and the end of the run releases the rest', () => {
  const pace = new Pace(3, 500)
  assert.deepEqual([pace.total, pace.released], [2, 0])
  pace.start(100)
  pace.release(100)
  assert.deepEqual([pace.released, Math.round(pace.waitMs(100)!), Math.round(pace.dueMs(1))], [1, 333, 433])
  pace.releaseAll()
  assert.deepEqual([pace.released, pace.waitMs(500)], [2, undefined])
  pace.release(200)
  assert.equal(pace.released, 2)
})
