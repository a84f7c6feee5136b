import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { domainName } from '../../src/commands/values.ts'
import { foldCase, hashName, nameWord, skipName, wordsOf } from '../../src/dns/name.ts'
import { parseQuery, Query } from '../../src/dns/query.ts'
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
  const result = new Query()
  assert.ok(parseQuery(message, message.length, result))
  return result
}

/** The words that a name is compared by. */
function wordsOfName(octets: Buffer): number[] {
  const padded = Buffer.concat([octets, Buffer.from([0xff, 0xff, 0xff, 0xff])])
  const count = wordsOf(octets.length)
  return Array.from({ length: count }, (_, i) => nameWord(padded, 0, octets.length, i))
}
const sameName = (a: Buffer, b: Buffer): boolean => {
  const [x, y] = [wordsOfName(a), wordsOfName(b)]
  return x.length === y.length && x.every((word, i) => word === y[i])
}

describe('names', () => {
  test('letters are compared without case, and nothing else is, wherever in a word they stand', () => {
    for (const shift of [0, 8, 16, 24])
      for (let octet = 0; octet < 256; octet++)
        for (const others of [0, 0x41, 0x5a, 0x7f, 0x80, 0xff]) {
          const around = (others * 0x01010101) & ~(0xff << shift)
          const lower = octet >= 0x41 && octet <= 0x5a ? octet + 0x20 : octet
          const folded = foldCase(around | (octet << shift))
          assert.equal((folded >>> shift) & 0xff, lower)
          const othersLower = others === 0x41 || others === 0x5a ? others + 0x20 : others
          assert.equal(folded & ~(0xff << shift), (othersLower * 0x01010101) & ~(0xff << shift))
        }
  })

  test('a label that contains a dot is another name than the two labels', () => {
    const name = nameOctets(SERVICE)
    assert.ok(!sameName(labels('echo.roundelay', 'test'), name))
    assert.ok(!sameName(labels('echo\x09roundelay', 'test'), name))
    assert.ok(sameName(labels('eCHo', 'RoundelaY', 'test'), name))
  })

  test('the length of a label is not lower-cased with its letters', () => {
    assert.equal(wordsOfName(labels('A'.repeat(63)))[0]! & 0xff, 63)
  })

  test('what follows a name is not compared with it, and the hash is that of its octets without case', () => {
    for (let length = 1; length <= 9; length++) {
      const upper = labels('X'.repeat(length))
      const lower = labels('x'.repeat(length))
      const hash = (name: Buffer, behind: number) =>
        hashName(Buffer.concat([Buffer.alloc(5), name, Buffer.alloc(4, behind)]), 5, 5 + name.length)
      assert.deepEqual(wordsOfName(upper), wordsOfName(lower))
      assert.equal(hash(upper, 0xff), hash(lower, 0))
      assert.notEqual(hash(upper, 0), hash(labels('y'.repeat(length)), 0))
    }
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
      assert.equal(skipName(octets, octets.length, 0), end)
      assert.equal(skipName(octets, octets.length, 0, true), plainEnd)
      // The same behind other octets, and with others behind.
      const moved = Buffer.concat([Buffer.alloc(7, 0xff), octets])
      assert.equal(skipName(moved, moved.length, 7), end === -1 ? -1 : end + 7)
      // Octets behind the message are not read.
      const more = Buffer.concat([octets, Buffer.alloc(300)])
      assert.equal(skipName(more, octets.length, 0), end)
    })
})

const noEdns = { edns: false, udpOctets: 0, version: 0, dnssecOk: false, nsid: false }
const ednsOf = ({ edns, udpOctets, version, dnssecOk, nsid }: Query) => ({
  edns,
  udpOctets,
  version,
  dnssecOk,
  nsid,
})

describe('a query', () => {
  test('leaves nothing to the next one', () => {
    const query1 = new Query()
    const rich = ednsQuery(SERVICE, TYPE.A, { size: 4096, version: 1, flags: 0x8000, rdata: NSID })
    for (const message of [rich, rich.subarray(0, 30), query(SERVICE, TYPE.A, { questionCount: 2 })]) {
      assert.ok(parseQuery(rich, rich.length, query1))
      assert.ok(parseQuery(message, message.length, query1))
      assert.deepEqual(query1, parsed(message))
    }
  })

  test('is taken apart', () => {
    const message = query('eCHO.test', TYPE.SRV, { id: 0xabcd, flags: 0x2910, class: CLASS.CH })
    assert.deepEqual(
      { ...parsed(message) },
      {
        id: 0xabcd,
        flags: 0x2910,
        opcode: 5,
        questionCount: 1,
        nameEnd: message.length - 4,
        type: TYPE.SRV,
        class: CLASS.CH,
        ...noEdns,
        malformed: false,
      },
    )
  })

  test('without a whole header is nothing', () => {
    const message = query(SERVICE, TYPE.A)
    for (let length = 0; length < 12; length++) assert.equal(parseQuery(message, length, new Query()), false)
    assert.ok(parseQuery(message, 12, new Query()))
  })

  test('cut anywhere behind the header is malformed, and has no question unless that is whole', () => {
    const message = ednsQuery(SERVICE, TYPE.A, { rdata: option(10, 'cookie01') })
    const questionEnd = 12 + nameOctets(SERVICE).length + 4
    for (let length = 12; length < message.length; length++) {
      const { malformed, nameEnd } = parsed(message.subarray(0, length))
      assert.equal(malformed, true, String(length))
      assert.equal(nameEnd !== 0, length >= questionEnd, String(length))
    }
    assert.equal(parsed(message).malformed, false)
  })

  test('with octets behind its last record is well formed', () => {
    assert.equal(parsed(Buffer.concat([query(SERVICE, TYPE.A), Buffer.from('more')])).malformed, false)
  })

  for (const count of [0, 2, 3, 65535])
    test(`that claims ${count} questions has none we would answer`, () => {
      const { nameEnd, questionCount } = parsed(query(SERVICE, TYPE.A, { questionCount: count }))
      assert.equal(nameEnd, 0)
      assert.equal(questionCount, count)
    })

  test('whose question is a compression pointer is malformed, also one that loops', () => {
    for (const name of [Buffer.from([0xc0, 12]), Buffer.from([1, 97, 0xc0, 12]), Buffer.from([0xc0, 0xff])]) {
      const { malformed, nameEnd } = parsed(query(name, TYPE.A))
      assert.equal(malformed, true)
      assert.equal(nameEnd, 0)
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
  const plain = { ...noEdns, edns: true, udpOctets: 1232 }

  test('is read', () => {
    assert.deepEqual(ednsOf(parsed(query(SERVICE, TYPE.A))), noEdns)
    assert.deepEqual(ednsOf(parsed(ednsQuery(SERVICE, TYPE.A))), plain)
    const edns = { size: 65535, version: 255, flags: 0x8000, rdata: NSID }
    assert.deepEqual(ednsOf(parsed(ednsQuery(SERVICE, TYPE.A, edns))), {
      edns: true,
      udpOctets: 65535,
      version: 255,
      dnssecOk: true,
      nsid: true,
    })
  })

  test('is found before, between and behind other additional records', () => {
    for (const at of [0, 1, 2]) {
      const additionals = [someRecord, someRecord].toSpliced(at, 0, opt())
      assert.deepEqual(ednsOf(parsed(query(SERVICE, TYPE.A, { additionals }))), plain)
    }
  })

  test('flags but DO are unknown and ignored', () => {
    assert.deepEqual(ednsOf(parsed(ednsQuery(SERVICE, TYPE.A, { flags: 0x7fff }))), plain)
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
    const { malformed, nsid } = parsed(ednsQuery(SERVICE, TYPE.A, { rdata }))
    assert.equal(malformed, false)
    assert.equal(nsid, true)
  })
})
