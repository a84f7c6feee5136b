import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Authority, type AuthorityEvents } from '../../src/dns/authority.ts'
import type { Policy } from '../../src/dns/rotation.ts'
import { VirtualClock } from '../support/virtual-clock.ts'
import {
  APEX,
  addresses,
  CLASS,
  ednsQuery,
  endpoint,
  IXFR,
  parse,
  policy,
  query,
  RCODE,
  SERVICE,
  seeded,
  snapshot,
  TYPE,
  zoneOptions,
} from './message.ts'

function authority(services = [SERVICE], more: { policy?: Policy; maxAnswers?: number } = {}) {
  const compiled: string[] = []
  const tooMany: [string, number][] = []
  const events: AuthorityEvents = {
    failed: error => {
      throw error
    },
    compiled: service => compiled.push(service),
    tooMany: (service, records) => tooMany.push([service, records]),
  }
  const clock = new VirtualClock()
  const options = { ...zoneOptions, ...more, services, clock, random: seeded(1) }
  const created = new Authority(options, events)
  const ask = (message: Buffer) => parse(created.answer(message, 'udp'))
  return { authority: created, clock, compiled, tooMany, ask }
}

describe('the authority', () => {
  test('reports once that an answer has more than 100 records, unless --answers limits it', () => {
    const { authority: server, tooMany } = authority()
    server.update(snapshot(addresses(100)))
    assert.deepEqual(tooMany, [])
    server.update(snapshot(addresses(101)))
    server.update(snapshot(addresses(102)))
    assert.deepEqual(tooMany, [[SERVICE, 101]])
    const limited = authority([SERVICE], { maxAnswers: 3 })
    limited.authority.update(snapshot(addresses(101)))
    assert.deepEqual(limited.tooMany, [])
    assert.equal(limited.ask(ednsQuery(SERVICE, TYPE.TXT)).answers.length, 3)
  })

  test('says that the source failed, in answers with an OPT, until it has recovered', () => {
    const { authority: server, ask } = authority()
    server.update(snapshot(['10.0.0.1']))
    const says = () => ask(ednsQuery(SERVICE, TYPE.A)).octets.includes('source failed, last known endpoints')
    assert.equal(says(), false)
    server.sourceFailed(SERVICE, true)
    assert.equal(says(), true)
    server.sourceFailed(SERVICE, false)
    assert.equal(says(), false)
  })

  test('answers SERVFAIL for a service until its first Snapshot is ready, and the SOA always', () => {
    const { authority: server, ask } = authority()
    assert.equal(ask(query(SERVICE, TYPE.A)).rcode, RCODE.SERVFAIL)
    assert.equal(ask(query(APEX, TYPE.SOA)).answers.length, 1)
    server.update(snapshot(['10.0.0.1'], { ready: false }))
    assert.equal(ask(query(SERVICE, TYPE.A)).rcode, RCODE.SERVFAIL)
    server.update(snapshot(['10.0.0.1']))
    assert.deepEqual(ask(query(SERVICE, TYPE.A)).addresses, ['10.0.0.1'])
  })

  test('counts each change of membership, and nothing else', () => {
    const { authority: server, ask } = authority()
    const a = endpoint('10.0.0.1')
    const b = endpoint('10.0.0.2')
    const changes: [what: string, endpoints: (typeof a)[], grows: boolean][] = [
      ['ready', [], true],
      ['still empty', [], false],
      ['one more', [a], true],
      ['the same again', [{ ...a }], false],
      ['only a reason', [{ ...a, detail: 'other' }], false],
      ['only its load', [{ ...a, activeConnections: 5 }], false],
      ['another one', [a, b], true],
      ['another order', [b, a], true],
      ['a weight', [b, { ...a, weight: 2 }], true],
      ['a state', [b, { ...a, weight: 2, state: 'down' }], true],
      ['terminating', [b, { ...a, weight: 2, state: 'down', terminating: true }], true],
      ['no longer terminating', [b, { ...a, weight: 2, state: 'down' }], true],
      ['no longer answered', [b, { ...a, weight: 2, state: 'down', answered: false }], true],
      ['one less', [b], true],
    ]
    for (const [what, endpoints, grows] of changes) {
      const { changes, serial } = server
      server.update(snapshot(endpoints))
      assert.equal(server.changes, changes + Number(grows), what)
      assert.equal(server.serial, serial, 'all of them happen within one second')
      assert.equal(ask(query(APEX, TYPE.SOA)).answers[0]!.serial, server.serial)
    }
  })

  test('continues the cycle if a Snapshot changes nothing, and forgets departed endpoints', () => {
    const { authority: server, ask } = authority()
    const first = () => ask(query(SERVICE, TYPE.A)).addresses[0]
    server.update(snapshot(['10.0.0.1', '10.0.0.2', '10.0.0.3']))
    assert.deepEqual([first(), first()], ['10.0.0.1', '10.0.0.2'])
    server.update(snapshot(['10.0.0.1', '10.0.0.2', '10.0.0.3']))
    assert.deepEqual([first(), first()], ['10.0.0.3', '10.0.0.1'])
    assert.deepEqual(
      server.firsts().map(({ name, type, address, count }) => `${name} ${type} ${address} ${count}`),
      [`${SERVICE} A 10.0.0.1 2`, `${SERVICE} A 10.0.0.2 1`, `${SERVICE} A 10.0.0.3 1`],
    )
    server.update(snapshot(['10.0.0.2', '10.0.0.4']))
    assert.deepEqual(
      server.firsts().map(({ address, count }) => `${address} ${count}`),
      ['10.0.0.2 1'],
    )
  })

  test('keeps the services apart', () => {
    const other = `other.${APEX}`
    const { authority: server, ask } = authority([SERVICE, other])
    server.update(snapshot(['10.0.0.1', '10.0.0.2']))
    assert.equal(ask(query(other, TYPE.A)).rcode, RCODE.SERVFAIL)
    server.update(snapshot(['10.0.0.8', '10.0.0.9'], { service: other }))
    const first = (name: string) => ask(query(name, TYPE.A)).addresses[0]
    const seen = [SERVICE, other, other, SERVICE].map(first)
    assert.deepEqual(seen, ['10.0.0.1', '10.0.0.8', '10.0.0.9', '10.0.0.2'])
    assert.deepEqual(
      server.snapshots.map(({ service }) => service),
      [SERVICE, other],
    )
  })

  test('counts what became of each query, under few names', () => {
    const { authority: server, ask } = authority()
    server.update(snapshot(addresses(40)))
    const tell = () =>
      server
        .tallies()
        .flatMap(({ transport, types, rcodes, truncated, dropped }) => [
          ...[...types].map(([type, count]) => `${transport} ${type} ${count}`),
          ...[...rcodes].map(([rcode, count]) => `${transport} ${rcode} ${count}`),
          ...(truncated ? [`${transport} truncated ${truncated}`] : []),
          ...(dropped ? [`${transport} dropped ${dropped}`] : []),
        ])
    assert.deepEqual(tell(), [])
    const messages: [message: Buffer, type: string, rcode: string, truncated?: true][] = [
      [query(SERVICE, TYPE.AAAA), 'AAAA', 'NOERROR'],
      [query(SERVICE, TYPE.A), 'A', 'NOERROR', true],
      [query(`x.${APEX}`, 65432), 'other', 'NXDOMAIN'],
      [query(`x.${APEX}`, 258), 'other', 'NXDOMAIN'],
      [query(`x.${APEX}`, 257), 'CAA', 'NXDOMAIN'],
      [query(SERVICE, 65), 'HTTPS', 'NOERROR'],
      [query(APEX, IXFR), 'other', 'REFUSED'],
      [query(SERVICE, IXFR), 'other', 'NOTAUTH'],
      [query(SERVICE, TYPE.A, { class: CLASS.HS }), 'A', 'REFUSED'],
      [ednsQuery(SERVICE, TYPE.A, { version: 1 }), 'A', 'BADVERS'],
      [query(SERVICE, TYPE.A, { flags: 0x2000 }), 'A', 'NOTIMP'],
      [Buffer.alloc(12), 'other', 'FORMERR'],
    ]
    for (const [message, type, rcode, truncated] of messages) {
      const before = tell()
      ask(message)
      const news = tell().filter(line => !before.includes(line))
      const words = news.map(line => line.replace(/ \d+$/, ''))
      assert.deepEqual(words, [`udp ${type}`, `udp ${rcode}`, ...(truncated ? ['udp truncated'] : [])])
    }
    server.answer(Buffer.alloc(11), 'udp')
    server.answer(query(SERVICE, TYPE.A, { flags: 0x8000 }), 'tcp')
    const { types, rcodes } = server.tallies()[0]!
    for (const counts of [types, rcodes])
      assert.equal(
        [...counts.values()].reduce((a, b) => a + b),
        messages.length,
      )
    assert.deepEqual(
      server.tallies().map(({ transport, dropped }) => [transport, dropped]),
      [
        ['udp', 1],
        ['tcp', 1],
      ],
    )
  })

  test('compiles only the service that changed, and only if its records differ', () => {
    const services = Array.from({ length: 10 }, (_, i) => `s${i}.${APEX}`)
    const { authority: server, compiled, ask } = authority(services)
    assert.deepEqual(compiled.splice(0), services)
    for (const service of services) server.update(snapshot(addresses(1000), { service }))
    assert.deepEqual(compiled.splice(0), services)
    const endpoints = addresses(1000).map(address => endpoint(address))
    const changed = (i: number, change: object) => endpoints.with(i, { ...endpoints[i]!, ...change })
    const service = services[3]!
    server.update(snapshot(endpoints, { service }))
    server.update(snapshot(changed(500, { detail: 'another' }), { service }))
    server.update(snapshot(changed(500, { activeConnections: 7 }), { service }))
    assert.deepEqual(compiled.splice(0), [])
    server.update(snapshot(changed(500, { state: 'down', answered: false }), { service }))
    assert.deepEqual(compiled, [service])
    const answers = (name: string) => parse(server.answer(query(name, TYPE.A), 'tcp')).answers.length
    assert.deepEqual(services.slice(2, 5).map(answers), [1000, 999, 1000])
    assert.equal(ask(query(`10-0-1-244.${service}`, TYPE.A)).answers.length, 1)
  })

  test('compiles a service whose load changed under a policy that reads it, and keeps the serial', () => {
    const { authority: server, compiled, ask } = authority([SERVICE], { policy: policy('least-loaded') })
    const loads = (...list: number[]) =>
      snapshot(list.map((activeConnections, i) => endpoint(`10.0.0.${i}`, { activeConnections })))
    server.update(loads(1, 2))
    const { serial } = server
    compiled.length = 0
    server.update(loads(3, 2))
    assert.deepEqual(compiled, [SERVICE])
    assert.deepEqual(ask(query(SERVICE, TYPE.A)).addresses, ['10.0.0.1', '10.0.0.0'])
    assert.equal(server.serial, serial)
    server.update(loads(3, 2))
    assert.deepEqual(compiled, [SERVICE])
  })

  test('takes its serial from the clock that it receives', () => {
    const { authority: server, clock } = authority()
    assert.equal(server.serial, 1_800_000_000)
    clock.setWall(1_900_000_000.5)
    server.update(snapshot(['10.0.0.1']))
    assert.equal(server.serial, 1_900_000_000)
  })

  test('counts thousands of endpoints that come and go, and each begins with nothing', () => {
    const { authority: server } = authority()
    const ask = (name: string, type: number) => server.answer(query(name, type), 'tcp')
    for (let generation = 0; generation < 20; generation++) {
      const list = Array.from({ length: 300 }, (_, i) => `10.${generation}.${i >> 8}.${i & 255}`)
      server.update(snapshot(list))
      for (let i = 0; i < 300; i++) ask(SERVICE, TYPE.A)
      for (let i = 0; i < 600; i++) ask(`_echo._tcp.${SERVICE}`, TYPE.SRV)
      const counts = server.firsts().map(({ name, type, count }) => `${name} ${type} ${count}`)
      assert.deepEqual(counts, [
        ...list.map(() => `${SERVICE} A 1`),
        ...list.map(() => `_echo._tcp.${SERVICE} SRV 2`),
      ])
    }
  })
})
