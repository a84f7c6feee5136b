import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { domainName } from '../../src/commands/values.ts'
import { keyOf, keyOfWire, skipName, wireLength } from '../../src/dns/name.ts'
import { parseQuery, type Query } from '../../src/dns/query.ts'
import { Expected } from '../../src/errors.ts'
import {
  CLASS,
  ednsQuery,
  labels,
  longName,
  NSID,
  nameOctets,
  opt,
  option,
  query,
  SERVICE,
  someRecord,
  TYPE,
} from './message.ts'

function parsed(message: Buffer): Query {
  const result = parseQuery(message)
  assert.ok(result)
  return result
}

const wireKey = (octets: Buffer) => keyOfWire(octets, 0, octets.length)

describe('names', () => {
  test('letters are compared without case, and nothing else is', () => {
    const octets = Array.from({ length: 256 }, (_, i) => i)
    for (const a of octets)
      for (const b of octets) {
        const [x, y] = [a, b].map(octet => wireKey(labels(String.fromCharCode(octet))))
        const [lowerA, lowerB] = [a, b].map(octet => (octet >= 65 && octet <= 90 ? octet + 32 : octet))
        assert.equal(x === y, lowerA === lowerB, `${a} ${b}`)
      }
  })

  test('a label that contains a dot is another name than the two labels', () => {
    assert.notEqual(wireKey(labels('echo.roundelay', 'test')), keyOf(SERVICE))
    assert.notEqual(wireKey(labels('echo\x09roundelay', 'test')), keyOf(SERVICE))
    assert.equal(wireKey(labels('eCHo', 'RoundelaY', 'test')), keyOf(SERVICE))
  })

  test('the length of a label is not lower-cased with its letters', () => {
    // 65 to 90 are no lengths, but 0x41 in a label of text that is 0x41 long would be.
    assert.equal(wireKey(labels('A'.repeat(63))).charCodeAt(0), 63)
  })

  test('a name in text knows its length on the wire', () => {
    for (const name of [SERVICE, 'a', 'a.b', longName(255)])
      assert.equal(wireLength(name), nameOctets(name).length)
  })

  test('labels of 63 octets and names of 255 are taken from flags, longer ones are not', () => {
    assert.equal(domainName('A.Test.'), 'a.test')
    assert.equal(domainName(`${'x'.repeat(63)}.test`).length, 68)
    assert.equal(domainName(longName(255)), longName(255))
    for (const wrong of [`${'x'.repeat(64)}.test`, longName(256), '', '.', 'a..b', '.a', 'a b', 'é.test'])
      assert.throws(() => domainName(wrong), Expected, wrong)
  })

  const ends: [what: string, octets: Buffer, end: number, plainEnd: number][] = [
    ['the root', Buffer.from([0]), 1, 1],
    ['a plain name', nameOctets('ab.c'), 6, 6],
    ['nothing', Buffer.alloc(0), -1, -1],
    ['a label of 63 octets', labels('x'.repeat(63)), 65, 65],
    ['a label of 64 octets', labels('x'.repeat(64)), -1, -1],
    ['the reserved label type 10', Buffer.from([0x80, 0, 0]), -1, -1],
    ['a name of 255 octets', nameOctets(longName(255)), 255, 255],
    ['a name of 256 octets', nameOctets(longName(256)), -1, -1],
    ['a label that runs out of the message', Buffer.from([5, 97, 98]), -1, -1],
    ['labels without an end', Buffer.from([1, 97]), -1, -1],
    ['a pointer', Buffer.from([0xc0, 12]), 2, -1],
    ['a pointer to itself', Buffer.from([0xc0, 0]), 2, -1],
    ['half a pointer', Buffer.from([1, 97, 0xc0]), -1, -1],
    ['labels and a pointer', Buffer.from([1, 97, 0xc0, 0]), 4, -1],
  ]
  for (const [what, octets, end, plainEnd] of ends)
    test(`${what} ends at ${end}, and at ${plainEnd} where compression is not allowed`, () => {
      assert.equal(skipName(octets, 0), end)
      assert.equal(skipName(octets, 0, true), plainEnd)
      // The same behind other octets, and with others behind.
      const moved = Buffer.concat([Buffer.alloc(7, 0xff), octets])
      assert.equal(skipName(moved, 7), end === -1 ? -1 : end + 7)
    })
})

describe('a query', () => {
  test('is taken apart', () => {
    const message = query('eCHO.test', TYPE.SRV, { id: 0xabcd, flags: 0x2910, class: CLASS.CH })
    assert.deepEqual(parsed(message), {
      id: 0xabcd,
      flags: 0x2910,
      isResponse: false,
      opcode: 5,
      questionCount: 1,
      question: { key: keyOf('echo.test'), type: TYPE.SRV, class: CLASS.CH, end: message.length },
      edns: undefined,
      malformed: false,
    })
  })

  test('without a whole header is nothing', () => {
    const message = query(SERVICE, TYPE.A)
    for (let length = 0; length < 12; length++)
      assert.equal(parseQuery(message.subarray(0, length)), undefined)
    assert.ok(parseQuery(message.subarray(0, 12)))
  })

  test('cut anywhere behind the header is malformed, and has no question unless that is whole', () => {
    const message = ednsQuery(SERVICE, TYPE.A, { rdata: option(10, 'cookie01') })
    const questionEnd = 12 + nameOctets(SERVICE).length + 4
    for (let length = 12; length < message.length; length++) {
      const { malformed, question } = parsed(message.subarray(0, length))
      assert.equal(malformed, true, String(length))
      assert.equal(question !== undefined, length >= questionEnd, String(length))
    }
    assert.equal(parsed(message).malformed, false)
  })

  test('with octets behind its last record is well formed', () => {
    assert.equal(parsed(Buffer.concat([query(SERVICE, TYPE.A), Buffer.from('more')])).malformed, false)
  })

  for (const count of [0, 2, 3, 65535])
    test(`that claims ${count} questions has none we would answer`, () => {
      const { question, questionCount } = parsed(query(SERVICE, TYPE.A, { questionCount: count }))
      assert.equal(question, undefined)
      assert.equal(questionCount, count)
    })

  test('whose question is a compression pointer is malformed, also one that loops', () => {
    for (const name of [Buffer.from([0xc0, 12]), Buffer.from([1, 97, 0xc0, 12]), Buffer.from([0xc0, 0xff])]) {
      const { malformed, question } = parsed(query(name, TYPE.A))
      assert.equal(malformed, true)
      assert.equal(question, undefined)
    }
  })

  test('may have records whose names point anywhere, since nobody follows them', () => {
    const loop = Buffer.concat([
      Buffer.from([0xc0, 12 + nameOctets(SERVICE).length + 4]),
      someRecord.subarray(2),
    ])
    const { malformed, edns } = parsed(
      query(SERVICE, TYPE.A, { answers: [loop], additionals: [loop, opt()] }),
    )
    assert.equal(malformed, false)
    assert.ok(edns)
  })
})

describe('the OPT of a query', () => {
  const plain = { udpOctets: 1232, version: 0, dnssecOk: false, nsid: false }

  test('is read', () => {
    assert.equal(parsed(query(SERVICE, TYPE.A)).edns, undefined)
    assert.deepEqual(parsed(ednsQuery(SERVICE, TYPE.A)).edns, plain)
    const edns = { size: 65535, version: 255, flags: 0x8000, rdata: NSID }
    assert.deepEqual(parsed(ednsQuery(SERVICE, TYPE.A, edns)).edns, {
      udpOctets: 65535,
      version: 255,
      dnssecOk: true,
      nsid: true,
    })
  })

  test('is found before, between and behind other additional records', () => {
    for (const at of [0, 1, 2]) {
      const additionals = [someRecord, someRecord].toSpliced(at, 0, opt())
      assert.deepEqual(parsed(query(SERVICE, TYPE.A, { additionals })).edns, plain)
    }
  })

  test('flags but DO are unknown and ignored', () => {
    assert.deepEqual(parsed(ednsQuery(SERVICE, TYPE.A, { flags: 0x7fff })).edns, plain)
  })

  const wrong: [what: string, options: Parameters<typeof query>[2]][] = [
    ['there are two', { additionals: [opt(), opt()] }],
    ['it is among the answers', { answers: [opt()] }],
    ['it is among the authorities', { authorities: [opt()] }],
    ['its owner is not the root', { additionals: [Buffer.concat([labels('a'), opt().subarray(1)])] }],
    [
      'its owner is a pointer to a root',
      { additionals: [Buffer.concat([Buffer.from([0xc0, 5]), opt().subarray(1)])] },
    ],
    ['an option has half a header', { additionals: [opt({ rdata: Buffer.from([0, 10, 0]) })] }],
    ['an option runs out of it', { additionals: [opt({ rdata: option(10, 'abcd').subarray(0, 7) })] }],
    [
      'its second option runs out of it',
      { additionals: [opt({ rdata: Buffer.concat([NSID, option(10, 'a').subarray(0, 4)]) })] },
    ],
  ]
  for (const [what, options] of wrong)
    test(`makes the query malformed where ${what}, and it is known all the same that it has one`, () => {
      const { malformed, edns } = parsed(query(SERVICE, TYPE.A, options))
      assert.equal(malformed, true)
      assert.ok(edns)
    })

  test('may hold any unknown options, as long as they fit', () => {
    const rdata = Buffer.concat([
      option(65001, 'abc'),
      option(8, Buffer.from([0, 1, 24, 0, 10, 0, 0])),
      NSID,
      option(10),
    ])
    const { malformed, edns } = parsed(ednsQuery(SERVICE, TYPE.A, { rdata }))
    assert.equal(malformed, false)
    assert.equal(edns?.nsid, true)
  })
})
