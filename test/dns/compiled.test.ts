import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Zone } from '../../src/dns/compiled.ts'
import { createContext, MAX_MESSAGE_OCTETS, respond } from '../../src/dns/respond.ts'
import { policies } from '../../src/dns/rotation.ts'
import {
  APEX,
  addresses,
  CLASS,
  compiled,
  ednsQuery,
  endpoint,
  NSID,
  parse,
  policy,
  query,
  responder,
  SERVICE,
  seeded,
  snapshot,
  TYPE,
} from './message.ts'

const mixed = ['10.0.0.1*3', '10.0.0.2', 'fd00::1', '10.0.0.3*2', '2001:db8::2*5']
const questions: Buffer[] = [
  query(SERVICE, TYPE.A),
  query(SERVICE, TYPE.AAAA),
  query(SERVICE, TYPE.TXT),
  query(SERVICE, TYPE.ANY),
  query(SERVICE, TYPE.MX),
  query(`_echo._udp.${SERVICE}`, TYPE.SRV),
  query(`no.${SERVICE}`, TYPE.A),
  query(APEX, TYPE.SOA),
  query(APEX, TYPE.NS),
  query('example.com', TYPE.A),
  query('id.server', TYPE.TXT, { class: CLASS.CH }),
  query(SERVICE, TYPE.A, { flags: 0x2000 }),
  ednsQuery(SERVICE, TYPE.A, { rdata: NSID }),
  ednsQuery(SERVICE, TYPE.A, { version: 1 }),
]

/** A context over this zone with state of its own. */
const contextFor = (zone: Zone) =>
  createContext({
    transport: 'udp',
    zone,
    cursors: new Int32Array(4),
    firsts: new Float64Array(30),
    random: seeded(1),
  })

describe('a compiled zone', () => {
  for (const { name } of policies)
    test(`in shared memory, read by its buffer alone, gives the same answers under ${name}`, () => {
      const own = responder([snapshot(mixed)], { policy: policy(name) })
      const allocate = (octets: number) => new SharedArrayBuffer(octets)
      const { buffer } = compiled([snapshot(mixed)], { policy: policy(name), allocate })
      assert.ok(buffer instanceof SharedArrayBuffer)
      const context = contextFor(new Zone(buffer))
      const output = Buffer.alloc(MAX_MESSAGE_OCTETS)
      for (let round = 0; round < 10; round++)
        for (const message of questions) {
          const length = respond(message, message.length, output, context)
          assert.deepEqual(output.subarray(0, length), own(message))
        }
    })

  test('answers in place as it does into another buffer', () => {
    const [one, other] = [1, 2].map(() => contextFor(compiled([snapshot(mixed)])))
    const [arena, output] = [Buffer.alloc(MAX_MESSAGE_OCTETS), Buffer.alloc(MAX_MESSAGE_OCTETS)]
    for (let round = 0; round < 10; round++)
      for (const message of questions) {
        message.copy(arena)
        const inPlace = respond(arena, message.length, arena, one!)
        const beside = respond(message, message.length, output, other!)
        assert.deepEqual(arena.subarray(0, inPlace), output.subarray(0, beside))
      }
  })

  test('reads no octet behind the message', () => {
    const [one, other] = [1, 2].map(() => contextFor(compiled([snapshot(mixed)])))
    const output = Buffer.alloc(MAX_MESSAGE_OCTETS)
    for (const message of questions)
      for (let length = 0; length <= message.length; length++) {
        const noise = Buffer.concat([message.subarray(0, length), Buffer.alloc(600, 0xa5)])
        const cut = respond(message.subarray(0, length), length, output, one!)
        const reply = Buffer.from(output.subarray(0, Math.max(cut, 0)))
        assert.equal(respond(noise, length, output, other!), cut)
        assert.deepEqual(output.subarray(0, Math.max(cut, 0)), reply)
      }
  })

  test('has the records that take turns twice in a row, and so every rotation as one window', () => {
    for (const count of [1, 2, 3, 30]) {
      const all = addresses(count)
      const server = responder([snapshot(all)])
      for (let turn = 0; turn <= 2 * count; turn++) {
        const head = turn % count
        const expected = [...all.slice(head), ...all.slice(0, head)]
        const reply = parse(server(query(SERVICE, TYPE.A), 'tcp'))
        assert.deepEqual(reply.addresses, expected)
        const srv = parse(server(query(`_echo._tcp.${SERVICE}`, TYPE.SRV), 'tcp'))
        assert.deepEqual(
          srv.additionals.map(({ address }) => address),
          expected,
        )
      }
    }
  })

  test('puts the least loaded first by turns, and the others behind by their load', () => {
    const loads = [5, 1, 9, 1, 3]
    const members = loads.map((activeConnections, i) => endpoint(`10.0.0.${i}`, { activeConnections }))
    const server = responder([snapshot(members)], { policy: policy('least-loaded') })
    const orders = Array.from({ length: 3 }, () => {
      const { addresses: order } = parse(server(query(SERVICE, TYPE.A)))
      return order.map(address => address?.slice(-1)).join('')
    })
    assert.deepEqual(orders, ['13402', '31402', '13402'])
    const { answers, additionals } = parse(server(query(`_echo._udp.${SERVICE}`, TYPE.SRV)))
    assert.deepEqual(
      additionals.map(({ name }) => name),
      answers.map(({ target }) => target),
    )
  })

  test('gives each endpoint once under random, however much of it fits', () => {
    const server = responder([snapshot(addresses(100))], { policy: policy('random') })
    const orders = new Set<string>()
    for (let i = 0; i < 50; i++) {
      const whole = parse(server(query(SERVICE, TYPE.A), 'tcp'))
      assert.deepEqual(whole.addresses.toSorted(), addresses(100).toSorted())
      orders.add(whole.addresses.join())
      const cut = parse(server(query(SERVICE, TYPE.A)))
      assert.equal(cut.tc, true)
      assert.equal(new Set(cut.addresses).size, 29)
    }
    assert.ok(orders.size > 40)
  })

  test('counts who stands first', () => {
    const server = responder([snapshot(mixed)], { policy: policy('weighted') })
    for (let i = 0; i < 60; i++) {
      server(query(SERVICE, TYPE.A))
      server(query(SERVICE, TYPE.AAAA))
      server(query(`_echo._udp.${SERVICE}`, TYPE.SRV))
      server(query(`_echo._tcp.${SERVICE}`, TYPE.SRV))
    }
    // Endpoints have their places in the order that RRsets come in: IPv4, then IPv6.
    const counts = (kind: number) => mixed.map((_, i) => server.firsts[3 * i + kind])
    assert.deepEqual(counts(0), [30, 10, 20, 10, 50])
    assert.deepEqual(counts(1), [15, 5, 10, 5, 25])
    assert.deepEqual(counts(2), [15, 5, 10, 5, 25])
  })

  test('goes on where a cursor passes 2³¹', () => {
    const server = responder([snapshot(addresses(3))])
    server.cursors[0] = 0x7fffffff
    const heads = Array.from({ length: 3 }, () => parse(server(query(SERVICE, TYPE.A))).addresses[0])
    // 2³¹ − 1 leaves 1 when divided by 3.
    assert.deepEqual(heads, ['10.0.0.1', '10.0.0.2', '10.0.0.0'])
  })

  test('names the addresses beside 1,000 SRV records, also where no pointer reaches their targets', () => {
    const server = responder([snapshot(addresses(1000))])
    for (let turn = 0; turn < 3; turn++) {
      const { answers, additionals, octets } = parse(server(query(`_echo._udp.${SERVICE}`, TYPE.SRV), 'tcp'))
      assert.ok(octets.length <= MAX_MESSAGE_OCTETS && additionals.length > 400)
      assert.deepEqual(
        additionals.map(({ name, address }) => [name, address]),
        answers
          .slice(0, additionals.length)
          .map(({ target = '' }) => [target, target.split('.')[0]!.replaceAll('-', '.')]),
      )
    }
  })

  test('with 50 services finds every name, and none besides', () => {
    const services = Array.from({ length: 50 }, (_, i) =>
      snapshot([`10.1.0.${i}`], { service: `s${i}.${APEX}` }),
    )
    const server = responder(services)
    for (let i = 0; i < 50; i++) {
      for (const name of [`s${i}.${APEX}`, `10-1-0-${i}.s${i}.${APEX}`])
        assert.deepEqual(parse(server(query(name, TYPE.A))).addresses, [`10.1.0.${i}`])
      assert.equal(parse(server(query(`10-1-0-${i + 1}.s${i}.${APEX}`, TYPE.A))).answers.length, 0)
    }
  })

  test('answers without allocating memory', () => {
    const context = contextFor(compiled([snapshot(mixed)]))
    const output = Buffer.alloc(MAX_MESSAGE_OCTETS)
    const play = (rounds: number) => {
      for (let i = 0; i < rounds; i++)
        for (const message of questions) respond(message, message.length, output, context)
    }
    play(20_000)
    const used = () => process.memoryUsage().heapUsed
    // A collection in between would hide what was allocated, hence several tries and the greatest of them.
    const grown = Array.from({ length: 5 }, () => {
      const before = used()
      play(2000)
      return used() - before
    })
    assert.ok(Math.min(...grown.filter(each => each >= 0)) < 2000 * questions.length, `${grown}`)
  })
})
