import assert from 'node:assert/strict'
import { EventEmitter, once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { formatAddress, type SocketAddress, type Transport } from '../../src/address.ts'
import { parseSource } from '../../src/commands/values.ts'
import { type Answerer, Authority } from '../../src/dns/authority.ts'
import { policies } from '../../src/dns/rotation.ts'
import { dnsSource } from '../../src/endpoints/dns.ts'
import type { Sink, Source, SourceNote } from '../../src/endpoints/endpoint.ts'
import type { EndpointStatus } from '../../src/endpoints/pool.ts'
import { listenDns } from '../../src/net/dns-server.ts'
import { DNS, startDns } from '../support/farm.ts'
import { freePort } from '../support/ports.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

const NAME = 'echo.farm.test'

/** The answers of an authority, with a TTL of 600 s as in Docker's DNS. */
function authority(
  addresses: readonly string[],
  { ready = true, apex = 'farm.test', service = NAME } = {},
): Answerer {
  const answering = new Authority(
    {
      apex,
      ttlSeconds: 600,
      nsAddresses: ['127.0.0.1'],
      port: 7,
      policy: policies[0]!,
      services: [service],
      maxAnswers: Number.POSITIVE_INFINITY,
      serverId: 'test',
      version: '0',
      clock: new VirtualClock(),
      random: Math.random,
    },
    { failed: error => assert.fail(error) },
  )
  const endpoints = addresses.map<EndpointStatus>(address => ({
    address,
    family: address.includes(':') ? 6 : 4,
    weight: 1,
    state: 'up',
    terminating: false,
    answered: true,
    detail: '',
    activeConnections: undefined,
  }))
  answering.update({ service, ready, failedOpen: false, endpoints })
  return (message, transport) => answering.answer(message, transport)
}

const isAaaa = (message: Buffer) => message.includes(Buffer.from([4, 0x74, 0x65, 0x73, 0x74, 0, 0, 28]))

/** A resolver on real sockets, whose answers can be changed while it runs. */
async function resolver(t: TestContext, first: Answerer) {
  const seen: Transport[] = []
  const asked = new EventEmitter()
  const state = { answer: first, seen, asked, address: { address: '', port: 0 } as SocketAddress }
  const listener = await listenDns(
    (message, transport) => {
      seen.push(transport)
      asked.emit('query')
      return state.answer(message, transport)
    },
    { listen: [{ address: '127.0.0.1', port: 0 }] },
  )
  t.after(() => listener.close(AbortSignal.abort()))
  state.address = listener.addresses[0]!
  return state
}

/** Starts a source; `poll` resolves with the result of the next poll: the addresses, or the error. */
function follow(t: TestContext, source: Source) {
  const clock = new VirtualClock()
  const stop = new AbortController()
  const results: (string[] | string)[] = []
  const notes: SourceNote[] = []
  const news = new EventEmitter()
  const add = (result: string[] | string) => {
    results.push(result)
    news.emit('result')
  }
  const sink: Sink = {
    publish: endpoints => add(endpoints.map(({ address }) => address)),
    fail: error => add(String((error as NodeJS.ErrnoException).code)),
    note: note => {
      notes.push(note)
      news.emit('note')
    },
  }
  const running = source(sink, stop.signal, clock, () => 0)
  t.after(async () => {
    stop.abort()
    await running
  })
  let polls = 0
  const poll = async () => {
    if (polls++ > 0) await clock.advance(INTERVAL_MS)
    if (results.length === 0) await once(news, 'result')
    return results.shift()
  }
  const nextNote = async () => {
    while (notes.length === 0) await once(news, 'note')
    return notes.shift()
  }
  return { clock, poll, nextNote, stop, running, results, notes }
}

const INTERVAL_MS = 1000
const polled = (t: TestContext, server: SocketAddress, hold = 1) =>
  follow(t, dnsSource({ name: NAME, server, intervalMs: INTERVAL_MS, hold }))

test('a polled name is followed: every answer, none, failure and recovery, each at the next poll', async t => {
  const three = authority(['127.0.4.10', '::2', '127.0.4.9', '::1'])
  const server = await resolver(t, three)
  const { poll } = polled(t, server.address)
  const failsForIpv6: Answerer = (message, transport) =>
    isAaaa(message) ? authority([], { ready: false })(message, transport) : three(message, transport)
  const steps: readonly (readonly [string, Answerer, string[] | string])[] = [
    // The authority rotates, the source sorts.
    ['both families, in one order', three, ['127.0.4.9', '127.0.4.10', '::1', '::2']],
    ['a TTL of 600 s does not hide a change', authority(['127.0.4.9']), ['127.0.4.9']],
    ['SERVFAIL', authority([], { ready: false }), 'ESERVFAIL'],
    ['an answer again', authority(['::1']), ['::1']],
    ['NODATA means none', authority([]), []],
    ['REFUSED', authority([], { apex: 'other.test', service: 'echo.other.test' }), 'EREFUSED'],
    ['NXDOMAIN means none', authority([], { service: 'x.farm.test' }), []],
    ['one family fails, and nothing is known of it', failsForIpv6, ['127.0.4.9', '127.0.4.10']],
    ['both families again', three, ['127.0.4.9', '127.0.4.10', '::1', '::2']],
  ]
  for (const [what, answer, expected] of steps) {
    server.answer = answer
    for (let i = 1; i <= 4; i++) assert.deepEqual(await poll(), expected, `${what}, poll ${i}`)
  }
})

test('polls start an interval apart', async t => {
  const server = await resolver(t, authority(['127.0.4.1']))
  const { clock, poll, results } = polled(t, server.address)
  await poll()
  await clock.advance(INTERVAL_MS - 1)
  assert.deepEqual([server.seen.length, results], [2, []])
  await clock.advance(1)
  while (server.seen.length < 4) await once(server.asked, 'query')
})

test('a resolver that falls silent changes nothing until it answers again', async t => {
  const server = await resolver(t, authority(['127.0.4.1']))
  const { poll } = polled(t, server.address)
  assert.deepEqual(await poll(), ['127.0.4.1'])
  server.answer = () => undefined
  assert.equal(await poll(), 'ETIMEOUT')
  server.answer = authority(['127.0.4.2'])
  assert.deepEqual(await poll(), ['127.0.4.2'])
})

test('an answer that does not fit a datagram is fetched over TCP', async t => {
  const addresses = Array.from({ length: 200 }, (_, i) => `127.0.4.${i + 1}`)
  const server = await resolver(t, authority(addresses))
  const { poll } = polled(t, server.address)
  for (let i = 1; i <= 3; i++) assert.deepEqual(await poll(), addresses)
  assert.ok(server.seen.includes('tcp') && server.seen.includes('udp'))
})

test('abort ends a source at once, while it waits for the next poll and while it waits for an answer', async t => {
  const server = await resolver(t, authority(['127.0.4.1']))
  const waiting = polled(t, server.address)
  await waiting.poll()
  waiting.stop.abort()
  await waiting.running
  assert.equal(waiting.clock.waiting, 0)

  server.answer = () => undefined
  server.seen.length = 0
  const asking = polled(t, server.address)
  while (server.seen.length < 2) await once(server.asked, 'query')
  asking.stop.abort()
  await asking.running
  // Without the cancel, c-ares asks each question once more before it gives up.
  assert.equal(server.seen.length, 2)
  assert.deepEqual([waiting.results, asking.results], [[], []])
})

test('every poll sends its own queries: none is answered from a cache', async t => {
  const server = await resolver(t, authority(['127.0.4.1', '::1']))
  const { poll } = follow(t, parseSource(`dns:${NAME}@${formatAddress(server.address)}/1s`)({ hold: 2 }))
  for (let i = 1; i <= 20; i++) {
    await poll()
    assert.equal(server.seen.length, 2 * i)
  }
})

/** Answers one family with an error or with silence, and the other with `known`. */
const failing = (aaaa: boolean, silent: boolean, rcode: number, known: Answerer): Answerer => {
  return (message, transport) => {
    if (isAaaa(message) !== aaaa) return known(message, transport)
    if (silent) return undefined
    const reply = Buffer.from(message)
    reply.writeUInt8(0x84, 2)
    reply.writeUInt8(rcode, 3)
    return reply
  }
}

test('the families are independent: one that fails keeps its last answer, and the other is followed', async t => {
  const both = authority(['127.0.4.1', '::1'])
  for (const rcode of [2, 4, 5]) {
    for (const aaaa of [true, false]) {
      const server = await resolver(t, both)
      const { poll, notes, nextNote } = polled(t, server.address)
      assert.deepEqual(await poll(), ['127.0.4.1', '::1'])
      assert.deepEqual(
        [await nextNote(), await nextNote()],
        [
          { type: 'source-family', family: 'A' },
          { type: 'source-family', family: 'AAAA' },
        ],
      )
      server.answer = failing(aaaa, false, rcode, authority(['127.0.4.2', '::2']))
      const mixed = aaaa ? ['127.0.4.2', '::1'] : ['127.0.4.1', '::2']
      for (let i = 0; i < 3; i++) assert.deepEqual(await poll(), mixed)
      // A failure is reported once.
      const [note] = notes.splice(0)
      assert.equal(note?.type === 'source-family' && note.family, aaaa ? 'AAAA' : 'A')
      assert.match(note?.type === 'source-family' ? (note.error ?? '') : '', /SERVFAIL|NOTIMP|REFUSED/)
      server.answer = both
      assert.deepEqual(await poll(), ['127.0.4.1', '::1'])
      assert.deepEqual(notes, [{ type: 'source-family', family: aaaa ? 'AAAA' : 'A' }])
    }
  }
})

test('a family that is silent from the start does not hold up the other', async t => {
  const server = await resolver(t, failing(true, true, 0, authority(['127.0.4.1'])))
  const { clock, results, nextNote } = polled(t, server.address)
  while (results.length === 0) {
    await clock.advance(100)
    await new Promise(resolve => setImmediate(resolve))
  }
  assert.deepEqual(results[0], ['127.0.4.1'])
  assert.deepEqual(await nextNote(), { type: 'source-family', family: 'A' })
  const note = await nextNote()
  assert.match(note?.type === 'source-family' ? (note.error ?? '') : '', /ETIMEOUT/)
})

test('no address of one family is not published while nothing is known of the other', async t => {
  const server = await resolver(t, failing(false, false, 2, authority([])))
  const { poll } = polled(t, server.address)
  assert.equal(await poll(), 'ESERVFAIL')
  server.answer = authority([])
  assert.deepEqual(await poll(), [])
})

test('one empty or partial answer changes nothing; an address leaves when --source-hold answers lack it', async t => {
  const all = ['127.0.4.1', '127.0.4.2', '::1']
  const server = await resolver(t, authority(all))
  const { poll } = polled(t, server.address, 2)
  const absent: readonly (readonly [Answerer, string[]])[] = [
    [authority([], { service: 'x.farm.test' }), []],
    [authority([]), []],
    [authority(['127.0.4.2']), ['127.0.4.2']],
  ]
  for (const [answer, rest] of absent) {
    server.answer = authority(all)
    assert.deepEqual(await poll(), all)
    server.answer = answer
    assert.deepEqual(await poll(), all)
    // An answer that fails is not an answer without the address.
    server.answer = authority([], { ready: false })
    assert.equal(await poll(), 'ESERVFAIL')
    server.answer = answer
    assert.deepEqual(await poll(), rest)
  }
})

test('addresses that cannot be endpoints are dropped, and each is reported once', async t => {
  const server = await resolver(t, authority(['127.0.4.1', '0.0.0.0', '224.0.0.1', 'fe80::1', 'ff02::1']))
  const { poll, notes } = polled(t, server.address)
  for (let i = 0; i < 3; i++) assert.deepEqual(await poll(), ['127.0.4.1'])
  const messages = notes.flatMap(note => (note.type === 'source-warning' ? note.message : []))
  assert.deepEqual(messages.sort(), [
    'the source has "0.0.0.0", which cannot be an endpoint: it is an unspecified address',
    'the source has "224.0.0.1", which cannot be an endpoint: it is a multicast address',
    'the source has "fe80::1", which cannot be an endpoint: it is a link-local address, which needs an interface',
    'the source has "ff02::1", which cannot be an endpoint: it is a multicast address',
  ])
})

function resolvConfFile(t: TestContext) {
  const folder = mkdtempSync(join(tmpdir(), 'roundelay-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'resolv.conf')
  return { path, write: (text: string) => writeFileSync(path, text) }
}

test('a resolv.conf that changes is followed, and one that is being rewritten changes nothing', async t => {
  const [one, two] = [
    await resolver(t, authority(['127.0.4.1'])),
    await resolver(t, authority(['127.0.4.2'])),
  ]
  const { path, write } = resolvConfFile(t)
  const nameserver = ({ address, port }: SocketAddress) => `nameserver ${address}:${port}\n`
  write(nameserver(one.address))
  const options = { name: NAME, server: undefined, intervalMs: INTERVAL_MS, hold: 1, resolvConf: path }
  const { poll } = follow(t, dnsSource(options))
  assert.deepEqual(await poll(), ['127.0.4.1'])
  write(`search a.test\n${nameserver(two.address)}`)
  assert.deepEqual(await poll(), ['127.0.4.2'])
  write('')
  assert.deepEqual(await poll(), ['127.0.4.2'])
  rmSync(path)
  assert.deepEqual(await poll(), ['127.0.4.2'])
  write(nameserver(one.address))
  assert.deepEqual(await poll(), ['127.0.4.1'])
})

test('a name that does not exist at the first poll is reported, with the search domains that were not tried', async t => {
  const server = await resolver(t, authority([], { service: 'x.farm.test' }))
  const { path, write } = resolvConfFile(t)
  write(`search a.test b.test\nnameserver ${formatAddress(server.address)}\n`)
  const options = { name: NAME, server: undefined, intervalMs: INTERVAL_MS, hold: 1, resolvConf: path }
  const { poll, notes } = follow(t, dnsSource(options))
  for (let i = 0; i < 3; i++) assert.deepEqual(await poll(), [])
  const warnings = notes.filter(({ type }) => type === 'source-warning')
  const message = `the name ${NAME} does not exist (search domains are not tried: give the whole name)`
  const details = { name: NAME, notTried: [`${NAME}.a.test`, `${NAME}.b.test`] }
  assert.deepEqual(warnings, [{ type: 'source-warning', message, details }])
})

test('a resolver that gives only a part of the set is reported once, with what is needed', async t => {
  const [some, others] = [authority(['127.0.4.1', '127.0.4.2']), authority(['127.0.4.3', '127.0.4.4'])]
  const server = await resolver(t, some)
  const { poll, notes } = polled(t, server.address)
  for (let i = 0; i < 30; i++) {
    server.answer = i % 2 ? others : some
    await poll()
  }
  const message =
    'the resolver gives only a part of the addresses in each answer: a larger --source-hold is needed'
  assert.deepEqual(
    notes.filter(({ type }) => type === 'source-warning'),
    [{ type: 'source-warning', message, details: { name: NAME, sourceHold: 1 } }],
  )
})

test('the whole program serves the A of a resolver that fails for AAAA, and tells log and metric', async t => {
  const server = await resolver(t, failing(true, false, 4, authority(['127.0.4.1'])))
  const source = ['--service', `echo=dns:${NAME}@${formatAddress(server.address)}/50ms`]
  const dns = await startDns(t, await freePort(DNS), [...source, '--check', 'none'])
  const { family, reason } = await dns.process.line('source failed for AAAA')
  assert.deepEqual([family, /NOTIMP/.test(String(reason))], ['AAAA', true])
  await dns.process.line('service ready')
  assert.deepEqual(await dns.answer(), ['127.0.4.1'])
  assert.equal(await dns.metric(/roundelay_source_family_up\{.*family="A"\} (.)/), '1')
  assert.equal(await dns.metric(/roundelay_source_family_up\{.*family="AAAA"\} (.)/), '0')
  assert.equal(await dns.metric(/roundelay_source_up\{.*\} (.)/), '1')
  server.answer = authority(['127.0.4.1'])
  await dns.process.line('source recovered for AAAA')
})
