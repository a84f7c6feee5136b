import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Answer, cached } from '../../src/client/resolve.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

test('mode each asks every time, once asks once, ttl asks again after the TTL; a failure is not kept', async () => {
  const answers = async (mode: 'each' | 'once' | 'ttl') => {
    const clock = new VirtualClock()
    let asked = 0
    const ask = async (): Promise<Answer> => {
      asked++
      if (asked === 1) throw new Error('no')
      return { addresses: [`${asked}`], ttlSeconds: 5 }
    }
    const lookUp = cached(ask, mode, clock)
    const failures = await Promise.allSettled([lookUp(), ...(mode === 'each' ? [] : [lookUp()])])
    assert.ok(failures.every(({ status }) => status === 'rejected'))
    const got: (string | undefined)[] = []
    for (const seconds of [0, 0, 4.9, 5, 9.9, 10]) {
      await clock.advance(seconds * 1000 - clock.now())
      got.push(...(await Promise.all([lookUp(), lookUp()])).map(({ addresses }) => addresses[0]))
    }
    return got.join(' ')
  }
  assert.equal(await answers('each'), '2 3 4 5 6 7 8 9 10 11 12 13')
  assert.equal(await answers('once'), '2 2 2 2 2 2 2 2 2 2 2 2')
  assert.equal(await answers('ttl'), '2 2 2 2 2 2 3 3 3 3 4 4')
})
