import assert from 'node:assert/strict'
import { EventEmitter, once } from 'node:events'
import { type TestContext, test } from 'node:test'
import { formatAddress, type SocketAddress, type Transport } from '../../src/address.ts'
import { systemClock } from '../../src/clock.ts'
import { parseSource } from '../../src/commands/values.ts'
import { Authority } from '../../src/dns/authority.ts'
import { policies } from '../../src/dns/rotation.ts'
import { dnsSource } from '../../src/endpoints/dns.ts'
import { endpoint } from '../../src/endpoints/endpoint.ts'
import type { EndpointStatus } from '../../src/endpoints/pool.ts'
import { Expected } from '../../src/errors.ts'
import { type Answerer, listenDns } from '../../src/net/dns-server.ts'

const NAME = 'echo.farm.test'

/** What an authority says to a query: 600 s as Docker's DNS does. */
function authority(
  addresses: readonly string[],
  { ready = true, apex = 'farm.test', service = NAME } = {},
): Answerer {
  const made = new Authority(
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
      clock: systemClock,
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
  made.update({ service, ready, failedOpen: false, endpoints })
  return (message, transport) => made.answer(message, transport)
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

/** Starts a source; `next` is what each poll came to, in order: the addresses, or the error. */
function follow(t: TestContext, server: SocketAddress, intervalMs: number, name = NAME) {
  const stop = new AbortController()
  const said = new EventEmitter()
  const list: (string[] | string)[] = []
  const say = (what: string[] | string) => {
    list.push(what)
    said.emit('said')
  }
  const running = dnsSource(
    name,
    server,
    intervalMs,
  )(
    {
      publish: endpoints => say(endpoints.map(({ address }) => address)),
      fail: error => say(String((error as NodeJS.ErrnoException).code)),
    },
    stop.signal,
  )
  t.after(async () => {
    stop.abort()
    await running
  })
  const next = async () => {
    if (list.length === 0) await once(said, 'said')
    return list.shift()
  }
  return { next, stop, running, list }
}

const SYNTAX = 'static:ADDR[*WEIGHT],…, dns:NAME[@SERVER][/INTERVAL] or kubernetes:[NAMESPACE/]SERVICE'
const STATIC = 'static:ADDR[*WEIGHT],… with IP addresses and weights from 1 to 100, not '
const NAME_RULE = 'a domain name of letters, digits, "-" and "_", labels up to 63, in all up to 255 octets'
const SERVER = 'ADDRESS[:PORT] with an IP address, such as 127.0.0.1:5300 or [::1]:5300'
const long = `${'a'.repeat(63)}.`

test('a source that is not one is refused with what was expected', () => {
  const bad: readonly (readonly [string, string])[] = [
    ['', SYNTAX],
    ['static', SYNTAX],
    ['static:', SYNTAX],
    ['dns:', SYNTAX],
    ['10.0.0.1', SYNTAX],
    ['file:/etc/hosts', SYNTAX],
    ['STATIC:10.0.0.1', SYNTAX],
    ['static:10.0.0.1,', `${STATIC}""`],
    ['static:10.0.0.1, 10.0.0.2', `${STATIC}" 10.0.0.2"`],
    ['static:10.0.0', `${STATIC}"10.0.0"`],
    ['static:10.0.0.1:7', `${STATIC}"10.0.0.1:7"`],
    ['static:echo.test', `${STATIC}"echo.test"`],
    ['static:fe80::1%lo', `${STATIC}"fe80::1%lo"`],
    ...['0', '101', '-1', '1.5', '', 'x', '1*1', '1e1'].map(
      weight => [`static:10.0.0.1*${weight}`, `${STATIC}"10.0.0.1*${weight}"`] as const,
    ),
    ['dns:a..b', NAME_RULE],
    ['dns:.', NAME_RULE],
    ['dns:a b', NAME_RULE],
    ['dns:@127.0.0.1', NAME_RULE],
    ['dns:[::1]', NAME_RULE],
    ['dns:10.0.0.1', 'dns:NAME[@SERVER][/INTERVAL] with a name, not the address 10.0.0.1'],
    [`dns:a${long}test`, NAME_RULE],
    [`dns:${long.repeat(4)}`, NAME_RULE],
    ['dns:echo@', SERVER],
    ['dns:echo@dns.test', SERVER],
    ['dns:echo@127.0.0.1:65536', SERVER],
    ['dns:echo@127.0.0.1:0', SERVER],
    ['dns:echo@::1:53x', SERVER],
    ['dns:echo/', 'a duration such as 500ms, 7s or 1m'],
    ['dns:echo/5', 'a duration such as 500ms, 7s or 1m'],
    ['dns:echo@127.0.0.1/0', 'a duration above 0 such as 500ms, 7s or 1m'],
    ['dns:echo/1s/2s', 'a duration such as 500ms, 7s or 1m'],
  ]
  for (const [text, message] of bad)
    assert.throws(() => parseSource(text), new Expected(message), `for ${text}`)
})

test('the forms of a source are accepted', () => {
  for (const text of [
    'dns:echo',
    'dns:echo.',
    'dns:_a-b.Echo.test./100ms',
    'dns:echo@127.0.0.11',
    'dns:echo@127.0.0.1:5300/1s',
    'dns:echo@[::1]:5300',
    'dns:echo@::1/2m',
    `dns:${long.repeat(3)}${'a'.repeat(61)}.`,
  ])
    assert.equal(typeof parseSource(text), 'function', text)
})

test('a static source publishes its list once, with weights and equal addresses as equal texts', async () => {
  const published: unknown[] = []
  const source = parseSource('static:10.0.0.1*3,10.0.0.2,2001:DB8:0::1*100,::ffff:10.0.0.3')
  await source({ publish: list => published.push(list), fail: assert.fail }, new AbortController().signal)
  const common = { ready: true, serving: true, terminating: false }
  assert.deepEqual(published, [
    [
      { address: '10.0.0.1', weight: 3, ...common },
      { address: '10.0.0.2', weight: 1, ...common },
      { address: '2001:db8::1', weight: 100, ...common },
      { address: '::ffff:a00:3', weight: 1, ...common },
    ],
  ])
  assert.deepEqual(endpoint('10.0.0.2'), { address: '10.0.0.2', weight: 1, ...common })
})

test('a polled name is followed: every answer, none, failure and recovery, each at the next poll', async t => {
  const three = authority(['127.0.4.10', '::2', '127.0.4.9', '::1'])
  const server = await resolver(t, three)
  const { next } = follow(t, server.address, 20)
  const failsForIpv6: Answerer = (message, transport) =>
    isAaaa(message) ? authority([], { ready: false })(message, transport) : three(message, transport)
  const steps: readonly (readonly [string, Answerer, string[] | string])[] = [
    // The authority rotates, the source sorts.
    ['both families, in one order', three, ['127.0.4.9', '127.0.4.10', '::1', '::2']],
    ['a TTL of 600 s does not hide a change', authority(['127.0.4.9']), ['127.0.4.9']],
    ['SERVFAIL', authority([], { ready: false }), 'ESERVFAIL'],
    ['well again', authority(['::1']), ['::1']],
    ['NODATA means none', authority([]), []],
    ['REFUSED', authority([], { apex: 'other.test', service: 'echo.other.test' }), 'EREFUSED'],
    ['NXDOMAIN means none', authority([], { service: 'x.farm.test' }), []],
    ['one family fails', failsForIpv6, 'ESERVFAIL'],
    ['well once more', three, ['127.0.4.9', '127.0.4.10', '::1', '::2']],
  ]
  for (const [what, answer, expected] of steps) {
    server.answer = answer
    // The poll that is under way may still hold the answer of before.
    await next()
    for (let poll = 1; poll <= 4; poll++) assert.deepEqual(await next(), expected, `${what}, poll ${poll}`)
  }
})

test('a resolver that falls silent changes nothing until it answers again', async t => {
  const server = await resolver(t, authority(['127.0.4.1']))
  const { next } = follow(t, server.address, 20)
  assert.deepEqual(await next(), ['127.0.4.1'])
  server.answer = () => undefined
  let said = await next()
  if (Array.isArray(said)) said = await next()
  assert.equal(said, 'ETIMEOUT')
  server.answer = authority(['127.0.4.2'])
  while (said === 'ETIMEOUT') said = await next()
  assert.deepEqual(said, ['127.0.4.2'])
})

test('an answer that does not fit a datagram is fetched over TCP', async t => {
  const addresses = Array.from({ length: 200 }, (_, i) => `127.0.4.${i + 1}`)
  const server = await resolver(t, authority(addresses))
  const { next } = follow(t, server.address, 20)
  for (let poll = 1; poll <= 3; poll++) assert.deepEqual(await next(), addresses)
  assert.ok(server.seen.includes('tcp') && server.seen.includes('udp'))
})

test('abort ends a source at once, while it waits for the next poll and while it waits for an answer', async t => {
  const server = await resolver(t, authority(['127.0.4.1']))
  const waiting = follow(t, server.address, 3_600_000)
  await waiting.next()
  waiting.stop.abort()
  await waiting.running

  server.answer = () => undefined
  const queried = once(server.asked, 'query')
  const asking = follow(t, server.address, 3_600_000)
  await queried
  const aborted = performance.now()
  asking.stop.abort()
  await asking.running
  // Without the cancel, c-ares asks twice and waits for a second or more each time.
  assert.ok(performance.now() - aborted < 1000)
  assert.deepEqual([waiting.list, asking.list], [[], []])
})

test('every poll asks anew: none is answered from a cache', async t => {
  const server = await resolver(t, authority(['127.0.4.1', '::1']))
  const stop = new AbortController()
  let polls = 0
  const publish = () => {
    if (++polls === 20) stop.abort()
  }
  const source = parseSource(`dns:${NAME}@${formatAddress(server.address)}/1ms`)
  await source({ publish, fail: assert.fail }, stop.signal)
  assert.equal(server.seen.length, 2 * polls)
})
