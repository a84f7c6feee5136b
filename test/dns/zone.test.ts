import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { hostName, nextSerial, type Part, type ZoneOptions } from '../../src/dns/zone.ts'
import type { Snapshot } from '../../src/endpoints/pool.ts'
import { APEX, CLASS, endpoint, parts, SERVICE, snapshot, TYPE, zoneOptions } from './message.ts'

const zoneOf = (snapshots: Snapshot[], options: Partial<ZoneOptions> = {}) =>
  parts(snapshots, { ...zoneOptions, ...options })
const rrsetsOf = (zone: Part[]) =>
  zone.flatMap(({ rrsets }) => rrsets.filter(rrset => rrset.class === CLASS.IN))
const rrset = (zone: Part[], name: string, type: number) =>
  rrsetsOf(zone).find(each => each.name === name && each.type === type)
const names = (zone: Part[]) =>
  [...new Set([...zone.flatMap(part => part.names), ...rrsetsOf(zone).map(({ name }) => name)])].sort()
const addressesOf = (zone: Part[], name: string, type: number) =>
  rrset(zone, name, type)?.rotation?.candidates.map(({ address }) => address)

describe('the serial', () => {
  const top = 2 ** 32
  const table: [previous: number | undefined, now: number, next: number, why: string][] = [
    [undefined, 1_760_000_000, 1_760_000_000, 'it begins with the time'],
    [1_760_000_000, 1_760_000_009, 1_760_000_009, 'it follows the time'],
    [1_760_000_000, 1_760_000_001, 1_760_000_001, 'a second later both rules say the same'],
    [1_760_000_000, 1_760_000_000, 1_760_000_000, 'changes within a second share one'],
    [1_760_000_005, 1_760_000_000, 1_760_000_005, 'a clock set back does not set it back'],
    [1_760_000_000, 1_760_000_000.9, 1_760_000_000, 'fractions of a second do not count'],
    [top - 1, top, 0, 'it wraps'],
    [top - 1, top + 5, 5, 'the time wraps, in 2106, and is later all the same'],
    [3, top - 3, 3, 'before the wrap is earlier than behind it'],
    [0, 2 ** 31 - 1, 2 ** 31 - 1, 'as far ahead as RFC 1982 can tell'],
    [0, 2 ** 31, 0, 'half the circle ahead is not ahead'],
    [5, 2 ** 31 + 6, 5, 'more than half the circle ahead is behind'],
  ]
  for (const [previous, now, next, why] of table)
    test(`after ${previous} at ${now} is ${next}: ${why}`, () =>
      assert.equal(nextSerial(previous, now), next))

  test('never goes back, in the sense of RFC 1982, in 10,000 changes at any time', () => {
    let serial = nextSerial(undefined, top - 5000)
    for (let i = 0; i < 10_000; i++) {
      const next = nextSerial(serial, top - 5000 + ((i * 7919) % 1000))
      assert.ok(((next - serial) | 0) >= 0, `${serial} ${next}`)
      serial = next
    }
  })
})

describe('a zone', () => {
  test('has the SOA whose MINIMUM is the TTL, the NS and its glue of both families', () => {
    const zone = zoneOf([], { ttlSeconds: 9, nsAddresses: ['127.0.0.1', '::1', '127.0.0.2'] })
    const soa = rrset(zone, APEX, TYPE.SOA)
    assert.equal(soa?.ttl, 9)
    const { serial, minimum, primary, admin } = soa.records[0]?.soa ?? {}
    assert.deepEqual([serial, minimum], [7, 9])
    assert.deepEqual([primary, admin], [`ns.${APEX}`, `hostmaster.${APEX}`])
    const ns = rrset(zone, APEX, TYPE.NS)
    assert.deepEqual(
      ns?.records.map(record => record.ns),
      [`ns.${APEX}`],
    )
    assert.deepEqual(
      ns?.glue?.map(record => record.address),
      ['127.0.0.1', '::1', '127.0.0.2'],
    )
    assert.equal(rrset(zone, `ns.${APEX}`, TYPE.A)?.records.length, 2)
    assert.equal(rrset(zone, `ns.${APEX}`, TYPE.AAAA)?.records.length, 1)
    assert.deepEqual(names(zone), [`ns.${APEX}`, APEX])
  })

  test('has exactly the names of a service: itself, its SRV owners, its hosts and what lies between', () => {
    const zone = zoneOf([snapshot(['10.0.0.1', 'fd00::1'], { service: `a.b.${APEX}` })])
    const service = `a.b.${APEX}`
    assert.deepEqual(
      names(zone),
      [
        APEX,
        `ns.${APEX}`,
        `b.${APEX}`,
        service,
        `_udp.${service}`,
        `_tcp.${service}`,
        `_echo._udp.${service}`,
        `_echo._tcp.${service}`,
        `10-0-0-1.${service}`,
        `fd00-0-0-0-0-0-0-1.${service}`,
      ].sort(),
    )
    for (const empty of [`b.${APEX}`, `_udp.${service}`, `_tcp.${service}`])
      assert.ok(!rrsetsOf(zone).some(({ name }) => name === empty))
  })

  test('answers with those that are in the answer, names and describes all', () => {
    const endpoints = [
      endpoint('10.0.0.1'),
      endpoint('10.0.0.2', { state: 'down', answered: false }),
      endpoint('10.0.0.3', { terminating: true, answered: false }),
      endpoint('fd00::1'),
    ]
    const zone = zoneOf([snapshot(endpoints)])
    assert.deepEqual(addressesOf(zone, SERVICE, TYPE.A), ['10.0.0.1'])
    assert.deepEqual(addressesOf(zone, SERVICE, TYPE.AAAA), ['fd00::1'])
    for (const transport of ['udp', 'tcp'])
      assert.deepEqual(addressesOf(zone, `_echo._${transport}.${SERVICE}`, TYPE.SRV), ['10.0.0.1', 'fd00::1'])
    for (const { address } of endpoints) {
      const type = address.includes(':') ? TYPE.AAAA : TYPE.A
      assert.equal(rrset(zone, hostName(address, SERVICE), type)?.records[0]?.address, address)
    }
    assert.deepEqual(
      rrset(zone, SERVICE, TYPE.TXT)?.records.map(({ texts }) => texts),
      [['10.0.0.1 up'], ['10.0.0.2 down'], ['10.0.0.3 terminating'], ['fd00::1 up']],
    )
  })

  test('has an SRV for each endpoint, with its weight, the port, and its address beside it', () => {
    const srv = rrset(zoneOf([snapshot(['10.0.0.1*3', 'fd00::1'])]), `_echo._tcp.${SERVICE}`, TYPE.SRV)
    assert.deepEqual(
      srv?.records.map(record => record.srv),
      [
        { weight: 3, port: 7007, target: `10-0-0-1.${SERVICE}` },
        { weight: 1, port: 7007, target: `fd00-0-0-0-0-0-0-1.${SERVICE}` },
      ],
    )
    assert.deepEqual(
      srv?.glue?.map(({ name, address }) => [name, address]),
      [
        [`10-0-0-1.${SERVICE}`, '10.0.0.1'],
        [`fd00-0-0-0-0-0-0-1.${SERVICE}`, 'fd00::1'],
      ],
    )
  })

  const hosts: [address: string, label: string][] = [
    ['10.0.0.1', '10-0-0-1'],
    ['255.255.255.255', '255-255-255-255'],
    ['::', '0-0-0-0-0-0-0-0'],
    ['::1', '0-0-0-0-0-0-0-1'],
    ['1::', '1-0-0-0-0-0-0-0'],
    ['2001:db8::a:0:0:1', '2001-db8-0-0-a-0-0-1'],
    ['::ffff:7f00:1', '0-0-0-0-0-ffff-7f00-1'],
    ['2001:db8:1:2:3:4:5:6', '2001-db8-1-2-3-4-5-6'],
  ]
  for (const [address, label] of hosts)
    test(`calls ${address} ${label}`, () => assert.equal(hostName(address, 'x.test'), `${label}.x.test`))

  test('does not know yet what is at and below a service that is not ready', () => {
    const [, waiting, , other] = zoneOf([
      snapshot([], { ready: false }),
      snapshot(['10.0.0.1'], { service: `other.${APEX}` }),
    ])
    assert.deepEqual(waiting, { names: [SERVICE, APEX], pending: SERVICE, rrsets: [] })
    assert.equal(other?.pending, undefined)
    assert.ok(rrset([other!], `other.${APEX}`, TYPE.A))
  })

  test('may be a service itself', () => {
    const zone = zoneOf([snapshot(['10.0.0.1'], { service: APEX })])
    const types = rrsetsOf(zone).flatMap(({ name, type }) => (name === APEX ? [type] : []))
    assert.deepEqual(types.sort(), [TYPE.A, TYPE.TXT, TYPE.NS, TYPE.SOA].sort())
  })
})
