import assert from 'node:assert/strict'
import { createHistogram } from 'node:perf_hooks'
import { test } from 'node:test'
import { evenness, toJson, toProgress, toText } from '../../src/client/report.ts'
import type { LoadResult } from '../../src/client/tally.ts'

const load = {
  transport: 'tcp',
  host: 'echo.test',
  port: 7,
  connections: 4,
  outstanding: 2,
  size: 32,
  rate: 0,
  durationMs: 2000,
  timeoutMs: 1000,
  dns: { address: '::1', port: 53 },
  resolve: 'each',
  newConnection: false,
  seed: 1,
} as const

function histogram(...ms: number[]) {
  const latency = createHistogram({ lowest: 1, highest: 100e9, figures: 3 })
  for (const value of ms) latency.record(value * 1e6)
  return latency
}

const counts = { lost: 1, wrong: 0, late: 0, failed: 2 }
const result: LoadResult = {
  elapsedMs: 2000,
  behind: 3,
  unsent: 4,
  reasons: { ECONNREFUSED: 2 },
  failedLookUps: 5,
  latency: histogram(1, 2, 3, 4),
  replicas: [
    { address: '127.0.0.2', connections: 3, done: 4, ...counts, latency: histogram(1, 2, 3, 4) },
    { address: '127.0.0.3', connections: 0, done: 0, ...counts, latency: histogram() },
  ],
}

test('χ² and max/mean of known counts', () => {
  // The usual example of textbooks: a die that is thrown sixty times.
  const die = evenness([5, 8, 9, 8, 10, 20])
  assert.ok(die && Math.abs(die.chiSquare - 13.4) < 1e-9)
  assert.deepEqual([die.degreesOfFreedom, die.maxOverMean], [5, 2])
  assert.deepEqual(evenness([7, 7, 7]), { chiSquare: 0, degreesOfFreedom: 2, maxOverMean: 1 })
  assert.deepEqual(evenness([9, 0, 0]), { chiSquare: 18, degreesOfFreedom: 2, maxOverMean: 3 })
  assert.deepEqual([evenness([]), evenness([0, 0])], [undefined, undefined])
})

test('the JSON has units in its names, shares that add up, and null where no operation was done', () => {
  const { replicas, latencyMs, ...json } = JSON.parse(JSON.stringify(toJson(load, result)))
  const { size, rate, ...asked } = load
  assert.deepEqual(json, {
    ...asked,
    sizeOctets: size,
    ratePerSecond: rate,
    dns: '[::1]:53',
    elapsedMs: 2000,
    operationsPerSecond: 2,
    ...{ done: 4, lost: 2, wrong: 0, late: 0, failed: 9 },
    ...{ failedLookUps: 5, failedFor: { ECONNREFUSED: 2 }, behind: 3, unsent: 4 },
    evennessOfConnections: { chiSquare: 3, degreesOfFreedom: 1, maxOverMean: 2 },
  })
  assert.deepEqual(Object.keys(latencyMs), ['p50', 'p90', 'p99', 'p999', 'max'])
  assert.ok(Math.abs(latencyMs.p50 - 2) < 0.01 && Math.abs(latencyMs.max - 4) < 0.01)
  assert.deepEqual(replicas, [
    { address: '127.0.0.2', connections: 3, done: 4, ...counts, shareOfOperations: 1, latencyMs },
    { address: '127.0.0.3', connections: 0, done: 0, ...counts, shareOfOperations: 0, latencyMs: null },
  ])
})

test('the text says what was run, and has a line for each replica, also for one that was never chosen', () => {
  const lines = toText(load, result).split('\n')
  assert.match(lines[0]!, /^tcp echo\.test port 7, 32 octets, closed loop, 4 connections, up to 2 in flight/)
  assert.equal(lines[1], '2 operations/s for 2.0 s: 4 done, 2 lost, 0 wrong, 0 late, 9 failed')
  assert.equal(lines[2], 'failed for: 2 ECONNREFUSED')
  assert.match(lines[3]!, /^latency in ms: p50 2\.\d+ {2}p90 .* p99\.9 .* max 4\.\d+$/)
  assert.match(lines[6]!, /^127\.0\.0\.2 +3 +4 +100\.0 +2\.\d+ +4\.\d+ +4\.\d+$/)
  assert.match(lines[7]!, /^127\.0\.0\.3 +0 +0 +0\.0 +- +- +-$/)
  assert.equal(lines[9], 'evenness of connections: χ² 3.00 (degrees of freedom: 1), max/mean 2.00')
  const open = toText({ ...load, rate: 1500 }, { ...result, replicas: [], latency: histogram() })
  assert.match(open, /open loop of 1,500\/s/)
  assert.match(open, /^3 were sent more than 1 ms after they were due, 4 never$/m)
  assert.doesNotMatch(open, /latency in|evenness|NaN|Infinity/)
})

test('the line of progress has what was done in the last second', () => {
  const line = '2 s: 3 operations/s; 4 done, 2 lost, 0 wrong, 0 late, 9 failed'
  assert.equal(toProgress(result, 1), line)
})
