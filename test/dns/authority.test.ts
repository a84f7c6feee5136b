import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Authority, type AuthorityEvents } from '../../src/dns/authority.ts'
import {
  APEX,
  CLASS,
  ednsQuery,
  endpoint,
  IXFR,
  parse,
  query,
  RCODE,
  SERVICE,
  snapshot,
  TYPE,
  zoneOptions,
} from './message.ts'

function authority(services = [SERVICE]) {
  const seen: string[] = []
  const events: AuthorityEvents = {
    answered: (transport, type, rcode, truncated, seconds) => {
      assert.ok(seconds >= 0 && seconds < 60)
      seen.push(`${transport} ${type} ${rcode} ${truncated}`)
    },
    dropped: transport => seen.push(`${transport} dropped`),
    failed: error => {
      throw error
    },
  }
  const made = new Authority(
    { ...zoneOptions, services, maxAnswers: 65535, serverId: 'me', version: '1' },
    events,
  )
  return { authority: made, seen, ask: (message: Buffer) => parse(made.answer(message, 'udp')?.octets) }
}

describe('the authority', () => {
  test('answers SERVFAIL for a service until its first Snapshot is ready, and the SOA always', () => {
    const { authority: server, ask } = authority()
    assert.equal(ask(query(SERVICE, TYPE.A)).rcode, RCODE.SERVFAIL)
    assert.equal(ask(query(APEX, TYPE.SOA)).answers.length, 1)
    server.update(snapshot(['10.0.0.1'], { ready: false }))
    assert.equal(ask(query(SERVICE, TYPE.A)).rcode, RCODE.SERVFAIL)
    server.update(snapshot(['10.0.0.1']))
    assert.deepEqual(ask(query(SERVICE, TYPE.A)).addresses, ['10.0.0.1'])
  })

  test('serial grows with each change of membership, and with nothing else', () => {
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
      ['no longer answered', [b, { ...a, weight: 2, state: 'down', answered: false }], true],
      ['one less', [b], true],
    ]
    for (const [what, endpoints, grows] of changes) {
      const before = server.serial
      server.update(snapshot(endpoints))
      assert.equal(((server.serial - before) | 0) > 0, grows, what)
      if (!grows) assert.equal(server.serial, before, what)
      assert.equal(ask(query(APEX, TYPE.SOA)).answers[0]!.serial, server.serial)
    }
  })

  test('goes on with the cycle where a Snapshot changes nothing, and forgets who has gone', () => {
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

  test('tells what became of each query, in few words', () => {
    const { authority: server, seen, ask } = authority()
    server.update(snapshot(Array.from({ length: 40 }, (_, i) => `10.0.0.${i}`)))
    const messages: [message: Buffer, word: string][] = [
      [query(SERVICE, TYPE.AAAA), 'udp AAAA NOERROR false'],
      [query(SERVICE, TYPE.A), 'udp A NOERROR true'],
      [query(`x.${APEX}`, 65432), 'udp other NXDOMAIN false'],
      [query(SERVICE, IXFR), 'udp other REFUSED false'],
      [query(SERVICE, TYPE.A, { class: CLASS.HS }), 'udp A REFUSED false'],
      [ednsQuery(SERVICE, TYPE.A, { version: 1 }), 'udp A BADVERS false'],
      [query(SERVICE, TYPE.A, { flags: 0x2000 }), 'udp A NOTIMP false'],
      [Buffer.alloc(12), 'udp other FORMERR false'],
    ]
    for (const [message] of messages) ask(message)
    server.answer(Buffer.alloc(11), 'udp')
    server.answer(query(SERVICE, TYPE.A, { flags: 0x8000 }), 'tcp')
    assert.deepEqual(seen, [...messages.map(([, word]) => word), 'udp dropped', 'tcp dropped'])
  })
})
