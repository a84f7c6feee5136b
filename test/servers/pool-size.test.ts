import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  decide,
  died,
  MAX_RATE,
  newHistory,
  type PoolDecision,
  type PoolHistory,
  type PoolLimits,
  WINDOW_TICKS,
} from '../../src/servers/pool-size.ts'
import type { Children, ChildState } from '../../src/servers/service.ts'

type Scoreboard = Children['scoreboard']
type Member = { pid: number; state: ChildState; served: number }

const limits: PoolLimits = { minSpare: 2, maxSpare: 6, maxChildren: 200 }
const letters: Record<string, ChildState> = { s: 'starting', i: 'idle', b: 'busy', x: 'stopping' }

/** `iibs`: two idle, one busy, one starting; pids count from 1. */
const board = (text: string, served: readonly number[] = []): Scoreboard =>
  [...text].map((letter, i) => ({ pid: i + 1, state: letters[letter]!, served: served[i] ?? 0 }))

/** Decisions in a row about the same scoreboard. */
function ticks(scoreboard: Scoreboard, count: number, history = newHistory, wanted = limits) {
  return Array.from({ length: count }, () => {
    const decision = decide(scoreboard, wanted, history)
    history = decision.history
    return decision
  })
}

test('with enough idle processes nothing is made or ended', () => {
  for (const text of ['ii', 'iiiiii', 'iibbbbbb', 'bbiibb'])
    for (const { fork, stop } of ticks(board(text), 30)) assert.deepEqual([fork, stop], [0, undefined], text)
})

test('while some are missing it makes 1, 2, 4 … 32 a tick, and 1 again after it had enough', () => {
  const wanted = { minSpare: 100, maxSpare: 200, maxChildren: 1000 }
  const growing = ticks(board('b'), 8, newHistory, wanted)
  assert.deepEqual(
    growing.map(({ fork }) => fork),
    [1, 2, 4, 8, 16, 32, 32, 32],
  )
  assert.equal(MAX_RATE, 32)
  const satisfied = decide(board('i'.repeat(100)), wanted, growing[7]!.history)
  assert.equal(satisfied.fork, 0)
  assert.equal(decide(board('b'), wanted, satisfied.history).fork, 1)
})

test('it makes no more than are missing; those that are starting are not missing', () => {
  const fast: PoolHistory = { ...newHistory, rate: 32 }
  const cases: [board: string, fork: number][] = [
    ['', 2],
    ['b', 2],
    ['i', 1],
    ['s', 1],
    ['is', 0],
    ['ss', 0],
    ['bbbs', 1],
    // One that is about to end helps nobody.
    ['x', 2],
    ['xi', 1],
  ]
  for (const [text, fork] of cases) assert.equal(decide(board(text), limits, fast).fork, fork, text)
})

test('whatever lives counts towards the limit, also what is starting or stopping', () => {
  const fast: PoolHistory = { ...newHistory, rate: 32 }
  const wanted = { minSpare: 4, maxSpare: 8, maxChildren: 6 }
  const cases: [board: string, fork: number][] = [
    ['', 4],
    ['bbb', 3],
    ['bbbbb', 1],
    ['bbbbbb', 0],
    ['xxxxxx', 0],
    ['xxxxx', 1],
    ['ssbbbb', 0],
    ['sxbbi', 1],
    // More than allowed, as after a change of mind: none, and not fewer than none.
    ['bbbbbbbb', 0],
  ]
  for (const [text, fork] of cases) assert.equal(decide(board(text), wanted, fast).fork, fork, text)
})

test('too many idle are ended after a whole window, one a tick', () => {
  const many = ticks(board('iiiiiiiii'), WINDOW_TICKS + 5)
  assert.deepEqual(
    many.map(({ stop }) => stop !== undefined),
    [...Array(WINDOW_TICKS).fill(false), ...Array(5).fill(true)],
  )
  assert.ok(many.every(({ fork }) => fork === 0))
})

test('those that start, serve or stop are not idle: they end none', () => {
  for (const text of ['iiiiiisss', 'iiiiiibbbb', 'iiiiiixxx'])
    for (const { stop } of ticks(board(text), 30)) assert.equal(stop, undefined, text)
})

test('a dip in the window begins it anew', () => {
  const almost = ticks(board('iiiiiiiii'), WINDOW_TICKS)
  const dip = decide(board('iiiiiibbb'), limits, almost[WINDOW_TICKS - 1]!.history)
  assert.equal(dip.stop, undefined)
  const after = ticks(board('iiiiiiiii'), WINDOW_TICKS + 1, dip.history)
  assert.deepEqual(
    after.map(({ stop }) => stop !== undefined),
    [...Array(WINDOW_TICKS).fill(false), true],
  )
})

test('of the idle ones that which served most is ended first', () => {
  const ripe: PoolHistory = { ...newHistory, surplusTicks: WINDOW_TICKS }
  const cases: [board: string, served: number[], stop: number][] = [
    ['iiiiiii', [1, 2, 9, 4, 5, 6, 7], 3],
    ['biiiiiii', [99, 2, 3, 4, 50, 6, 7, 8], 5],
    ['iiiiiiix', [0, 0, 0, 0, 0, 0, 1, 99], 7],
    // Among equals the oldest.
    ['iiiiiii', [3, 3, 3, 3, 3, 3, 3], 1],
  ]
  for (const [text, served, stop] of cases)
    assert.equal(decide(board(text, served), limits, ripe).stop, stop, `${text} ${served}`)
})

test('processes that die as soon as they have started are replaced after 1, 2, 4 … 32 ticks', () => {
  let history = newHistory
  const waited: number[] = []
  for (let death = 0; death < 8; death++) {
    history = died(history, true)
    for (let tick = 0; ; tick++) {
      const decision = decide(board(''), limits, history)
      history = decision.history
      if (decision.fork === 0) continue
      waited.push(tick)
      break
    }
  }
  assert.deepEqual(waited, [1, 2, 4, 8, 16, 32, 32, 32])
})

test('of several that die together as soon as they have started only one counts', () => {
  let history = newHistory
  for (let death = 0; death < 5; death++) history = died(history, true)
  assert.deepEqual([history.holdTicks, history.earlyDeaths, history.owed], [1, 1, 5])
})

test('early deaths are forgotten when the pool has what it wants', () => {
  const died5 = { ...newHistory, earlyDeaths: 5 }
  assert.equal(decide(board('iis'), limits, died5).history.earlyDeaths, 5, 'one may still die of its start')
  assert.equal(decide(board('iib'), limits, died5).history.earlyDeaths, 0)
})

test('one that dies later than at its start is replaced at once, and the hold is forgotten', () => {
  let history = newHistory
  for (let death = 0; death < 5; death++) history = died({ ...history, holdTicks: 0 }, true)
  assert.equal(history.holdTicks, 16)
  history = died(history, false)
  assert.equal(history.holdTicks, 0)
  assert.ok(decide(board('bb'), limits, history).fork > 0)
  assert.equal(died(history, true).holdTicks, 1)
})

test('the dead are replaced though enough are idle, as far as the limit allows', () => {
  const twice = died(died({ ...newHistory, rate: 4 }, false), false)
  const replaced = decide(board('iiiibb'), limits, twice)
  assert.equal(replaced.fork, 2)
  assert.equal(decide(board('iiiibbss'), limits, replaced.history).fork, 0, 'once each')
  const tight = { ...limits, maxChildren: 7 }
  const one = decide(board('iiiibb'), tight, twice)
  assert.equal(one.fork, 1)
  assert.equal(one.history.owed, 1, 'still owed')
})

/** Numbers from 0 up to 1, the same in every run (mulberry32). */
function randomNumbers(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Pools of all sizes whose processes start, serve, end and die at random, the same in every run. */
function play(
  check: (members: Scoreboard, wanted: PoolLimits, decision: PoolDecision, history: PoolHistory) => void,
): void {
  const random = randomNumbers(862)
  const upTo = (most: number) => Math.floor(random() * (most + 1))
  for (let game = 0; game < 300; game++) {
    const minSpare = 1 + upTo(8)
    const wanted = { minSpare, maxSpare: minSpare + upTo(8), maxChildren: minSpare + upTo(60) }
    let history = newHistory
    let pids = 0
    let members: Member[] = []
    for (let tick = 0; tick < 150; tick++) {
      const decision = decide(members, wanted, history)
      check(members, wanted, decision, history)
      history = decision.history
      for (const member of members) if (member.pid === decision.stop) member.state = 'stopping'
      for (let i = 0; i < decision.fork; i++) members.push({ pid: ++pids, state: 'starting', served: 0 })
      const calm = random() < 0.7
      members = members.filter(member => {
        if (member.state === 'stopping') return random() < 0.5
        if (!calm && random() < 0.05) {
          history = died(history, member.served === 0)
          return false
        }
        if (member.state === 'starting' && random() < 0.7) member.state = 'idle'
        else if (member.state === 'idle' && random() < (game % 10) / 10) {
          member.state = 'busy'
          member.served++
        } else if (member.state === 'busy' && random() < 0.3) member.state = 'idle'
        return true
      })
    }
  }
}

test('whatever happens, there are never more than the limit, and only too many idle ones are ended', () => {
  play((members, { maxChildren, maxSpare }, { fork, stop, history }) => {
    assert.ok(Number.isInteger(fork) && fork >= 0 && fork <= MAX_RATE)
    assert.ok(members.length + fork <= maxChildren, 'never over the limit')
    assert.ok(history.rate >= 1 && history.rate <= MAX_RATE)
    assert.ok(history.owed >= 0 && history.holdTicks >= 0 && history.holdTicks <= 32)
    if (stop === undefined) return
    const idle = members.filter(({ state }) => state === 'idle')
    assert.ok(idle.length > maxSpare && idle.some(({ pid }) => pid === stop))
  })
})

test('whatever happens, none is made in the tick in which one is ended', () => {
  play((members, wanted, { fork, stop }, history) => {
    const told = JSON.stringify({ members, wanted, history })
    assert.ok(fork === 0 || stop === undefined, `${fork} made, ${stop} ended, given ${told}`)
  })
})

test('from no load to 20 clients and back: all are served soon, and the pool returns to its most spare', () => {
  let history = newHistory
  let pids = 0
  let members: Member[] = []
  const idle = () => members.filter(({ state }) => state === 'idle')
  const busy = () => members.filter(({ state }) => state === 'busy')
  /** A process starts within a tick, and ends within one. */
  const tick = (load: number) => {
    const { fork, stop, history: next } = decide(members, limits, history)
    history = next
    members = members.filter(({ state }) => state !== 'stopping')
    for (const member of members) {
      if (member.state === 'starting') member.state = 'idle'
      if (member.pid === stop) member.state = 'stopping'
    }
    for (let i = 0; i < fork; i++) members.push({ pid: ++pids, state: 'starting', served: 0 })
    for (const member of idle().slice(0, Math.max(0, load - busy().length)))
      Object.assign(member, { state: 'busy', served: member.served + 1 })
    for (const member of busy().slice(load)) member.state = 'idle'
  }
  for (let i = 0; i < 5; i++) tick(0)
  assert.deepEqual([members.length, idle().length], [2, 2], 'no load: the least spare')
  let needed = 0
  for (; busy().length < 20; needed++) {
    assert.ok(needed < 30, `${busy().length} are served after 30 ticks`)
    tick(20)
  }
  for (let i = 0; i < 5; i++) tick(20)
  assert.equal(busy().length, 20)
  assert.ok(idle().length >= limits.minSpare && idle().length <= limits.maxSpare)
  const most = members.length
  for (let i = 0; i < WINDOW_TICKS; i++) tick(0)
  assert.equal(members.length, most, 'nothing ends before the window does')
  for (let i = 0; i < most; i++) tick(0)
  assert.equal(members.length, limits.maxSpare)
  for (let i = 0; i < 50; i++) tick(0)
  assert.equal(members.length, limits.maxSpare)
})
