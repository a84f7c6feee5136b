import assert from 'node:assert/strict'
import { test } from 'node:test'
import { holderOf, roomFor } from '../../src/net/eviction.ts'

const held = (holder: string, idleSince?: number) => ({ holder, idleSince })

test('below the cap a connection is admitted', () => {
  assert.equal(roomFor([], 'a', 8), 'admit')
  assert.equal(roomFor([held('a', 1), held('b')], 'a', 8), 'admit')
})

test('at the cap the connection that has been idle longest makes room', () => {
  const oldest = held('b', 1)
  assert.deepEqual(roomFor([held('a', 2), oldest, held('c', 3), held('d')], 'e', 4), { evict: oldest })
})

test('a connection with a request under way is never evicted', () => {
  assert.equal(roomFor([held('a'), held('b'), held('c'), held('d')], 'e', 4), 'refuse')
})

test('a holder of a quarter of the cap replaces its own connection, also below the cap', () => {
  const own = held('a', 5)
  assert.deepEqual(roomFor([held('b', 1), held('a', 6), own], 'a', 8), { evict: own })
  assert.equal(roomFor([held('b', 1), held('a'), held('a')], 'a', 8), 'refuse')
  assert.equal(roomFor([held('b', 1), held('a', 6), own], 'c', 8), 'admit')
})

test('a holder is an IPv4 address or the /64 of an IPv6 address', () => {
  assert.equal(holderOf('192.0.2.1'), '192.0.2.1')
  assert.equal(holderOf('::ffff:192.0.2.1'), '192.0.2.1')
  assert.equal(holderOf('2001:db8:1:2:3:4:5:6'), '2001:db8:1:2')
  assert.equal(holderOf('2001:db8:1:2::6'), '2001:db8:1:2')
  assert.equal(holderOf('2001:db8::6'), '2001:db8:0:0')
  assert.equal(holderOf('::1'), '0:0:0:0')
  assert.equal(holderOf('1:2:3::4:5:6:7'), '1:2:3:0')
  assert.equal(holderOf('fe80::1%eth0'), 'fe80:0:0:0')
})
