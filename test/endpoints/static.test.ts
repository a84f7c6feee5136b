import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseSource } from '../../src/commands/values.ts'
import { endpoint } from '../../src/endpoints/endpoint.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

test('a static source publishes its list once, with weights and equal addresses as equal texts', async () => {
  const published: unknown[] = []
  const source = parseSource('static:10.0.0.1*3,10.0.0.2,2001:DB8:0::1*100,::ffff:10.0.0.3')({ hold: 2 })
  const sink = {
    publish: (list: unknown) => published.push(list),
    fail: assert.fail,
    note: () => assert.fail(),
  }
  await source(sink, new AbortController().signal, new VirtualClock(), () => 0)
  const common = { ready: true, serving: true, terminating: false }
  assert.deepEqual(published, [
    [
      { address: '10.0.0.1', weight: 3, ...common },
      { address: '10.0.0.2', weight: 1, ...common },
      { address: '2001:db8::1', weight: 100, ...common },
      { address: '::ffff:a00:3', weight: 1, ...common },
    ],
  ])
  assert.deepEqual(endpoint('10.0.0.2'), { address: '10.0.0.2', weight: 1, ...common })
})
