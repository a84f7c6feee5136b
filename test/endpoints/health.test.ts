import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { ProbeResult } from '../../src/client/probe.ts'
import { ALWAYS_UP, type Health, nextHealth, relistedHealth, UNCHECKED } from '../../src/endpoints/health.ts'

const results: Readonly<Record<string, ProbeResult>> = {
  '+': { ok: true, detail: 'pass', activeConnections: 5 },
  '-': { ok: false, detail: 'fail', draining: false },
  d: { ok: false, detail: 'drains', draining: true },
}

test('health follows its results: the first decides at once, rise and fall in a row, draining at once', () => {
  // [rise, fall, results, the state after each: Up, Down, draining (L)]
  const table: readonly (readonly [number, number, string, string])[] = [
    [3, 3, '+', 'U'],
    [3, 3, '-', 'D'],
    [3, 3, 'd', 'L'],
    [2, 3, '+--+--+', 'UUUUUUU'],
    [2, 3, '+---', 'UUUD'],
    [3, 3, '---+', 'DDDU'],
    [3, 2, '+---+-++-+++', 'UUDDDDDDDDDU'],
    [1, 1, '+-+-', 'UDUD'],
    [2, 100, '+d', 'UL'],
    [2, 2, '-d', 'DL'],
    [2, 2, '+-d--', 'UULLD'],
    [2, 3, 'd--d---', 'LLLLLLD'],
    [2, 2, 'd+-+-++', 'LLLLLLU'],
    [2, 2, 'd++', 'LLU'],
    [1, 1, 'd+d-', 'LULD'],
  ]
  for (const [rise, fall, sequence, expected] of table) {
    let health: Health = UNCHECKED
    let states = ''
    for (const mark of sequence) {
      health = nextHealth(health, results[mark]!, rise, fall)
      states += { up: 'U', down: 'D', draining: 'L', checking: '?' }[health.state]
      assert.equal(health.passes * health.failures, 0)
      assert.equal(health.detail, results[mark]!.detail)
      assert.equal(health.activeConnections, mark === '+' ? 5 : undefined)
    }
    assert.equal(states, expected, `rise ${rise}, fall ${fall}, ${sequence}`)
  }
  const own: ProbeResult = { ok: false, detail: 'EMFILE', draining: false, own: true }
  const health = nextHealth(UNCHECKED, results['+']!, 2, 2)
  assert.equal(nextHealth(health, own, 2, 1), health)
  assert.equal(nextHealth(ALWAYS_UP, results['-']!, 2, 2).state, 'up')
})

test('an endpoint that is listed again keeps its health, and its next pass suffices if it is not healthy', () => {
  const after = (marks: string, health: Health) =>
    [...marks].reduce((last, mark) => nextHealth(last, results[mark]!, 3, 2), health)
  for (const marks of ['-', 'd', '+--', 'd-']) {
    const relisted = relistedHealth(after(marks, UNCHECKED))
    assert.equal(relisted.state, after(marks, UNCHECKED).state)
    assert.equal(after('+', relisted).state, 'up')
  }
  // A healthy one needs `rise` passes after its next failure, as ever.
  const up = relistedHealth(after('+', UNCHECKED))
  assert.deepEqual([up.state, after('--+', up).state], ['up', 'down'])
})
