import assert from 'node:assert/strict'
import { EventEmitter, once } from 'node:events'
import { type TestContext, test } from 'node:test'
import { formatAddress, type SocketAddress, type Transport } from '../../src/address.ts'
import { parseSource } from '../../src/commands/values.ts'
import { type Answerer, Authority } from '../../src/dns/authority.ts'
import { policies } from '../../src/dns/rotation.ts'
import { dnsSource } from '../../src/endpoints/dns.ts'
import type { Sink, Source } from '../../src/endpoints/endpoint.ts'
import type { EndpointStatus } from '../../src/endpoints/pool.ts'
import { listenDns } from '../../src/net/dns-server.ts'
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
    leaving: false,
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
  const news = new EventEmitter()
  const add = (result: string[] | string) => {
    results.push(result)
    news.emit('result')
  }
  const sink: Sink = {
    publish: endpoints => add(endpoints.map(({ address }) => address)),
    fail: error => add(String((error as NodeJS.ErrnoException).code)),
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
  return { clock, poll, stop, running, results }
}

const INTERVAL_MS = 1000
const polled = (t: TestContext, server: SocketAddress) => follow(t, dnsSource(NAME, server, INTERVAL_MS))

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
    ['one family fails', failsForIpv6, 'ESERVFAIL'],
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
  const { poll } = follow(t, parseSource(`dns:${NAME}@${formatAddress(server.address)}/1s`))
  for (let i = 1; i <= 20; i++) {
    await poll()
    assert.equal(server.seen.length, 2 * i)
  }
})
