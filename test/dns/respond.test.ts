import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Packet } from 'dns2'
import {
  APEX,
  addresses,
  CLASS,
  ednsQuery,
  endpoint,
  IXFR,
  labels,
  longName,
  NSID,
  nameOctets,
  type OptOptions,
  opt,
  option,
  parse,
  policy,
  type QueryOptions,
  query,
  RCODE,
  RD,
  responder,
  SERVICE,
  seeded,
  snapshot,
  someRecord,
  TYPE,
} from './message.ts'

const PLAIN = 512
const three = ['10.0.0.1', '10.0.0.2', '10.0.0.3']
const answer = responder([snapshot(three)])
const ask = (message: Buffer, transport: 'udp' | 'tcp' = 'udp') => parse(answer(message, transport))
const rcodeOf = (message: Buffer) => ask(message).rcode
const OPCODE = { query: 0, iquery: 1, status: 2, notify: 4, update: 5, reserved: 15 }
const opcodeFlags = (opcode: number) => opcode << 11

/** What `respond` gives for it is a negative answer with the SOA. */
function assertNegative(reply: ReturnType<typeof parse>, rcode: number): void {
  assert.equal(reply.rcode, rcode)
  assert.equal(reply.aa, true)
  assert.deepEqual(reply.answers, [])
  assert.deepEqual(
    reply.authorities.map(({ name, type, ttl, minimum }) => [name.toLowerCase(), type, ttl, minimum]),
    [[APEX, TYPE.SOA, 5, 5]],
  )
}

describe('the guards', () => {
  test('drop what has no header and what is itself a response, whatever else is wrong with it', () => {
    for (let length = 0; length < 12; length++) assert.equal(answer(Buffer.alloc(length)), undefined)
    for (const transport of ['udp', 'tcp'] as const)
      for (const flags of [0x8000, 0x8400 | RD, 0xffff, 0x8000 | opcodeFlags(OPCODE.notify)])
        for (const questionCount of [0, 1, 2])
          assert.equal(answer(query(SERVICE, TYPE.A, { flags, questionCount }), transport), undefined)
  })

  for (const opcode of [...Array(16).keys()].slice(1))
    test(`answer NOTIMP to opcode ${opcode}, before anything but the version of EDNS is looked at`, () => {
      const flags = opcodeFlags(opcode) | RD
      const wrong: QueryOptions[] = [
        {},
        { questionCount: 0 },
        { questionCount: 2 },
        { additionals: [opt(), opt()] },
        { class: CLASS.HS },
      ]
      for (const options of wrong) {
        const reply = ask(query(SERVICE, TYPE.A, { ...options, flags }))
        assert.equal(reply.rcode, RCODE.NOTIMP)
        assert.equal((reply.flags >> 11) & 15, opcode)
        assert.deepEqual(reply.counts.slice(1, 3), [0, 0])
        assert.equal(reply.aa, false)
      }
    })

  for (const questionCount of [0, 2, 3, 65535])
    test(`answer FORMERR where QDCOUNT is ${questionCount} (RFC 9619), with no question`, () => {
      for (const octets of [
        query(SERVICE, TYPE.A, { questionCount }),
        Buffer.from(`beef0100${questionCount.toString(16).padStart(4, '0')}000000000000`, 'hex'),
      ]) {
        const reply = ask(octets)
        assert.equal(reply.rcode, RCODE.FORMERR)
        assert.deepEqual(reply.counts, [0, 0, 0, 0])
        assert.equal(reply.octets.length, 12)
      }
    })

  test('answer FORMERR to two whole questions, and still with an OPT to a query that had one', () => {
    const second = query(SERVICE, TYPE.A).subarray(12)
    const message = query(SERVICE, TYPE.A, { questionCount: 2, answers: [], additionals: [opt()] })
    const both = Buffer.concat([message.subarray(0, 12), second, second, opt()])
    const reply = ask(both)
    assert.equal(reply.rcode, RCODE.FORMERR)
    assert.deepEqual(reply.counts, [0, 0, 0, 1])
    assert.equal(reply.opts.length, 1)
  })

  const unreadable: [what: string, name: Buffer][] = [
    ['a label of 64 octets', labels('x'.repeat(64), 'test')],
    ['a name of 256 octets', nameOctets(longName(256))],
    ['a compression pointer to itself', Buffer.from([0xc0, 12])],
    ['a compression pointer forwards', Buffer.from([0xc0, 14, 1, 97, 0])],
    [
      'a compression loop behind labels',
      Buffer.concat([labels('a').subarray(0, 2), Buffer.from([0xc0, 12])]),
    ],
    ['a reserved label type', Buffer.from([0x41, 97, 0])],
    ['a label without an end', Buffer.from([63, 97])],
  ]
  for (const [what, name] of unreadable)
    test(`answer the header alone, FORMERR with all counts 0, to ${what}`, () => {
      for (const options of [{}, { additionals: [opt()] }]) {
        const reply = ask(query(name, TYPE.A, options))
        assert.equal(reply.rcode, RCODE.FORMERR)
        assert.equal(reply.octets.length, 12)
        assert.deepEqual(reply.counts, [0, 0, 0, 0])
        assert.equal(reply.id, 0xbeef)
      }
    })

  test('read labels of 63 octets and names of 255', () => {
    for (const name of [`${'x'.repeat(63)}.${APEX}`, longName(255), longName(254)]) {
      const reply = ask(query(name, TYPE.A))
      assertNegative(reply, RCODE.NXDOMAIN)
      assert.equal(reply.questions[0]!.name, name)
    }
  })

  test('answer FORMERR with the question to a query that is cut behind it', () => {
    const whole = ednsQuery(SERVICE, TYPE.A, { rdata: NSID })
    const questionEnd = query(SERVICE, TYPE.A).length
    for (let length = questionEnd; length < whole.length; length++) {
      const reply = ask(whole.subarray(0, length))
      assert.equal(reply.rcode, RCODE.FORMERR, String(length))
      assert.equal(reply.counts[0], 1)
    }
  })

  const malformedOpts: [what: string, options: QueryOptions][] = [
    ['two OPTs', { additionals: [opt(), opt()] }],
    ['two OPTs with a record between', { additionals: [opt(), someRecord, opt()] }],
    ['two OPTs, one of version 1', { additionals: [opt({ version: 1 }), opt()] }],
    ['an OPT among the answers', { answers: [opt()] }],
    ['an OPT among the authorities', { authorities: [opt()] }],
    ['an OPT with a name', { additionals: [Buffer.concat([labels('a'), opt().subarray(1)])] }],
    ['an OPT whose option does not fit', { additionals: [opt({ rdata: option(10, 'abc').subarray(0, 6) })] }],
    ['an OPT with half an option header', { additionals: [opt({ rdata: Buffer.alloc(3) })] }],
  ]
  for (const [what, options] of malformedOpts)
    test(`answer FORMERR, with an OPT, to ${what}, also where type and class would be REFUSED`, () => {
      for (const [type, dnsClass] of [
        [TYPE.A, CLASS.IN],
        [TYPE.AXFR, CLASS.IN],
        [TYPE.A, CLASS.HS],
      ] as const) {
        const reply = ask(query(SERVICE, type, { ...options, class: dnsClass }))
        assert.equal(reply.rcode, RCODE.FORMERR)
        assert.equal(reply.opts.length, 1)
        assert.deepEqual(reply.answers, [])
      }
    })

  const refused: [what: string, name: string, type: number, dnsClass: number][] = [
    ['AXFR', APEX, TYPE.AXFR, CLASS.IN],
    ['IXFR', APEX, IXFR, CLASS.IN],
    ['class HS', SERVICE, TYPE.A, CLASS.HS],
    ['class CS', SERVICE, TYPE.A, CLASS.CS],
    ['class ANY', SERVICE, TYPE.A, CLASS.ANY],
    ['class NONE', SERVICE, TYPE.A, 254],
    ['class 0', SERVICE, TYPE.A, 0],
    ['a name of the zone in class CH', SERVICE, TYPE.TXT, CLASS.CH],
    ['version.bind in class IN', 'version.bind', TYPE.TXT, CLASS.IN],
    ['the parent of the zone', 'test', TYPE.SOA, CLASS.IN],
    ['the root', '', TYPE.NS, CLASS.IN],
    ['another zone', 'example.com', TYPE.A, CLASS.IN],
    ['a name that only ends in the same letters', `x${APEX}`, TYPE.A, CLASS.IN],
    ['a name that begins as the zone', `${APEX}.example`, TYPE.A, CLASS.IN],
  ]
  for (const [what, name, type, dnsClass] of refused)
    test(`answer REFUSED to ${what}`, () => {
      for (const options of [{}, { additionals: [opt()] }]) {
        const reply = ask(query(name, type, { ...options, class: dnsClass }), 'tcp')
        assert.equal(reply.rcode, RCODE.REFUSED)
        assert.equal(reply.aa, false)
        assert.deepEqual(reply.counts.slice(0, 3), [1, 0, 0])
        assert.equal(reply.opts.length, 'additionals' in options ? 1 : 0)
      }
    })
})

describe('a transfer of a name that is no zone of ours', () => {
  const names: [string, number][] = [
    [SERVICE, CLASS.IN],
    ['example.com', CLASS.IN],
    ['version.bind', CLASS.CH],
    [APEX, CLASS.CH],
  ]
  for (const [name, dnsClass] of names)
    for (const type of [TYPE.AXFR, IXFR])
      test(`gets NOTAUTH (RFC 5936 2.2.1): type ${type} of ${name} in class ${dnsClass}`, () => {
        const reply = ask(query(name, type, { class: dnsClass }), 'tcp')
        assert.deepEqual([reply.rcode, reply.aa, reply.counts], [9, false, [1, 0, 0, 0]])
      })
})

describe('an extended DNS error (RFC 8914)', () => {
  const failedOpen = responder([snapshot(three, { failedOpen: true })])
  const notReady = responder([snapshot(three, { ready: false })])
  const edeOf = (reply: Buffer | undefined) => {
    const octets = parse(reply).octets
    // The OPT stands last: its options follow 11 octets.
    const at = octets.lastIndexOf(Buffer.from([0, 0, TYPE.EDNS]))
    const options = octets.subarray(at + 11)
    assert.equal(options.length, octets.readUInt16BE(at + 9))
    if (options.length === 0) return undefined
    assert.equal(options.readUInt16BE(0), 15)
    assert.equal(options.readUInt16BE(2), options.length - 4)
    return [options.readUInt16BE(4), options.subarray(6).toString()]
  }
  const cases: [what: string, from: typeof answer, message: Buffer, expected: unknown][] = [
    ['14 for a service that is not ready', notReady, ednsQuery(SERVICE, TYPE.A), [14, '']],
    ['14 below it', notReady, ednsQuery(`x.${SERVICE}`, TYPE.A), [14, '']],
    ['20 for another zone', answer, ednsQuery('example.com', TYPE.A), [20, '']],
    ['20 for another class', answer, ednsQuery(SERVICE, TYPE.A, {}, { class: CLASS.HS }), [20, '']],
    ['20 for a transfer of another zone', answer, ednsQuery('example.com', TYPE.AXFR), [20, '']],
    ['21 for a transfer of the zone', answer, ednsQuery(APEX, TYPE.AXFR), [21, '']],
    ['21 for another opcode', answer, ednsQuery(SERVICE, TYPE.A, {}, { flags: opcodeFlags(4) }), [21, '']],
    [
      'a text where no endpoint is healthy',
      failedOpen,
      ednsQuery(SERVICE, TYPE.A),
      [0, 'no endpoint is healthy, all are answered'],
    ],
    ['none in an ordinary answer', answer, ednsQuery(SERVICE, TYPE.A), undefined],
    ['none in a negative answer', failedOpen, ednsQuery(SERVICE, TYPE.MX), undefined],
  ]
  for (const [what, from, message, expected] of cases)
    test(`is ${what}`, () => assert.deepEqual(edeOf(from(message)), expected))

  test('is left out without OPT, and where the answer itself needs the room', () => {
    assert.deepEqual(parse(failedOpen(query(SERVICE, TYPE.A))).opts, [])
    const records = (PLAIN - 12 - 4 - nameOctets(SERVICE).length - 11) >> 4
    const full = responder([snapshot(addresses(records), { failedOpen: true })])
    const reply = parse(full(ednsQuery(SERVICE, TYPE.A, { size: PLAIN })))
    assert.deepEqual([reply.tc, reply.answers.length], [false, records])
    assert.equal(edeOf(reply.octets), undefined)
  })
})

describe('the header of a reply', () => {
  test('copies id, opcode, RD and CD; clears AA, TC, RA, Z, AD and the rcode of the query', () => {
    for (const transport of ['udp', 'tcp'] as const)
      for (let flags = 0; flags < 0x8000; flags += 1) {
        // Every combination of the bits below QR, of a few ids.
        if (flags % 7 !== 0) continue
        const octets = answer(query(APEX, TYPE.SOA, { id: flags ^ 0x5a5a, flags }), transport)
        assert.ok(octets)
        const known = (flags & 0x7800) === 0
        const expected = 0x8000 | (flags & 0x7910) | (known ? 0x0400 : RCODE.NOTIMP)
        assert.equal(octets.readUInt16BE(2), expected, flags.toString(16))
        assert.equal(octets.readUInt16BE(0), flags ^ 0x5a5a)
      }
  })
})

describe('names', () => {
  test('are compared without case, and the question comes back as it was spelled, also in the answer', () => {
    const random = seeded(20)
    for (let i = 0; i < 200; i++) {
      const mixed = [...SERVICE].map(c => (random() < 0.5 ? c.toUpperCase() : c)).join('')
      const message = query(mixed, TYPE.A)
      const reply = ask(message)
      assert.equal(reply.answers.length, 3)
      assert.deepEqual(reply.octets.subarray(12, message.length), message.subarray(12))
      assert.equal(reply.answers[0]!.name, mixed)
    }
  })

  test('are compared label by label: a dot within a label is no end of it', () => {
    const dotted = [
      labels('echo.roundelay', 'test'),
      labels('echo.roundelay.test'),
      labels('a.roundelay', 'test'),
      labels(`${'\x09'}roundelay`, 'test'),
      // Its tail reads as the zone, octet for octet, but lies within a label.
      Buffer.concat([Buffer.from([1 + nameOctets(APEX).length - 1]), Buffer.from('x'), nameOctets(APEX)]),
    ]
    for (const name of dotted)
      assert.equal(rcodeOf(query(name, TYPE.A)), RCODE.REFUSED, name.toString('latin1'))
    assertNegative(ask(query(labels('echo.', 'roundelay', 'test'), TYPE.A)), RCODE.NXDOMAIN)
    assertNegative(ask(query(labels('_echo._udp', 'echo', 'roundelay', 'test'), TYPE.SRV)), RCODE.NXDOMAIN)
  })

  test('of any octets come back as they were', () => {
    for (let octet = 0; octet < 256; octet++) {
      const message = query(labels(String.fromCharCode(octet), 'roundelay', 'test'), TYPE.A)
      const reply = ask(message)
      assertNegative(reply, RCODE.NXDOMAIN)
      assert.deepEqual(reply.octets.subarray(12, message.length), message.subarray(12))
    }
  })
})

describe('EDNS', () => {
  const every: [what: string, name: string, type: number, dnsClass: number, version: number][] = [
    ['an answer', SERVICE, TYPE.A, CLASS.IN, 0],
    ['NODATA', SERVICE, TYPE.AAAA, CLASS.IN, 0],
    ['NXDOMAIN', `no.${APEX}`, TYPE.A, CLASS.IN, 0],
    ['NODATA of class CH', 'id.server', TYPE.A, CLASS.CH, 0],
    ['BADVERS', SERVICE, TYPE.A, CLASS.IN, 1],
    ['class CH', 'id.server', TYPE.TXT, CLASS.CH, 0],
    ['ANY', SERVICE, TYPE.ANY, CLASS.IN, 0],
  ]
  for (const [what, name, type, dnsClass, version] of every)
    test(`in the query brings one in the reply, and only then: ${what}`, () => {
      for (const transport of ['udp', 'tcp'] as const) {
        assert.equal(ask(query(name, type, { class: dnsClass }), transport).opts.length, 0)
        const { opts } = ask(ednsQuery(name, type, { version, size: 4096 }, { class: dnsClass }), transport)
        assert.equal(opts.length, 1)
        assert.deepEqual([opts[0]!.name, opts[0]!.class, opts[0]!.version, opts[0]!.rdata], ['', 1232, 0, []])
      }
    })

  test('in the query brings one in a REFUSED reply, which holds the reason and nothing else', () => {
    for (const transport of ['udp', 'tcp'] as const) {
      assert.equal(ask(query('example.com', TYPE.A), transport).opts.length, 0)
      const reply = ask(ednsQuery('example.com', TYPE.A, { size: 4096 }), transport)
      const expected = opt({ rdata: option(15, Buffer.from([0, 20])) })
      assert.deepEqual(reply.octets.subarray(-expected.length), expected)
    }
  })

  test('comes with the reply to another opcode as well', () => {
    assert.equal(ask(ednsQuery(SERVICE, TYPE.A, {}, { flags: opcodeFlags(OPCODE.notify) })).opts.length, 1)
  })

  test('versions above 0 get BADVERS, whatever the opcode and the questions (RFC 6891 6.1.3)', () => {
    for (let opcode = 0; opcode < 16; opcode++)
      for (const questionCount of [0, 1]) {
        const flags = opcodeFlags(opcode)
        const octets = query(questionCount ? SERVICE : Buffer.alloc(0), TYPE.A, { flags, questionCount })
        const whole = questionCount ? octets : octets.subarray(0, 12)
        whole.writeUInt16BE(1, 10)
        const reply = ask(Buffer.concat([whole, opt({ version: 1 })]))
        assert.equal(reply.rcode, RCODE.BADVERS)
        assert.deepEqual(reply.counts, [questionCount, 0, 0, 1])
        assert.equal((reply.flags >> 11) & 15, opcode)
      }
  })

  test('versions above 0 get BADVERS and nothing else, before AXFR or the class is looked at', () => {
    for (const version of [1, 2, 255])
      for (const [type, dnsClass] of [
        [TYPE.A, CLASS.IN],
        [TYPE.AXFR, CLASS.IN],
        [TYPE.TXT, CLASS.HS],
      ] as const) {
        const reply = ask(ednsQuery(SERVICE, type, { version }, { class: dnsClass }))
        assert.equal(reply.rcode, RCODE.BADVERS)
        assert.equal(reply.flags & 15, 0)
        assert.deepEqual(reply.counts, [1, 0, 0, 1])
      }
  })

  test('DO is copied and every other flag cleared', () => {
    for (const flags of [0, 0x8000, 0x7fff, 0xffff])
      assert.equal(ask(ednsQuery(SERVICE, TYPE.A, { flags })).opts[0]!.ttl, flags & 0x8000)
  })

  test('options are not echoed', () => {
    const rdata = Buffer.concat([
      option(10, 'cookie01'),
      option(8, Buffer.from([0, 1, 24, 0, 10, 0, 0])),
      option(65001, 'abc'),
      option(12, Buffer.alloc(50)),
    ])
    const reply = ask(ednsQuery(SERVICE, TYPE.A, { rdata }))
    assert.equal(reply.answers.length, 3)
    assert.deepEqual(reply.octets.subarray(-11), opt())
  })

  test('NSID says who answers, alone among other options', () => {
    const rdata = Buffer.concat([option(65001, 'abc'), NSID])
    for (const name of [SERVICE, `no.${APEX}`, 'example.com']) {
      const { octets } = ask(ednsQuery(name, TYPE.A, { rdata }))
      // Another zone is refused with the reason, behind the NSID.
      const ede = name === 'example.com' ? [option(15, Buffer.from([0, 20]))] : []
      const expected = opt({ rdata: Buffer.concat([option(3, 'test-server'), ...ede]) })
      assert.deepEqual(octets.subarray(-expected.length), expected)
    }
  })

  const sizes: [size: number, limit: number][] = [
    [0, 512],
    [100, 512],
    [511, 512],
    [512, 512],
    [513, 513],
    [1000, 1000],
    [1232, 1232],
    [1233, 1232],
    [4096, 1232],
    [65535, 1232],
  ]
  for (const [size, limit] of sizes)
    test(`a size of ${size} octets is answered with as many records as ${limit} octets hold`, () => {
      const many = responder([snapshot(addresses(200))])
      const message = ednsQuery(SERVICE, TYPE.A, { size })
      const reply = parse(many(message))
      assert.equal(reply.tc, true)
      assert.equal(reply.answers.length, Math.floor((limit - message.length) / 16))
      assert.ok(reply.octets.length <= limit && reply.octets.length > limit - 16)
    })

  test('no reply is larger than the client takes, whatever our NSID and its question are', () => {
    const serverId = 's'.repeat(255)
    const long = responder([snapshot(addresses(200))], { serverId })
    for (const name of [SERVICE, longName(255), longName(200), 'id.server'])
      for (const size of [0, 512, 600, 1232])
        for (const dnsClass of [CLASS.IN, CLASS.CH]) {
          const reply = parse(long(ednsQuery(name, TYPE.A, { size, rdata: NSID }, { class: dnsClass })))
          assert.ok(reply.octets.length <= Math.max(512, size), `${reply.octets.length} octets of ${size}`)
          assert.equal(reply.opts.length, 1)
        }
  })
})

describe('what is required wins over what is optional', () => {
  const serverId = 's'.repeat(255)
  const asksNsid = (name: string, type: number) => ednsQuery(name, type, { size: 512, rdata: NSID })
  const nsidOf = ({ opts }: ReturnType<typeof parse>) => (opts[0]!.rdata as unknown[]).length

  test('answer records over NSID', () => {
    const server = responder([snapshot(addresses(20))], { serverId })
    const reply = parse(server(asksNsid(SERVICE, TYPE.A)))
    assert.deepEqual([reply.tc, reply.answers.length, nsidOf(reply)], [false, 20, 0])
    const whole = parse(server(ednsQuery(SERVICE, TYPE.A, { rdata: NSID })))
    const expected = opt({ rdata: option(3, serverId) })
    assert.deepEqual(whole.octets.subarray(-expected.length), expected)
  })

  test('the SOA of a negative answer over NSID', () => {
    const server = responder([snapshot(three)], { serverId })
    for (const name of [longName(255), longName(200)]) {
      const reply = parse(server(asksNsid(name, TYPE.A)))
      assertNegative(reply, RCODE.NXDOMAIN)
      assert.deepEqual([reply.tc, nsidOf(reply), reply.opts.length], [false, 0, 1])
    }
  })

  test('the OPT over records, and NSID over the addresses of SRV targets', () => {
    const server = responder([snapshot(addresses(8))])
    const name = `_echo._udp.${SERVICE}`
    const [plain, nsid] = [ednsQuery(name, TYPE.SRV, { size: 512 }), asksNsid(name, TYPE.SRV)].map(message =>
      parse(server(message)),
    )
    for (const { tc, answers, opts } of [plain!, nsid!])
      assert.deepEqual([tc, answers.length, opts.length], [false, 8, 1])
    const expected = opt({ rdata: option(3, 'test-server') })
    assert.deepEqual(nsid!.octets.subarray(-expected.length), expected)
    assert.ok(nsid!.additionals.length < plain!.additionals.length)
  })
})

describe('a truncated answer', () => {
  const many = responder([snapshot([...addresses(100), 'fd00::1'])])
  const A = query(SERVICE, TYPE.A)
  const fits = Math.floor((512 - A.length) / 16)

  test('carries what fits, leaves the cursor where it was, and is whole over TCP', () => {
    for (let turn = 0; turn < 3; turn++) {
      for (let again = 0; again < 2; again++) {
        const reply = parse(many(A))
        assert.equal(reply.tc, true)
        assert.equal(reply.aa, true)
        assert.equal(reply.rcode, RCODE.NOERROR)
        assert.deepEqual(reply.addresses, addresses(100).slice(turn, turn + fits))
      }
      const whole = parse(many(A, 'tcp'))
      assert.equal(whole.tc, false)
      assert.deepEqual(whole.addresses, [...addresses(100).slice(turn), ...addresses(100).slice(0, turn)])
    }
    assert.deepEqual([...many.cursors], [3, 0, 0, 0])
  })

  test('has an OPT where the query had one, and no SOA', () => {
    const message = ednsQuery(SERVICE, TYPE.A, { size: 512, flags: 0x8000 })
    const reply = parse(many(message))
    assert.deepEqual(reply.counts, [1, Math.floor((512 - message.length) / 16), 0, 1])
    assert.equal(reply.opts[0]!.ttl, 0x8000)
  })

  test('is none where exactly all fits, and is one where one octet is missing', () => {
    const room = 512 - A.length
    const count = Math.floor(room / 16)
    assert.equal(parse(responder([snapshot(addresses(count))])(A)).tc, false)
    assert.equal(parse(responder([snapshot(addresses(count + 1))])(A)).tc, true)
    const ten = responder([snapshot(addresses(40))])
    const exact = ednsQuery(SERVICE, TYPE.A).length + 40 * 16
    for (const [size, tc] of [
      [exact, false],
      [exact - 1, true],
    ] as const)
      assert.equal(parse(ten(ednsQuery(SERVICE, TYPE.A, { size }))).tc, tc)
  })

  test('is none where only the addresses of SRV targets do not fit: they are left out', () => {
    const server = responder([snapshot(addresses(8))])
    const name = `_echo._udp.${SERVICE}`
    const reply = parse(server(query(name, TYPE.SRV)))
    assert.equal(reply.tc, false)
    assert.equal(reply.answers.length, 8)
    assert.ok(reply.additionals.length < 8)
    assert.equal(parse(server(query(name, TYPE.SRV), 'tcp')).additionals.length, 8)
  })

  test('is also one of TXT and SRV, which TCP has whole', () => {
    for (const [name, type] of [
      [SERVICE, TYPE.TXT],
      [`_echo._tcp.${SERVICE}`, TYPE.SRV],
    ] as const) {
      const short = parse(many(query(name, type)))
      assert.equal(short.tc, true)
      assert.ok(short.answers.length > 0)
      assert.equal(parse(many(query(name, type), 'tcp')).answers.length, 101)
    }
  })

  for (const [kind, list] of [
    ['IPv4', addresses(1000)],
    ['IPv6', Array.from({ length: 1000 }, (_, i) => `fd00:10:244::${(i + 1).toString(16)}`)],
  ] as const)
    test(`is none over TCP with 1,000 ${kind} endpoints, of any type`, () => {
      const thousand = responder([snapshot(list)])
      for (const [name, type] of [
        [SERVICE, kind === 'IPv4' ? TYPE.A : TYPE.AAAA],
        [SERVICE, TYPE.TXT],
        [`_echo._udp.${SERVICE}`, TYPE.SRV],
        [`_echo._tcp.${SERVICE}`, TYPE.SRV],
      ] as const) {
        const reply = parse(thousand(ednsQuery(name, type), 'tcp'))
        assert.equal(reply.tc, false)
        assert.equal(reply.answers.length, 1000)
        assert.equal(reply.opts.length, 1)
        if (type === TYPE.A || type === TYPE.AAAA) assert.deepEqual(reply.addresses, list)
        if (type === TYPE.SRV) assert.equal(new Set(reply.answers.map(({ target }) => target)).size, 1000)
      }
    })
})

function shuffled<T>(list: readonly T[], random: () => number): T[] {
  const keyed = list.map(item => ({ item, key: random() }))
  return keyed.sort((a, b) => a.key - b.key).map(({ item }) => item)
}

describe('the answer', () => {
  test('of SOA and NS stands at the apex, with glue', () => {
    const server = responder([snapshot(three)], { nsAddresses: ['127.0.0.1', '::1'], serial: 2 ** 32 - 1 })
    const soa = parse(server(query(APEX, TYPE.SOA)))
    assert.deepEqual(
      soa.answers.map(({ primary, admin, serial, minimum, ttl }) => [primary, admin, serial, minimum, ttl]),
      [[`ns.${APEX}`, `hostmaster.${APEX}`, 2 ** 32 - 1, 5, 5]],
    )
    const ns = parse(server(query(APEX, TYPE.NS)))
    assert.deepEqual(
      ns.answers.map(record => record.ns),
      [`ns.${APEX}`],
    )
    assert.deepEqual(
      ns.additionals.map(({ name, address }) => [name, address]),
      [
        [`ns.${APEX}`, '127.0.0.1'],
        [`ns.${APEX}`, '::1'],
      ],
    )
    assert.deepEqual(parse(server(query(`ns.${APEX}`, TYPE.A))).addresses, ['127.0.0.1'])
    assert.deepEqual(parse(server(query(`ns.${APEX}`, TYPE.AAAA))).addresses, ['::1'])
    for (const { aa } of [soa, ns]) assert.equal(aa, true)
  })

  test('takes turns per name and type, whatever is asked in between', () => {
    const server = responder([snapshot([...three, 'fd00::1', 'fd00::2', 'fd00::3'])])
    const first = (name: string, type: number) => {
      const { answers } = parse(server(query(name, type), 'tcp'))
      return answers[0]?.address ?? answers[0]?.target
    }
    // In any order: taken strictly by turns, types that shared a cursor would not show.
    const asked: [name: string, type: number][] = Array.from(
      { length: 300 },
      () =>
        [
          [SERVICE, TYPE.A],
          [SERVICE, TYPE.AAAA],
          [`_echo._udp.${SERVICE}`, TYPE.SRV],
          [SERVICE, TYPE.TXT],
          [APEX, TYPE.SOA],
          [SERVICE, TYPE.ANY],
          [`no.${APEX}`, TYPE.A],
          [`10-0-0-1.${SERVICE}`, TYPE.A],
        ] satisfies [string, number][],
    ).flat()
    const counts: Record<string, number> = {}
    for (const [name, type] of shuffled(asked, seeded(9))) {
      const head = first(name, type)
      if (name === SERVICE && head) counts[head] = (counts[head] ?? 0) + 1
    }
    assert.deepEqual(counts, {
      '10.0.0.1': 100,
      '10.0.0.2': 100,
      '10.0.0.3': 100,
      'fd00::1': 100,
      'fd00::2': 100,
      'fd00::3': 100,
    })
  })

  test('of SRV has a record for each endpoint; its target has the address, beside it and when asked', () => {
    for (const transport of ['udp', 'tcp']) {
      const reply = ask(query(`_echo._${transport}.${SERVICE}`, TYPE.SRV))
      assert.equal(reply.answers.length, 3)
      for (const [i, { target = '', port }] of reply.answers.entries()) {
        assert.equal(port, 7007)
        assert.equal(reply.additionals[i]!.name, target)
        assert.deepEqual(ask(query(target, TYPE.A)).addresses, [reply.additionals[i]!.address])
      }
    }
  })

  test('of SRV has its target spelled out: RFC 2782 allows no compression there', () => {
    const message = query(`_echo._udp.${SERVICE}`, TYPE.SRV)
    const { octets, answers } = ask(message)
    let at = message.length
    for (const { target = '' } of answers) {
      assert.equal(octets.readUInt16BE(at), 0xc00c)
      const rdata = octets.subarray(at + 12, at + 12 + octets.readUInt16BE(at + 10))
      assert.deepEqual(rdata.subarray(6), nameOctets(target))
      at += 12 + rdata.length
    }
    // Its address beside it still points there.
    assert.equal(octets.readUInt16BE(at), 0xc000 | (message.length + 18))
  })

  test('of TXT has one string for each endpoint, with address and state', () => {
    const server = responder([
      snapshot(['10.0.0.1', endpoint('10.0.0.2', { state: 'down', answered: false }), endpoint('fd00::1')]),
    ])
    assert.deepEqual(
      parse(server(query(SERVICE, TYPE.TXT))).answers.map(({ data }) => data),
      [['10.0.0.1 up'], ['10.0.0.2 down'], ['fd00::1 up']],
    )
  })

  test('to ANY is the HINFO of RFC 8482 alone, and negative where there is nothing', () => {
    for (const name of [SERVICE, APEX, `ns.${APEX}`, `_echo._udp.${SERVICE}`]) {
      const reply = ask(query(name, TYPE.ANY), 'tcp')
      assert.equal(reply.aa, true)
      assert.deepEqual(
        reply.answers.map(({ type, data, ttl }) => [type, String(data), ttl]),
        [[TYPE.HINFO, '\x07RFC8482\x00', 5]],
      )
      assert.deepEqual(reply.counts, [1, 1, 0, 0])
    }
    assertNegative(ask(query(`_udp.${SERVICE}`, TYPE.ANY)), RCODE.NOERROR)
    assertNegative(ask(query(`no.${APEX}`, TYPE.ANY)), RCODE.NXDOMAIN)
  })

  test('in class CH says which server this is', () => {
    const texts = {
      'version.bind': 'roundelay 1.2.3',
      'hostname.bind': 'test-server',
      'id.server': 'test-server',
    }
    for (const [name, text] of Object.entries(texts))
      for (const spelled of [name, name.toUpperCase()])
        for (const type of [TYPE.TXT, TYPE.ANY]) {
          const reply = ask(query(spelled, type, { class: CLASS.CH }))
          assert.deepEqual(
            reply.answers.map(record => [record.name, record.class, record.type, record.data]),
            [[spelled, CLASS.CH, TYPE.TXT, [text]]],
          )
        }
    const none = ask(query('id.server', TYPE.A, { class: CLASS.CH }))
    assert.deepEqual([none.rcode, none.answers, none.aa], [RCODE.NOERROR, [], false])
  })

  test('is NODATA where the name has other types only, and for names that only hold others', () => {
    const nodata: [string, number][] = [
      [SERVICE, TYPE.AAAA],
      [SERVICE, TYPE.MX],
      [SERVICE, TYPE.SRV],
      [SERVICE, TYPE.EDNS],
      [SERVICE, 65280],
      [APEX, TYPE.A],
      [`ns.${APEX}`, TYPE.AAAA],
      [`_udp.${SERVICE}`, TYPE.A],
      [`_tcp.${SERVICE}`, TYPE.SRV],
      [`_echo._udp.${SERVICE}`, TYPE.A],
      [`10-0-0-1.${SERVICE}`, TYPE.AAAA],
    ]
    for (const [name, type] of nodata) assertNegative(ask(query(name, type)), RCODE.NOERROR)
  })

  test('is NXDOMAIN where there is no such name', () => {
    for (const name of [
      `no.${APEX}`,
      `no.${SERVICE}`,
      `10-0-0-9.${SERVICE}`,
      `_echo._sctp.${SERVICE}`,
      `a.ns.${APEX}`,
    ])
      for (const type of [TYPE.A, TYPE.SOA, TYPE.TXT]) assertNegative(ask(query(name, type)), RCODE.NXDOMAIN)
  })

  test('of a service without endpoints is NODATA at all its names', () => {
    for (const endpoints of [[], [endpoint('10.0.0.1', { state: 'down', answered: false })]]) {
      const none = responder([snapshot(endpoints)])
      for (const [name, type] of [
        [SERVICE, TYPE.A],
        [SERVICE, TYPE.AAAA],
        [`_echo._udp.${SERVICE}`, TYPE.SRV],
        [`_echo._tcp.${SERVICE}`, TYPE.SRV],
      ] as const)
        assertNegative(parse(none(query(name, type))), RCODE.NOERROR)
      assert.deepEqual([...none.cursors], [0, 0, 0, 0])
    }
  })

  test('before the first check round is SERVFAIL at and below the service, and nowhere else', () => {
    for (const service of [SERVICE, APEX]) {
      const waiting = responder([
        snapshot(['10.0.0.1'], { service: `other.${APEX}` }),
        snapshot(['10.0.0.2'], { service, ready: false }),
      ])
      for (const [name, type] of [
        [service, TYPE.A],
        [service, TYPE.AAAA],
        [service, TYPE.TXT],
        [service, TYPE.ANY],
        [`_echo._udp.${service}`, TYPE.SRV],
        [`_udp.${service}`, TYPE.A],
        [`10-0-0-2.${service}`, TYPE.A],
      ] as const) {
        const reply = parse(waiting(ednsQuery(name, type)))
        assert.equal(reply.rcode, RCODE.SERVFAIL, `${name} ${type}`)
        assert.equal(reply.aa, false)
        assert.deepEqual(reply.counts, [1, 0, 0, 1])
      }
      assert.equal(parse(waiting(query(APEX, TYPE.SOA))).answers.length, 1)
      assert.equal(parse(waiting(query(APEX, TYPE.NS))).additionals.length, 1)
      assert.deepEqual(parse(waiting(query(`ns.${APEX}`, TYPE.A))).addresses, ['127.0.0.1'])
      assert.deepEqual(parse(waiting(query(`other.${APEX}`, TYPE.A))).addresses, ['10.0.0.1'])
      assert.deepEqual([...waiting.cursors], [1, 0, 0, 0, 0, 0, 0, 0])
    }
  })

  test('is SERVFAIL for a service that is not ready though its name was there before it', () => {
    const above = responder([
      snapshot(['10.0.0.1'], { service: `a.${SERVICE}` }),
      snapshot([], { ready: false }),
    ])
    assert.equal(parse(above(query(SERVICE, TYPE.A))).rcode, RCODE.SERVFAIL)
    assert.equal(parse(above(query(`b.${SERVICE}`, TYPE.A))).rcode, RCODE.SERVFAIL)
    assert.deepEqual(parse(above(query(`a.${SERVICE}`, TYPE.A))).addresses, ['10.0.0.1'])
    assertNegative(parse(above(query(`b.a.${APEX}`, TYPE.A))), RCODE.NXDOMAIN)
  })

  test('follows the policy, and --answers', () => {
    const members = ['10.0.0.1*5', '10.0.0.2', '10.0.0.3']
    const weighted = responder([snapshot(members)], { policy: policy('weighted'), maxAnswers: 1 })
    const firsts = Array.from({ length: 7 }, () => parse(weighted(query(SERVICE, TYPE.A))).addresses)
    assert.equal(
      firsts
        .flat()
        .map(address => address?.slice(-1))
        .join(' '),
      '1 1 2 1 3 1 1',
    )
  })
})

/** 100,000 messages that were sound once. */
describe('whatever comes', () => {
  const many = [snapshot(addresses(60)), snapshot([], { service: `later.${APEX}`, ready: false })]
  const server = responder(many, { serverId: 's'.repeat(255) })
  const names = [
    SERVICE,
    SERVICE.toUpperCase(),
    APEX,
    `_echo._udp.${SERVICE}`,
    `no.${APEX}`,
    `later.${APEX}`,
    'id.server',
    'example.com',
    '',
    longName(255),
    longName(256),
  ]
  const types = [1, 2, 6, 16, 28, 33, 41, 251, 252, 255, 0, 65535]
  const edns: OptOptions[] = [
    {},
    { size: 512, rdata: NSID },
    { size: 0, flags: 0xffff },
    { version: 3 },
    { size: 65535, rdata: Buffer.concat([option(10, 'cookie01'), NSID]) },
  ]

  test('100,000 mutated queries never throw, and each reply can be read and is within its limit', () => {
    const random = seeded(2)
    const below = (n: number) => Math.floor(random() * n)
    const any = <T>(list: readonly T[]): T => list[below(list.length)]!
    const seen = new Map<string, number>()
    for (let i = 0; i < 100_000; i++) {
      const additionals = random() < 0.6 ? [opt(any(edns))] : []
      if (random() < 0.05) additionals.push(opt())
      const message = query(any(names), any(types), {
        id: below(65536),
        flags: random() < 0.9 ? RD : below(65536),
        class: random() < 0.9 ? CLASS.IN : any([0, 2, 3, 3, 4, 254, 255]),
        additionals,
        questionCount: random() < 0.95 ? 1 : below(4),
      })
      const octets = mutate(message, below, any)
      const before = Buffer.from(octets)
      const transport = random() < 0.9 ? 'udp' : 'tcp'
      const reply = server(octets, transport)
      assert.deepEqual(octets, before)
      if (!reply) {
        assert.ok(octets.length < 12 || octets[2]! >= 0x80)
        seen.set('none', (seen.get('none') ?? 0) + 1)
        continue
      }
      const { errors, header } = Packet.parse(reply)
      const context = () => `message ${i}: ${octets.toString('hex')} → ${reply.toString('hex')}`
      assert.equal(errors.length, 0, errors.length ? context() : '')
      if (reply.readUInt16BE(0) !== octets.readUInt16BE(0)) assert.fail(context())
      if ((reply[2]! & 0xf8) !== (0x80 | (octets[2]! & 0x78))) assert.fail(context())
      if (reply.length > (transport === 'tcp' ? 65535 : 1232)) assert.fail(context())
      if (transport === 'udp' && additionals.length === 0 && octets.equals(message) && reply.length > 512)
        assert.fail(context())
      seen.set(String(header.rcode), (seen.get(String(header.rcode)) ?? 0) + 1)
    }
    // That each kind of reply was reached shows that the mutations do not all end at the first guard.
    const { NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS } = RCODE
    for (const rcode of ['none', NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS])
      assert.ok((seen.get(String(rcode)) ?? 0) > 100, `${rcode}: ${JSON.stringify([...seen])}`)
  })

  function mutate(message: Buffer, below: (n: number) => number, any: <T>(list: readonly T[]) => T): Buffer {
    let octets = Buffer.from(message)
    for (let left = below(4); left > 0; left--) {
      const at = below(octets.length)
      const kind = below(6)
      if (octets.length === 0) return octets
      if (kind === 0) octets[at]! ^= 1 << below(8)
      else if (kind === 1) octets[at] = any([0, 1, 0x3f, 0x40, 0x80, 0xc0, 0xff])
      else if (kind === 2) octets = octets.subarray(0, at)
      else if (kind === 3) octets = Buffer.concat([octets, octets.subarray(at)])
      else if (kind === 4)
        octets = Buffer.concat([octets.subarray(0, at), Buffer.from([below(256)]), octets.subarray(at)])
      else octets = Buffer.concat([octets.subarray(0, at), octets.subarray(at + 1)])
    }
    return octets
  }

  test('20,000 messages of random octets never throw, and each reply can be read', () => {
    const random = seeded(3)
    for (let i = 0; i < 20_000; i++) {
      const octets = Buffer.from(
        Array.from({ length: Math.floor(random() * 100) }, () => Math.floor(random() * 256)),
      )
      const reply = server(octets, 'tcp')
      if (reply) assert.deepEqual(Packet.parse(reply).errors, [])
      else assert.ok(octets.length < 12 || octets[2]! >= 0x80)
    }
  })
})
