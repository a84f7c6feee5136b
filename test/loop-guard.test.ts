import assert from 'node:assert/strict'
import { test } from 'node:test'
import { GUARD_ENTRIES, GUARD_LIMIT, loopGuard } from '../src/loop-guard.ts'
import { VirtualClock } from './support/virtual-clock.ts'

const BELOW = 32_768
/** The guard then drops every datagram that it may drop. */
const always = () => 0

test('a peer that sends 50 datagrams a second from a low port loses nothing', async () => {
  const clock = new VirtualClock()
  const guard = loopGuard(BELOW, clock, always)
  for (let i = 0; i < 500; i++) {
    assert.equal(guard.drops('192.0.2.1', 7007), false)
    await clock.advance(20)
  }
})

test('more than 64 datagrams within a second are too many, and a second later all is well again', async () => {
  const clock = new VirtualClock()
  const guard = loopGuard(BELOW, clock, always)
  const burst = () => Array.from({ length: GUARD_LIMIT + 2 }, () => guard.drops('192.0.2.1', 7007))
  const expected = [...Array(GUARD_LIMIT).fill(false), true, true]
  assert.deepEqual(burst(), expected)
  await clock.advance(999)
  assert.equal(guard.drops('192.0.2.1', 7007), true)
  await clock.advance(1000)
  assert.deepEqual(burst(), expected)
})

test('of a peer that sends too many an eighth is dropped, whatever it sends', () => {
  let turn = 0
  const guard = loopGuard(BELOW, new VirtualClock(), () => (turn++ % 8) / 8)
  const dropped = Array.from({ length: GUARD_LIMIT + 800 }, () => guard.drops('::1', 7007)).filter(Boolean)
  assert.equal(dropped.length, 100)
})

test('ports of the ephemeral range are not guarded, and none is when the guard is off', () => {
  const clock = new VirtualClock()
  for (const [below, port] of [
    [BELOW, BELOW],
    [0, 7007],
  ] as const) {
    const guard = loopGuard(below, clock, always)
    for (let i = 0; i < 1000; i++) {
      assert.equal(guard.drops('192.0.2.1', port), false)
      assert.equal(guard.dropsEncoded(Uint8Array.of(192, 0, 2, 1), 4, port), false)
    }
  }
})

test('peers are told apart by address and port, as texts and as octets', () => {
  const guard = loopGuard(BELOW, new VirtualClock(), always)
  // Fewer than the table has entries: some of them may take over the entry of another, and none is blocked.
  for (let round = 0; round < GUARD_LIMIT; round++)
    for (let host = 0; host < 20; host++)
      for (const port of [7007, 7008]) {
        assert.equal(guard.drops(`192.0.2.${host}`, port), false)
        assert.equal(guard.dropsEncoded(Uint8Array.of(0, 2, port >> 8, port & 255, 10, host), 6, port), false)
      }
})

test('a flood of forged addresses takes over entries, and grows nothing', () => {
  const guard = loopGuard(BELOW, new VirtualClock(), always)
  for (let i = 0; i < 10 * GUARD_ENTRIES; i++)
    assert.equal(guard.drops(`10.0.${i >> 8}.${i & 255}`, 7007), false)
})
