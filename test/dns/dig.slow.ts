import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { describe, type TestContext, test } from 'node:test'
import { promisify } from 'node:util'
import { has, portOf, type Running, start } from '../support/process.ts'
import {
  APEX,
  addresses,
  CLASS,
  dnsTcpClient,
  dnsUdpClient,
  ednsQuery,
  IXFR,
  parse,
  query,
  RCODE,
  SERVICE,
  seeded,
  TYPE,
} from './message.ts'

const skip = has('dig') ? false : 'needs dig (Debian: bind9-dnsutils)'
const run = promisify(execFile)
const THREE = 'echo=static:10.0.0.1,10.0.0.2,10.0.0.3'
const transports = ['+notcp', '+tcp'] as const

/** `roundelay dns` with these flags, listening. */
async function serve(t: TestContext, ...flags: string[]): Promise<{ port: number; server: Running }> {
  const own = ['--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', '--server-id', 'me-1']
  const server = start(t, ['dns', ...own, ...flags])
  const { listen } = await server.line('DNS server is listening')
  return { port: portOf((listen as string[])[0]), server }
}

/** The same, with every service ready. */
async function serveReady(t: TestContext, ...flags: string[]): Promise<number> {
  const { port, server } = await serve(t, '--check', 'none', ...flags)
  const services = flags.filter(flag => flag === '--service').length
  await server.line(
    () => server.lines.filter(({ msg }) => msg.startsWith('service ready')).length === services,
  )
  return port
}

interface Dug {
  readonly text: string
  readonly status: string
  readonly opcode: string
  readonly flags: string
  readonly ednsFlags: string | undefined
  /** Records of each section, with white space reduced to one blank. */
  readonly answer: readonly string[]
  readonly authority: readonly string[]
  readonly additional: readonly string[]
}

async function dig(port: number, ...args: string[]): Promise<Dug> {
  const fixed = ['@127.0.0.1', '-p', String(port), '+tries=1', '+time=10', '+nocookie', '+norecurse']
  const { stdout: text } = await run('dig', [...fixed, ...args])
  assert.doesNotMatch(text, /bad packet|extra bytes|malformed|mismatch|communications error/i)
  assert.ok(text.split(';; Got answer').length <= 2, text)
  const section = (name: string) =>
    (new RegExp(`;; ${name} SECTION:\n((?:.+\n)+)`).exec(text)?.[1] ?? '')
      .split('\n')
      .filter(Boolean)
      .map(line => line.replace(/\s+/g, ' '))
  return {
    text,
    status: /status: (\w+)/.exec(text)?.[1] ?? '',
    opcode: /opcode: (\w+)/.exec(text)?.[1] ?? '',
    flags: /;; flags: ([^;]*);/.exec(text)?.[1] ?? '',
    ednsFlags: /; EDNS: version: 0, flags:([^;]*); udp: 1232$/m.exec(text)?.[1]?.trim(),
    answer: section('ANSWER'),
    authority: section('AUTHORITY'),
    additional: section('ADDITIONAL'),
  }
}

const soaLine = (ttl = 5) =>
  new RegExp(
    `^roundelay.test. ${ttl} IN SOA ns.roundelay.test. hostmaster.roundelay.test. \\d+ \\d+ \\d+ \\d+ ${ttl}$`,
  )

/** A negative answer: authoritative, empty, with the SOA. */
function assertNegative(dug: Dug, status: 'NOERROR' | 'NXDOMAIN', ttl = 5): void {
  assert.deepEqual([dug.status, dug.flags, dug.answer], [status, 'qr aa', []], dug.text)
  assert.equal(dug.authority.length, 1)
  assert.match(dug.authority[0]!, soaLine(ttl))
}

describe('dig', { skip, concurrency: 2, timeout: 300_000 }, () => {
  test('finds SOA and NS at the apex, with glue from the address it listens on', async t => {
    const port = await serveReady(t, '--service', THREE)
    for (const over of transports) {
      const soa = await dig(port, over, APEX, 'SOA')
      assert.deepEqual([soa.status, soa.flags, soa.answer.length], ['NOERROR', 'qr aa', 1])
      assert.match(soa.answer[0]!, soaLine())
      const ns = await dig(port, over, APEX, 'NS')
      assert.deepEqual(ns.answer, [`${APEX}. 5 IN NS ns.${APEX}.`])
      assert.deepEqual(ns.additional, [`ns.${APEX}. 5 IN A 127.0.0.1`])
      assert.deepEqual((await dig(port, over, `ns.${APEX}`, 'A')).answer, ns.additional)
    }
  })

  test('finds the glue of --ns-address, of both families, and the TTL of --ttl as MINIMUM', async t => {
    const flags = ['--ns-address', '192.0.2.1', '--ns-address', '2001:db8::1', '--ttl', '9']
    const port = await serveReady(t, '--service', THREE, ...flags)
    for (const over of transports) {
      const { additional } = await dig(port, over, APEX, 'NS')
      assert.deepEqual(additional, [`ns.${APEX}. 9 IN A 192.0.2.1`, `ns.${APEX}. 9 IN AAAA 2001:db8::1`])
      assert.match((await dig(port, over, APEX, 'SOA')).answer[0]!, soaLine(9))
      assertNegative(await dig(port, over, `no.${APEX}`), 'NXDOMAIN', 9)
    }
  })

  test('finds A and AAAA of each service, and NODATA with SOA for the family it has not', async t => {
    const both = 'both=static:10.0.1.1,fd00::1'
    const port = await serveReady(t, '--service', THREE, '--service', both, '--service', 'six=static:fd00::6')
    for (const over of transports) {
      const a = await dig(port, over, SERVICE, 'A')
      assert.deepEqual(
        a.answer.toSorted(),
        ['10.0.0.1', '10.0.0.2', '10.0.0.3'].map(address => `${SERVICE}. 5 IN A ${address}`),
      )
      assert.equal(a.flags, 'qr aa')
      assert.deepEqual((await dig(port, over, `both.${APEX}`, 'A')).answer, [`both.${APEX}. 5 IN A 10.0.1.1`])
      assert.deepEqual((await dig(port, over, `both.${APEX}`, 'AAAA')).answer, [
        `both.${APEX}. 5 IN AAAA fd00::1`,
      ])
      assertNegative(await dig(port, over, SERVICE, 'AAAA'), 'NOERROR')
      assertNegative(await dig(port, over, `six.${APEX}`, 'A'), 'NOERROR')
    }
  })

  test('finds an SRV for each endpoint, whose target has its A, on the port of --port', async t => {
    const port = await serveReady(t, '--service', THREE, '--port', '7107')
    for (const over of transports)
      for (const name of [`_echo._udp.${SERVICE}`, `_echo._tcp.${SERVICE}`]) {
        const { answer, additional, flags } = await dig(port, over, name, 'SRV')
        const targets = [1, 2, 3].map(i => `10-0-0-${i}.${SERVICE}.`)
        assert.equal(flags, 'qr aa')
        assert.deepEqual(
          answer.toSorted(),
          targets.map(target => `${name}. 5 IN SRV 0 1 7107 ${target}`),
        )
        assert.deepEqual(
          additional.toSorted(),
          targets.map((target, i) => `${target} 5 IN A 10.0.0.${i + 1}`),
        )
        assert.deepEqual((await dig(port, over, targets[1]!, 'A')).answer, [`${targets[1]} 5 IN A 10.0.0.2`])
      }
  })

  test('finds a TXT with one string for each endpoint: address and state', async t => {
    const port = await serveReady(t, '--service', THREE)
    for (const over of transports)
      assert.deepEqual(
        (await dig(port, over, SERVICE, 'TXT')).answer,
        [1, 2, 3].map(i => `${SERVICE}. 5 IN TXT "10.0.0.${i} up"`),
      )
  })

  test('is told NXDOMAIN and NODATA with SOA, and REFUSED outside the zone', async t => {
    const port = await serveReady(t, '--service', THREE)
    for (const over of transports) {
      for (const name of [`no.${APEX}`, `no.${SERVICE}`, `10-0-0-4.${SERVICE}`])
        assertNegative(await dig(port, over, name), 'NXDOMAIN')
      for (const [name, type] of [
        [APEX, 'A'],
        [SERVICE, 'MX'],
        [SERVICE, 'TYPE65280'],
        [`_udp.${SERVICE}`, 'A'],
        [`_echo._udp.${SERVICE}`, 'A'],
        [`ns.${APEX}`, 'AAAA'],
      ])
        assertNegative(await dig(port, over, name!, type!), 'NOERROR')
      for (const name of [
        'example.com',
        '.',
        'test',
        `x${APEX}`,
        'echo\\.roundelay.test',
        'xecho.roundelay\\.test',
      ]) {
        const dug = await dig(port, over, name)
        assert.deepEqual([dug.status, dug.flags, dug.answer, dug.authority], ['REFUSED', 'qr', [], []])
      }
    }
  })

  test('gets its own spelling back, since names are compared without case', async t => {
    const port = await serveReady(t, '--service', 'EcHo=static:10.0.0.1', '--zone', 'Roundelay.TEST')
    for (const over of transports)
      for (const name of ['eCHO.roundELAY.Test', SERVICE, SERVICE.toUpperCase()])
        assert.deepEqual((await dig(port, over, name)).answer, [`${name}. 5 IN A 10.0.0.1`])
  })

  test('gets an OPT of 1232 octets with every reply to a query with one, and none without', async t => {
    const port = await serveReady(t, '--service', THREE)
    for (const over of transports)
      for (const [args, status] of [
        [[SERVICE], 'NOERROR'],
        [[SERVICE, 'AAAA'], 'NOERROR'],
        [[`no.${APEX}`], 'NXDOMAIN'],
        [['example.com'], 'REFUSED'],
        [[SERVICE, 'HS', 'A'], 'REFUSED'],
        [['+opcode=status', SERVICE], 'NOTIMP'],
        [['+header-only'], 'FORMERR'],
        [['+edns=1', '+noednsnegotiation', SERVICE], 'BADVERS'],
        [['+ednsopt=65001:c0ffee', '+subnet=192.0.2.0/24', '+cookie=0123456789abcdef', SERVICE], 'NOERROR'],
        [['+dnssec', SERVICE], 'NOERROR'],
      ] as const) {
        const dug = await dig(port, over, ...args)
        assert.equal(dug.status, status)
        assert.equal(dug.ednsFlags, args[0] === '+dnssec' ? 'do' : '', dug.text)
        assert.doesNotMatch(dug.text, /COOKIE|CLIENT-SUBNET|OPT=/)
        if (args[0].startsWith('+edns=')) continue
        const plain = await dig(
          port,
          over,
          '+noedns',
          ...args.filter(arg => !/^\+(ednsopt|subnet|cookie|dnssec)/.test(arg)),
        )
        assert.doesNotMatch(plain.text, /OPT PSEUDOSECTION/)
      }
  })

  test('has CD and DO copied and AD, Z and unknown EDNS flags cleared', async t => {
    const port = await serveReady(t, '--service', THREE)
    for (const over of transports) {
      const dug = await dig(
        port,
        over,
        SERVICE,
        '+recurse',
        '+adflag',
        '+cdflag',
        '+zflag',
        '+dnssec',
        '+ednsflags=0xffff',
      )
      assert.deepEqual([dug.flags, dug.ednsFlags], ['qr aa rd cd', 'do'])
      assert.doesNotMatch(dug.text, /MBZ/)
    }
  })

  test('gets what fits with TC over UDP, and the whole answer over TCP', async t => {
    const port = await serveReady(t, '--service', `echo=static:${addresses(1000)}`)
    const sizes: [size: string, answers: number][] = [
      ['+noedns', 29],
      ['+bufsize=512', 29],
      ['+bufsize=1232', 74],
      ['+bufsize=4096', 74],
    ]
    for (const [size, answers] of sizes) {
      const dug = await dig(port, size, '+notcp', '+ignore', SERVICE)
      assert.deepEqual([dug.flags, dug.answer.length], ['qr aa tc', answers])
      assert.equal(dug.answer[0], `${SERVICE}. 5 IN A 10.0.0.0`, 'a truncated answer turns nothing')
    }
    // Without +ignore dig comes again over TCP by itself.
    for (const [args, turned] of [
      [['+tcp'], 0],
      [['+notcp'], 1],
    ] as const) {
      const dug = await dig(port, ...args, SERVICE)
      assert.equal(dug.flags, 'qr aa')
      assert.deepEqual(
        dug.answer,
        [...addresses(1000).slice(turned), ...addresses(turned)].map(
          address => `${SERVICE}. 5 IN A ${address}`,
        ),
      )
    }
    for (const [name, type] of [
      [SERVICE, 'TXT'],
      [`_echo._udp.${SERVICE}`, 'SRV'],
    ]) {
      assert.match((await dig(port, '+notcp', '+ignore', name!, type!)).flags, /tc/)
      assert.equal((await dig(port, '+tcp', name!, type!)).answer.length, 1000)
    }
  })

  test('is told FORMERR, NOTIMP and REFUSED by the guards', async t => {
    const port = await serveReady(t, '--service', THREE)
    for (const over of transports) {
      const empty = await dig(port, over, '+header-only')
      assert.equal(empty.status, 'FORMERR')
      assert.match(empty.text, /QUERY: 0, ANSWER: 0, AUTHORITY: 0/)
      for (const opcode of ['IQUERY', 'STATUS', 'NOTIFY', 'UPDATE']) {
        const dug = await dig(port, over, `+opcode=${opcode}`, SERVICE)
        assert.deepEqual([dug.status, dug.opcode, dug.answer], ['NOTIMP', opcode, []])
      }
      for (const [dnsClass, name] of [
        ['HS', SERVICE],
        ['CLASS2', SERVICE],
        ['CH', SERVICE],
        ['IN', 'version.bind'],
      ])
        assert.equal((await dig(port, over, name!, dnsClass!, 'TXT')).status, 'REFUSED')
    }
    assert.match((await dig(port, '+tcp', APEX, 'AXFR')).text, /Transfer failed/)
    assert.deepEqual((await dig(port, '+tcp', APEX, 'IXFR=1')).answer, [])
    // dig hides the rcode of a transfer.
    const clients = [await dnsUdpClient(t, port), await dnsTcpClient(t, port)]
    for (const client of clients)
      for (const type of [TYPE.AXFR, IXFR]) {
        assert.equal(parse(await client.ask(ednsQuery(APEX, type))).rcode, RCODE.REFUSED)
        assert.equal(parse(await client.ask(query('id.server', type, { class: CLASS.CH }))).rcode, 9)
      }
  })

  test('gets the minimal answer of RFC 8482 to ANY', async t => {
    const port = await serveReady(t, '--service', THREE)
    for (const over of transports)
      for (const name of [SERVICE, APEX]) {
        const { answer, flags } = await dig(port, over, name, 'ANY')
        assert.deepEqual([answer, flags], [[`${name}. 5 IN HINFO "RFC8482" ""`], 'qr aa'])
      }
  })

  test('learns from class CH and NSID which server answered', async t => {
    const port = await serveReady(t, '--service', THREE)
    for (const over of transports) {
      for (const name of ['hostname.bind', 'id.server'])
        assert.deepEqual((await dig(port, over, name, 'CH', 'TXT')).answer, [`${name}. 0 CH TXT "me-1"`])
      const { answer } = await dig(port, over, 'version.bind', 'CH', 'TXT')
      assert.match(answer.join(), /^version.bind. 0 CH TXT "roundelay \d+\.\d+\.\d+"$/)
      assert.match((await dig(port, over, '+nsid', SERVICE)).text, /; NSID: .*\("me-1"\)/)
    }
  })

  test('is told SERVFAIL before the first check round is over, but the SOA', async t => {
    // Nobody answers there, and the check does not give up while we ask.
    const silent = createSocket('udp4').bind(0, '127.0.0.1')
    await once(silent, 'listening')
    t.after(() => silent.close())
    const checks = [
      '--check',
      `udp:${silent.address().port}`,
      '--check-timeout',
      '10m',
      '--check-interval',
      '10m',
    ]
    const { port } = await serve(t, '--service', 'echo=static:127.0.0.1', ...checks)
    for (const over of transports) {
      for (const [name, type] of [
        [SERVICE, 'A'],
        [SERVICE, 'AAAA'],
        [SERVICE, 'TXT'],
        [`_echo._udp.${SERVICE}`, 'SRV'],
        [`127-0-0-1.${SERVICE}`, 'A'],
      ]) {
        const dug = await dig(port, over, name!, type!)
        assert.deepEqual([dug.status, dug.flags, dug.answer, dug.authority], ['SERVFAIL', 'qr', [], []])
      }
      assert.match((await dig(port, over, APEX, 'SOA')).answer[0]!, soaLine())
      assert.equal((await dig(port, over, APEX, 'NS')).additional.length, 1)
    }
  })

  test('sees NODATA for a service without endpoints, and a serial that reads as the time of the change', async t => {
    const replica = createSocket('udp4').bind(0, '127.0.0.1')
    await once(replica, 'listening')
    replica.on('message', (message, { port, address }) => replica.send(message, port, address))
    t.after(() => replica.close())
    const checks = [
      '--check',
      `udp:${replica.address().port}`,
      '--check-interval',
      '50ms',
      '--check-timeout',
      '2s',
    ]
    const { port, server } = await serve(
      t,
      '--service',
      'echo=static:127.0.0.1',
      '--fail',
      'closed',
      ...checks,
    )
    const serial = async () => Number((await dig(port, '+short', APEX, 'SOA')).text.split(' ')[2])
    await server.line('service ready')
    await server.line('endpoint 127.0.0.1 is up')
    const before = await serial()
    assert.ok(Math.abs(before - Date.now() / 1000) < 600, 'it reads as the time')
    replica.removeAllListeners('message')
    await server.line('endpoint 127.0.0.1 is down')
    // The log line is written a moment before the Snapshot exists.
    while ((await dig(port, SERVICE)).answer.length > 0);
    for (const over of transports) {
      assertNegative(await dig(port, over, SERVICE), 'NOERROR')
      assertNegative(await dig(port, over, `_echo._tcp.${SERVICE}`, 'SRV'), 'NOERROR')
      assert.deepEqual((await dig(port, over, SERVICE, 'TXT')).answer, [
        `${SERVICE}. 5 IN TXT "127.0.0.1 down"`,
      ])
    }
    const after = await serial()
    assert.ok(after >= before && Math.abs(after - Date.now() / 1000) < 600)
  })

  test('sees each of 3 endpoints first in exactly 100 of 300 answers, whatever else is asked', async t => {
    const port = await serveReady(
      t,
      '--service',
      `${THREE},fd00::1,fd00::2`,
      '--service',
      `many=static:${addresses(40)}`,
    )
    const udp = await dnsUdpClient(t, port)
    const tcp = await dnsTcpClient(t, port)
    const counts: Record<string, number> = {}
    const random = seeded(300)
    const noise: [name: string, type: number][] = [
      [SERVICE, TYPE.AAAA],
      [SERVICE, TYPE.TXT],
      [SERVICE, TYPE.ANY],
      [`_echo._udp.${SERVICE}`, TYPE.SRV],
      [`_echo._tcp.${SERVICE}`, TYPE.SRV],
      [APEX, TYPE.SOA],
      [APEX, TYPE.NS],
      [`10-0-0-1.${SERVICE}`, TYPE.A],
      [`no.${APEX}`, TYPE.A],
      [`many.${APEX}`, TYPE.A],
    ]
    for (let i = 0; i < 300; i++) {
      const name = i % 2 ? SERVICE : SERVICE.toUpperCase()
      let first: string
      if (i % 10 === 0)
        first = (await dig(port, '+short', i % 20 ? '+tcp' : '+notcp', name)).text.split('\n')[0]!
      else first = String(parse(await [udp, tcp][i % 2]!.ask(query(name, TYPE.A))).addresses[0])
      counts[first] = (counts[first] ?? 0) + 1
      const [other, type] = noise[Math.floor(random() * noise.length)]!
      const reply = parse(await udp.ask(query(other, type)))
      assert.equal(reply.tc, other.startsWith('many'))
    }
    assert.deepEqual(counts, { '10.0.0.1': 100, '10.0.0.2': 100, '10.0.0.3': 100 })
  })

  test('sees weights exactly over a full period, and no more records than --answers', async t => {
    const weights = 'echo=static:10.0.0.1*50,10.0.0.2*10,10.0.0.3*10'
    const port = await serveReady(t, '--service', weights, '--policy', 'weighted', '--answers', '1')
    const seen: string[] = []
    for (let i = 0; i < 14; i++) seen.push((await dig(port, '+short', SERVICE)).text.trim().slice(-1))
    assert.equal(seen.join(' '), '1 1 2 1 3 1 1 1 1 2 1 3 1 1')
  })
})
