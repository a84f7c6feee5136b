import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Answer, cached, resolver } from '../../src/client/resolve.ts'
import { udpClient } from '../support/udp.ts'
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

test('the TTL of an answer is the lowest of its records, wherever that record stands', async t => {
  const server = await udpClient(t)
  let ttls: readonly number[] = []
  server.on('message', (query, { port, address }) => {
    // The question ends with a zero octet, the type and the class.
    const question = query.subarray(12, query.indexOf(0, 12) + 5)
    const header = Buffer.from([...query.subarray(0, 2), 0x84, 0, 0, 1, 0, ttls.length, 0, 0, 0, 0])
    const records = ttls.map((ttl, i) =>
      Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, ttl >> 8, ttl & 0xff, 0, 4, 192, 0, 2, i]),
    )
    server.send(Buffer.concat([header, question, ...records]), port, address)
  })
  for (const [order, lowest] of [
    [[300, 60, 600], 60],
    [[5, 600], 5],
    [[600, 30], 30],
  ] as const) {
    ttls = order
    const lookUp = resolver('echo.farm.test', server.address(), 20_000, 'each', new VirtualClock())
    const { ttlSeconds, addresses } = await lookUp()
    assert.deepEqual([ttlSeconds, addresses.length], [lowest, order.length])
  }
})
