/** Pools that feed an Authority: what a change costs. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { ProbeResult, ProbeTarget } from '../../src/client/probe.ts'
import { Authority } from '../../src/dns/authority.ts'
import { policies } from '../../src/dns/rotation.ts'
import { endpoint } from '../../src/endpoints/endpoint.ts'
import { startPool } from '../../src/endpoints/pool.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

test('of two services with 1,000 endpoints only the one that changed is compiled, once for 200 results', async t => {
  const clock = new VirtualClock()
  const services = ['one.farm.test', 'two.farm.test']
  const compiled: string[] = []
  const authority = new Authority(
    {
      ...{
        apex: 'farm.test',
        ttlSeconds: 1,
        nsAddresses: ['127.0.0.1'],
        port: 7,
        policy: policies[0]!,
        services,
      },
      ...{ maxAnswers: Number.POSITIVE_INFINITY, serverId: 'test', version: '0', clock, random: () => 0 },
    },
    { failed: error => assert.fail(error), compiled: service => void compiled.push(service) },
  )
  const down = new Set<string>()
  const probe = async ({ address }: ProbeTarget): Promise<ProbeResult> =>
    down.has(address) ? { ok: false, detail: 'failed', draining: false } : { ok: true, detail: 'passed' }
  for (const [n, service] of services.entries()) {
    const addresses = Array.from({ length: 1000 }, (_, i) => `10.${n}.${i >> 8}.${i & 255}`)
    const pool = startPool(
      {
        ...{
          service,
          checks: [{ kind: 'udp', port: 7 }],
          intervalMs: 1000,
          timeoutMs: 500,
          rise: 1,
          fall: 1,
        },
        source: async ({ publish }) => publish(addresses.map(address => endpoint(address))),
        ...{ fail: 'open', watchLoad: false, clock, random: () => 0, probe },
      },
      { snapshot: snapshot => authority.update(snapshot), state() {}, checked() {}, source() {}, note() {} },
    )
    t.after(() => pool.close())
  }
  await clock.advance(500)
  assert.deepEqual(
    authority.snapshots.map(({ ready }) => ready),
    [true, true],
  )
  compiled.length = 0
  await clock.advance(5000)
  assert.deepEqual(compiled, [])
  for (let i = 0; i < 200; i++) down.add(`10.1.0.${i}`)
  await clock.advance(1000)
  assert.deepEqual(compiled, ['two.farm.test'])
})
