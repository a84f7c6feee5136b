import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import dns from 'node:dns'
import { Resolver } from 'node:dns/promises'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import type { ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { parseSource } from '../../src/commands/values.ts'
import { endpointsOf, kubernetesSource } from '../../src/endpoints/kubernetes.ts'
import { freePort } from '../support/ports.ts'
import { start } from '../support/process.ts'
import { until } from '../support/until.ts'
import { VirtualClock } from '../support/virtual-clock.ts'
import { follow, refuse, SourceClock, slice, startApi, status } from './api-server.ts'

type Api = Awaited<ReturnType<typeof startApi>>

/** The source's own: events within it are computed together. */
const GATHER_MS = 10
/** The waits after failures, each shortened by a quarter. */
const BACKOFFS_MS = [375, 750, 1500, 3000, 3750, 3750, 3750, 3750]
const SELECTOR = '?labelSelector=kubernetes.io%2Fservice-name%3Decho'
const PATH = `/apis/discovery.k8s.io/v1/namespaces/farm/endpointslices${SELECTOR}`

const source = (api: Api) =>
  kubernetesSource(undefined, 'echo', async () => ({
    server: new URL(api.url),
    tls: {},
    token: async () => 'secret',
    namespace: 'farm',
  }))

const followed = <C extends VirtualClock = SourceClock>(t: TestContext, api: Api, clock?: C) =>
  follow(t, source(api), clock)

const line = (type: string, object: object) => `${JSON.stringify({ type, object })}\n`
const open = (response: ServerResponse) => {
  response.writeHead(200, { 'content-type': 'application/json' }).flushHeaders()
  return response
}
/** For an `answer` that has handled the request, even if it never answers. */
const done = (_: unknown) => true
const backoffs = (clock: SourceClock) => clock.waits.filter(ms => ms > GATHER_MS)

function kubeconfig(t: TestContext, server: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'roundelay-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'config')
  const context = { cluster: 'c', user: 'u', namespace: 'farm' }
  const config = {
    'current-context': 'here',
    contexts: [{ name: 'here', context }],
    clusters: [{ name: 'c', cluster: { server } }],
    users: [{ name: 'u', user: { token: 'secret' } }],
  }
  writeFileSync(path, JSON.stringify(config))
  return path
}

test('a source requests nothing but the list and the watch of its own slices', async t => {
  const api = await startApi(t)
  const { KUBECONFIG } = process.env
  process.env.KUBECONFIG = kubeconfig(t, `${api.url}/`)
  t.after(() => {
    if (KUBECONFIG === undefined) delete process.env.KUBECONFIG
    else process.env.KUBECONFIG = KUBECONFIG
  })
  const watch = '&watch=1&allowWatchBookmarks=true&timeoutSeconds=30&resourceVersion=100'
  for (const [text, namespace] of [
    ['kubernetes:echo', 'farm'],
    ['kubernetes:other-1/echo', 'other-1'],
  ]) {
    api.asked.length = 0
    const { stop, running } = follow(t, parseSource(text!)({ hold: 2 }))
    await api.until(() => api.watched().length === 1)
    stop.abort()
    await running
    const path = PATH.replace('/farm/', `/${namespace}/`)
    const asked = api.asked.map(({ method, url, token }) => `${method} ${url} ${token}`)
    assert.deepEqual(asked, [`GET ${path}&limit=500 secret`, `GET ${path}${watch} secret`])
  }
})

test('the endpoints of all slices are one list, whatever the order; what cannot be an address is left out', () => {
  const terminating = { ready: false, serving: true, terminating: true }
  const slices = [
    slice('a', ['10.0.0.10', ['10.0.0.9', terminating]]),
    slice('b', ['2001:DB8:0::1', 'fd00::1'], 'IPv6'),
    slice('empty', [], 'IPv6'),
    slice('null', null, 'IPv6'),
    slice('fqdn', ['echo.example'], 'FQDN'),
    // Leading zeros pass the API's validation (ParseIPSloppy).
    slice('odd', ['010.0.0.1', 'x', '10.0.0.300']),
    { metadata: { name: 'older' }, addressType: 'IPv4' },
    {
      metadata: { name: 'bare' },
      addressType: 'IPv4',
      endpoints: [{ addresses: ['10.0.1.1'] }, { addresses: [] }],
    },
    // The first of several addresses is used.
    { metadata: { name: 'two' }, addressType: 'IPv4', endpoints: [{ addresses: ['10.0.1.2', '10.0.1.3'] }] },
  ] as const
  const addresses = ['10.0.0.9', '10.0.0.10', '10.0.1.1', '10.0.1.2', '2001:db8::1', 'fd00::1']
  const found = endpointsOf(slices)
  assert.deepEqual(
    found.map(({ address }) => address),
    addresses,
  )
  assert.deepEqual(found[0], { address: '10.0.0.9', weight: 1, ...terminating })
  assert.deepEqual(found[2], {
    address: '10.0.1.1',
    weight: 1,
    ready: true,
    serving: true,
    terminating: false,
  })
  assert.deepEqual(endpointsOf([...slices].reverse()), found)
  assert.deepEqual(endpointsOf([]), [])
})

test('conditions that are nil mean what the API defines', () => {
  // ready, serving, terminating as given: y, n, or - for null and . for absent; and as understood.
  const table = [
    '... yyn',
    '--- yyn',
    'y.. yyn',
    'n.. nnn',
    'ny. nyn',
    'nyy nyy',
    'n-y nny',
    'yn- ynn',
    '.n. ynn',
    '..y yyy',
  ]
  const value: Record<string, unknown> = { y: true, n: false, '-': null }
  for (const row of table) {
    const [given, wanted] = row.split(' ')
    const names = ['ready', 'serving', 'terminating']
    const conditions = Object.fromEntries(
      names.map((name, i) => [name, value[given![i]!]]).filter(([, v]) => v !== undefined),
    )
    const { ready, serving, terminating } = endpointsOf([slice('a', [['10.0.0.1', conditions]])])[0]!
    assert.equal([ready, serving, terminating].map(v => (v ? 'y' : 'n')).join(''), wanted, row)
  }
})

test('of an address that is in two slices the better entry counts, in either order', () => {
  const conditions = (letters: string) => ({
    ready: letters.includes('r'),
    serving: letters.includes('s'),
    terminating: letters.includes('t'),
  })
  // From the best to the worst.
  const all = ['rs', 'r', 's', 'rst', 'st', '', 'rt', 't']
  for (const [i, better] of all.entries())
    for (const worse of all.slice(i + 1)) {
      const two = [
        slice('a', [['10.0.0.1', conditions(better)]]),
        slice('b', [['10.0.0.1', conditions(worse)]]),
      ]
      for (const slices of [two, two.reverse()]) {
        const wanted = { address: '10.0.0.1', weight: 1, ...conditions(better) }
        assert.deepEqual(endpointsOf(slices), [wanted], `${better} against ${worse}`)
      }
    }
})

test('slices that come, change and go are followed, also when several events come in one piece', async t => {
  const api = await startApi(t)
  api.put(slice('a', ['10.0.0.1', '10.0.0.2']), slice('b', null, 'IPv6'))
  const { has, failures, reported } = followed(t, api)
  await has('10.0.0.1 rs', '10.0.0.2 rs')
  await api.until(() => api.watches.size === 1)
  api.put(slice('b', ['fd00::1'], 'IPv6'))
  await has('10.0.0.1 rs', '10.0.0.2 rs', 'fd00::1 rs')
  api.put(slice('a', ['10.0.0.1', ['10.0.0.2', { ready: false, serving: true, terminating: true }]]))
  await has('10.0.0.1 rs', '10.0.0.2 st', 'fd00::1 rs')
  api.remove('a')
  await has('fd00::1 rs')
  const three = [slice('c', ['10.0.0.3']), slice('d', ['10.0.0.4']), slice('c', ['10.0.0.5'])]
  const texts = three.map((object, i) => line(i < 2 ? 'ADDED' : 'MODIFIED', object))
  api.write(texts.join(''))
  await has('10.0.0.4 rs', '10.0.0.5 rs', 'fd00::1 rs')
  api.remove('b')
  api.write(line('DELETED', three[0]!) + line('DELETED', three[1]!))
  await has()
  assert.deepEqual(failures(), [])
  // Nothing was ever reported that the cluster did not have.
  assert.equal(
    reported.some(report => report.length > 3),
    false,
  )
  assert.deepEqual([api.lists().length, api.watched().length], [1, 1])
})

test('an event may be cut into pieces anywhere, also inside a character', async t => {
  const api = await startApi(t)
  const { has, failures } = followed(t, api)
  await api.until(() => api.watches.size === 1)
  const [watch] = api.watches
  const piece = async (bytes: Buffer) => {
    await new Promise<void>(resolve => watch!.write(bytes, () => resolve()))
    // The piece arrives alone.
    await new Promise(resolve => setImmediate(resolve))
  }
  const bytes = (n: number) => Buffer.from(line('MODIFIED', slice('a', [`10.0.${n >> 8}.${n & 255}`])))
  for (let at = 1; at < bytes(1000).length; at++) {
    const text = bytes(at)
    await piece(text.subarray(0, at))
    await piece(text.subarray(at))
    await has(`10.0.${at >> 8}.${at & 255} rs`)
  }
  for (const byte of bytes(999)) await piece(Buffer.from([byte]))
  await has('10.0.3.231 rs')
  assert.deepEqual(failures(), [])
})

test('a watch whose time is over goes on from the last version, that of a bookmark too, without a new list', async t => {
  const api = await startApi(t)
  const { has, reported, failures, longWatch } = followed(t, api)
  const versions = () => api.watched().map(({ query }) => query.get('resourceVersion'))
  const endWatch = async (watches: number) => {
    await longWatch()
    api.endWatches()
    await api.until(() => api.watched().length === watches && api.watches.size === 1)
  }
  await api.until(() => api.watches.size === 1)
  api.put(slice('a', ['10.0.0.1']))
  await has('10.0.0.1 rs')
  await endWatch(2)
  api.bookmark()
  // Versions are opaque: a client must send them back unchanged.
  api.write(line('BOOKMARK', { metadata: { resourceVersion: '103&limit=1 +' } }))
  await endWatch(3)
  assert.deepEqual(versions(), ['100', '101', '103&limit=1 +'])
  api.put(slice('a', ['10.0.0.2']))
  await has('10.0.0.2 rs')
  await endWatch(4)
  assert.equal(versions()[3], '103')
  assert.equal(api.lists().length, 1)
  assert.deepEqual(failures(), [])
  assert.deepEqual(reported, [[], ['10.0.0.1 rs'], ['10.0.0.2 rs']])
})

test('a connection that is cut in the middle of an event loses nothing', async t => {
  const api = await startApi(t)
  api.put(slice('a', ['10.0.0.1']))
  const { has, reported, until, longWatch } = followed(t, api)
  await api.until(() => api.watches.size === 1)
  const [watch] = api.watches
  const text = line('MODIFIED', slice('a', ['10.0.0.2']))
  await new Promise<void>(resolve => watch!.write(text.slice(0, text.length / 2), () => resolve()))
  api.watches.clear()
  api.put(slice('a', ['10.0.0.2']))
  api.cut()
  await until(() => reported.some(report => typeof report === 'string'))
  await has('10.0.0.2 rs')
  const { host } = new URL(api.url)
  assert.deepEqual(reported, [
    ['10.0.0.1 rs'],
    `the Kubernetes API at ${host}: the connection was cut`,
    ['10.0.0.2 rs'],
  ])
  // The event is complete but its line has no end, and the server ends the response normally.
  await api.until(() => api.watches.size === 1)
  const [next] = api.watches
  api.watches.clear()
  await longWatch()
  api.put(slice('a', ['10.0.0.3']))
  next!.end(text.trimEnd())
  await has('10.0.0.3 rs')
})

test('a version that is too old, in each form that the API has for it, needs a new list and is not a failure', async t => {
  const api = await startApi(t)
  api.page = 1
  api.put(slice('a', ['10.0.0.1']), slice('b', ['10.0.0.2']))
  const { has, failures, stop, running, longWatch } = followed(t, api)
  await has('10.0.0.1 rs', '10.0.0.2 rs')
  await api.until(() => api.watches.size === 1)
  const listed = () => api.lists().filter(({ query }) => !query.has('continue')).length
  const relisted = async (n: number, address: string) => {
    await has(`${address} rs`, '10.0.0.2 rs')
    await api.until(() => api.watches.size === 1)
    assert.equal(listed(), n, address)
    await longWatch()
  }
  await longWatch()
  // As an event of a watch that has just begun, and of a long one.
  api.endWatches()
  api.watches.clear()
  api.put(slice('a', ['10.0.0.0']))
  api.compact()
  await relisted(2, '10.0.0.0')
  api.write(line('ERROR', JSON.parse(status(410, 'The resourceVersion for the provided watch is too old.'))))
  api.watches.clear()
  api.put(slice('a', ['10.0.0.1']))
  await relisted(3, '10.0.0.1')
  // As the status of the answer to a watch.
  const refuseNext = (kind: string) => {
    api.answer = ({ kind: asked, query }, response) => {
      if (asked !== kind || (kind === 'list' && !query.has('continue'))) return false
      api.answer = () => false
      return refuse(response, 410, 'Expired')
    }
  }
  refuseNext('watch')
  api.endWatches()
  api.watches.clear()
  api.put(slice('a', ['10.0.0.0']))
  await relisted(4, '10.0.0.0')
  // As the answer to a `continue` token.
  stop.abort()
  await running
  refuseNext('list')
  api.asked.length = 0
  const second = followed(t, api)
  await second.has('10.0.0.0 rs', '10.0.0.2 rs')
  await api.until(() => api.watches.size === 1)
  assert.deepEqual([listed(), api.lists().length], [2, 4])
  assert.deepEqual([failures(), second.failures()], [[], []])
  assert.deepEqual(second.reported, [['10.0.0.0 rs', '10.0.0.2 rs']])
})

test('a version that is always too old is reported', async t => {
  const api = await startApi(t)
  api.answer = (_asked, response) => refuse(response, 410, 'too old')
  const { until, failures } = followed(t, api)
  await until(() => failures().length > 0)
  assert.equal(failures()[0], 'the Kubernetes API answered 410: too old')
})

test('missing rights are reported with what is missing; the source recovers when they are granted', async t => {
  const api = await startApi(t)
  const { reported, until, has, failures } = followed(t, api)
  const forbidden =
    'endpointslices.discovery.k8s.io is forbidden: User "system:serviceaccount:farm:dns" cannot'
  const hint = ' (the ServiceAccount needs the verbs list and watch for endpointslices in discovery.k8s.io)'
  const cases: readonly (readonly [number, string, string])[] = [
    [403, `${forbidden} list`, hint],
    [401, 'Unauthorized', ' (the token is not accepted)'],
    [429, 'too many requests', ''],
    [500, 'etcdserver: leader changed', ''],
  ]
  for (const [i, [code, message, added]] of cases.entries()) {
    await api.until(() => api.watches.size === 1)
    api.answer = (_asked, response) => refuse(response, code, message)
    reported.length = 0
    api.cut()
    await until(() => failures().length >= 3)
    assert.equal(reported[1], `the Kubernetes API answered ${code}: ${message}${added}`)
    // The last endpoints stay: nothing else is reported.
    assert.equal(reported.length, failures().length)
    api.put(slice('a', [`10.0.0.${i + 1}`]))
    api.answer = () => false
    await has(`10.0.0.${i + 1} rs`)
  }
})

test('a refused watch does not hide behind lists that succeed: waits grow nevertheless', async t => {
  const api = await startApi(t)
  api.put(slice('a', ['10.0.0.1']))
  const endings: readonly (readonly [string, (response: ServerResponse, clock: VirtualClock) => unknown])[] =
    [
      ['refused', response => refuse(response, 403, 'cannot watch')],
      ['ended at once', response => open(response).end()],
      [
        'cut after a while, unanswered',
        (response, clock) => clock.advance(2000).then(() => response.destroy()),
      ],
      ['cut at once', response => open(response).destroy()],
      [
        'ended after a bookmark',
        response => open(response).end(line('BOOKMARK', { metadata: { resourceVersion: '1' } })),
      ],
      ['too old at once', response => open(response).end(line('ERROR', { code: 410, message: 'too old' }))],
    ]
  for (const [what, answer] of endings) {
    api.asked.length = 0
    api.answer = ({ kind }, response) => kind === 'watch' && done(answer(response, clock))
    const { clock, reported, stop, running, failures } = followed(t, api)
    await api.until(() => api.lists().length === BACKOFFS_MS.length + 1)
    stop.abort()
    await running
    assert.deepEqual(backoffs(clock).slice(0, BACKOFFS_MS.length), BACKOFFS_MS, what)
    assert.deepEqual(reported[0], ['10.0.0.1 rs'], what)
    assert.ok(failures().length >= 5, what)
  }
})

test('waits are shortened at random, and are short again after a long watch', async t => {
  const api = await startApi(t)
  api.answer = (_asked, response) => refuse(response, 500, 'failed')
  const given = [0, 0.5, 1 - Number.EPSILON, 0.2]
  const clock = new SourceClock()
  const { stop, running } = follow(t, source(api), clock, () => given.shift() ?? 0.5)
  await api.until(() => api.lists().length === 5)
  stop.abort()
  await running
  assert.deepEqual(
    backoffs(clock)
      .slice(0, 4)
      .map(ms => Math.round(ms)),
    [500, 750, 1000, 3600],
  )

  api.asked.length = 0
  const second = followed(t, api)
  await api.until(() => api.lists().length === 4)
  api.answer = () => false
  await api.until(() => api.watches.size === 1)
  await second.longWatch()
  api.cut()
  await api.until(() => api.lists().length === 6)
  assert.deepEqual(backoffs(second.clock), [375, 750, 1500, 3000, 375])
})

test('events that come within 10 ms are computed together, and those of a watch that ends are not lost', async t => {
  const api = await startApi(t)
  const { clock, reported } = followed(t, api, new VirtualClock())
  await api.until(() => api.watches.size === 1)
  const addresses = Array.from({ length: 50 }, (_, i) => `10.0.0.${i}`)
  /** The limit of the watch always waits; a second task means that an event has arrived. */
  const arrived = async () => {
    const count = reported.length
    while (clock.waiting < 2 && reported.length === count) await new Promise(resolve => setImmediate(resolve))
  }
  api.write(addresses.map(address => line('ADDED', slice(address, [address]))).join(''))
  await arrived()
  await clock.advance(GATHER_MS - 1)
  assert.deepEqual(reported, [[]])
  await clock.advance(1)
  assert.deepEqual(reported, [[], addresses.map(address => `${address} rs`)])

  await clock.advance(1000)
  api.write(addresses.map(address => line('DELETED', slice(address, [address]))).join(''))
  await arrived()
  api.endWatches()
  await api.until(() => api.watched().length === 2)
  assert.deepEqual(reported[2], [])
})

test('an API that is away, at first or later, is reported; its last endpoints stay, and the source recovers', async t => {
  const api = await startApi(t)
  await api.down()
  const { reported, until, has, failures } = followed(t, api)
  await until(() => failures().length >= 3)
  const { host } = new URL(api.url)
  const away = `the Kubernetes API at ${host}: connect ECONNREFUSED ${host}`
  assert.deepEqual([...new Set(reported)], [away])
  api.put(slice('a', ['10.0.0.1']))
  await api.up()
  await has('10.0.0.1 rs')
  await api.until(() => api.watches.size === 1)
  reported.length = 0
  await api.down()
  await until(() => failures().length >= 3)
  assert.deepEqual([...new Set(reported)], [`the Kubernetes API at ${host}: the connection was cut`, away])
  api.put(slice('a', ['10.0.0.2']))
  await api.up()
  await has('10.0.0.2 rs')
})

test('an API behind a name with several addresses, none of which answers, is reported with a reason', async t => {
  const api = await startApi(t)
  await api.down()
  api.url = api.url.replace('127.0.0.1', 'localhost')
  const addresses = [
    { address: '127.0.0.1', family: 4 },
    { address: '::1', family: 6 },
  ]
  t.mock.method(dns, 'lookup', (_name: string, _options: object, found: (...given: unknown[]) => void) =>
    found(null, addresses),
  )
  const { until, failures } = followed(t, api)
  await until(() => failures().length >= 1)
  assert.match(failures()[0]!, /^the Kubernetes API at localhost:\d+: .*ECONNREFUSED/)
})

test('an API that falls silent is noticed: in the list, before the watch and in the watch', async t => {
  const api = await startApi(t)
  api.put(slice('a', ['10.0.0.1']))
  const silent: readonly (readonly [string, (response: ServerResponse) => unknown])[] = [
    ['list', () => {}],
    ['list', response => open(response).write('{"items":')],
    ['watch', () => {}],
    ['watch', open],
    ['watch', response => open(response).write('{"type":')],
  ]
  const { host } = new URL(api.url)
  for (const [kind, answer] of silent) {
    api.asked.length = 0
    api.answer = (asked, response) => asked.kind === kind && done(answer(response))
    const { clock, until, has, failures, stop, running } = followed(t, api)
    await api.until(() => api.asked.some(asked => asked.kind === kind))
    const limitMs = kind === 'list' ? 10_000 : 40_000
    await clock.advance(limitMs - 1)
    assert.deepEqual(failures(), [])
    await clock.advance(1)
    await until(() => failures().length === 1)
    assert.equal(failures()[0], `the Kubernetes API at ${host}: the answer did not end within ${limitMs} ms`)
    api.answer = () => false
    await has('10.0.0.1 rs')
    await api.until(() => api.watches.size === 1)
    stop.abort()
    await running
    await api.until(() => api.connections() === 0)
  }
})

test('what is not an event or a list is reported, and does not end the source', async t => {
  const api = await startApi(t)
  const { has, failures, until, reported, longWatch } = followed(t, api)
  const answers: readonly (readonly ['list' | 'watch', string, RegExp])[] = [
    ['watch', '{"type":"ADDED","obj\n', /: .*JSON/],
    ['watch', 'null\n', /: /],
    ['watch', '{"type":"ADDED"}\n', /: /],
    [
      'watch',
      line('ERROR', { code: 500, message: 'etcdserver: request timed out' }),
      /answered 500: etcdserver: request timed out$/,
    ],
    ['watch', `"${'x'.repeat(9 * 2 ** 20)}`, /: a watch event is longer than 8388608 characters$/],
    ['list', '<html>', /: .*JSON/],
    ['list', '{}', /: /],
    ['list', 'null', /: /],
  ]
  const { host } = new URL(api.url)
  for (const [i, [kind, body, message]] of answers.entries()) {
    await api.until(() => api.watches.size === 1)
    reported.length = 0
    api.answer = (asked, response) => {
      if (asked.kind !== kind) return false
      api.answer = () => false
      open(response).write(body)
      if (kind === 'list') response.end()
      return true
    }
    if (kind === 'list') api.cut()
    else {
      await longWatch()
      api.endWatches()
    }
    await until(() => failures().length === (kind === 'list' ? 2 : 1))
    const failure = failures().at(-1) ?? ''
    assert.match(failure, message, body.slice(0, 40))
    assert.ok(
      failure.startsWith(`the Kubernetes API ${failure.includes('answered') ? 'answered' : `at ${host}: `}`),
      failure,
    )
    api.put(slice('a', [`10.0.0.${i + 1}`]))
    await has(`10.0.0.${i + 1} rs`)
  }
})

test('a list whose items are null is empty, and an unknown kind of event is ignored', async t => {
  const api = await startApi(t)
  api.answer = ({ kind }, response) => {
    if (kind !== 'list') return false
    response.end(JSON.stringify({ metadata: { resourceVersion: '100' }, items: null }))
    return true
  }
  const { until, reported, has } = followed(t, api)
  await until(() => reported.length > 0)
  assert.deepEqual(reported, [[]])
  await api.until(() => api.watches.size === 1)
  api.write(line('LATER', slice('b', ['10.0.0.9'])))
  api.put(slice('a', ['10.0.0.1']))
  await has('10.0.0.1 rs')
  assert.deepEqual(reported, [[], ['10.0.0.1 rs']])
})

test('5,000 endpoints in 50 slices are listed in pages', async t => {
  const api = await startApi(t)
  api.page = 7
  const addresses = Array.from({ length: 5000 }, (_, i) => `10.1.${Math.floor(i / 100)}.${i % 100}`)
  for (let i = 0; i < 50; i++) api.put(slice(`echo-${i}`, addresses.slice(i * 100, i * 100 + 100)))
  const { reported, until, failures } = followed(t, api)
  await until(() => reported.length > 0)
  assert.deepEqual(
    reported[0],
    addresses.map(address => `${address} rs`),
  )
  assert.equal(api.lists().length, 8)
  assert.ok(api.lists().every(({ query }) => query.get('limit') === '500' && query.has('labelSelector')))
  await api.until(() => api.watches.size === 1)
  assert.equal(api.watched()[0]!.query.get('resourceVersion'), '150')
  const begun = performance.now()
  for (let i = 0; i < 50; i++) api.put(slice(`echo-${i}`, addresses.slice(i * 100 + 1, i * 100 + 100)))
  await until(() => (reported.at(-1)?.length ?? 0) === 4950)
  t.diagnostic(`50 events with 100 endpoints each were taken in ${Math.round(performance.now() - begun)} ms`)
  assert.deepEqual(failures(), [])
})

test('an address that cannot be an endpoint is dropped with one warning, and does not hide the others', async t => {
  const api = await startApi(t)
  api.put(slice('a', ['10.0.0.1', '0.0.0.0', '255.255.255.255']), slice('b', ['fe80::1%eth0'], 'IPv6'))
  const { has, notes, failures } = followed(t, api)
  await has('10.0.0.1 rs')
  await api.until(() => api.watches.size === 1)
  api.put(slice('a', ['10.0.0.2', '0.0.0.0']))
  await has('10.0.0.2 rs')
  assert.deepEqual(failures(), [])
  assert.deepEqual(
    notes.map(note => note.type === 'source-warning' && note.details),
    ['0.0.0.0', '255.255.255.255', 'fe80::1%eth0'].map(address => ({ address })),
  )
})

test('a list without end, of too many octets or of too many endpoints is reported; the last endpoints stay', async t => {
  const api = await startApi(t)
  api.put(slice('a', ['10.0.0.1']))
  const metadata = { resourceVersion: '100', continue: 'more' }
  const page = (items: readonly object[]) => JSON.stringify({ metadata, items })
  const many = Array.from({ length: 4001 }, (_, i) => `10.1.${i >> 8}.${i & 255}`)
  let n = 0
  const padding = Buffer.alloc(9 * 2 ** 20, ' ')
  const lists: readonly (readonly [(response: ServerResponse) => unknown, string])[] = [
    [response => response.end(page([])), 'the list has more than 1000 pages'],
    [
      response => {
        response.write(page([]))
        response.end(padding)
      },
      'the list is longer than 64 MiB',
    ],
    [response => response.end(page([slice(`s${n++}`, many)])), 'the Service has more than 20000 endpoints'],
  ]
  const { host } = new URL(api.url)
  const { until, has, failures, reported } = followed(t, api)
  await has('10.0.0.1 rs')
  for (const [answer, message] of lists) {
    await api.until(() => api.watches.size === 1)
    reported.length = 0
    api.answer = ({ kind }, response) => kind === 'list' && done(answer(response))
    api.cut()
    await until(() => failures().length === 2)
    assert.deepEqual(reported, [
      `the Kubernetes API at ${host}: the connection was cut`,
      `the Kubernetes API at ${host}: ${message}`,
    ])
    api.answer = () => false
    await has('10.0.0.1 rs')
  }
})

test('a watch that adds too many endpoints is reported, and nothing of the excess is published', async t => {
  const api = await startApi(t)
  const addresses = (n: number, count: number) =>
    Array.from({ length: count }, (_, i) => `10.${n}.${i >> 8}.${i & 255}`)
  for (let n = 0; n < 4; n++) api.put(slice(`s${n}`, addresses(n, 5000)))
  const { until, failures, reported } = followed(t, api)
  await until(() => reported.length > 0)
  await api.until(() => api.watches.size === 1)
  // A change that stays within the limit is not affected.
  api.put(slice('s0', addresses(9, 5000)))
  await until(() => reported.at(-1)?.includes('10.9.0.0 rs') ?? false)
  api.put(slice('s4', ['10.8.0.1']))
  await until(() => failures().length > 0)
  assert.match(failures()[0]!.toString(), /: the Service has more than 20000 endpoints$/)
  assert.ok(reported.every(report => typeof report === 'string' || report.length === 20_000))
})

test('abort ends a source at once, whatever it waits for, and leaves no connection', async t => {
  const api = await startApi(t)
  const quiet: readonly (readonly [
    string,
    (asked: { kind: string }, response: ServerResponse) => boolean,
  ])[] = [
    ['the list', ({ kind }) => kind === 'list'],
    ['the rest of the list', ({ kind }, response) => kind === 'list' && open(response).write('{')],
    ['the watch', ({ kind }) => kind === 'watch'],
    ['events', () => false],
    ['the next attempt', (_asked, response) => refuse(response, 500, 'failed')],
  ]
  for (const [what, answer] of quiet) {
    api.asked.length = 0
    api.answer = answer
    const { clock, stop, running, reported, until } = followed(t, api, new VirtualClock())
    if (what === 'the next attempt') await until(() => reported.length > 0)
    else
      await api.until(() => api.asked.some(({ kind }) => kind === (what.endsWith('list') ? 'list' : 'watch')))
    const count = reported.length
    stop.abort()
    await running
    await api.until(() => api.connections() === 0)
    assert.deepEqual([reported.length, clock.waiting], [count, 0], what)
  }
})

test('a process whose source was aborted ends by itself', async t => {
  const api = await startApi(t)
  const script = `
    import { systemClock } from '${new URL('../../src/clock.ts', import.meta.url)}'
    import { parseSource } from '${new URL('../../src/commands/values.ts', import.meta.url)}'
    const stop = new AbortController()
    const source = parseSource('kubernetes:echo')({ hold: 2 })
    const sink = { publish: () => setImmediate(() => stop.abort()), fail: console.error, note: console.error }
    await source(sink, stop.signal, systemClock, Math.random)
  `
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    env: { ...process.env, KUBECONFIG: kubeconfig(t, api.url) },
    stdio: 'inherit',
  })
  t.after(() => child.kill('SIGKILL'))
  // Shorter than a watch, and far longer than needed.
  assert.deepEqual(await once(child, 'close', { signal: AbortSignal.timeout(20_000) }), [0, null])
})

/** `roundelay dns` with a Service of a cluster, and questions to it. */
async function startDns(t: TestContext, api: Api, args: readonly string[]) {
  const at = '127.0.4.53'
  const port = await freePort(at)
  const base = ['--listen', `${at}:${port}`, '--admin', `${at}:0`, '--drain', '0', '--grace', '1s']
  const env = { KUBECONFIG: kubeconfig(t, api.url) }
  const process = start(t, ['dns', ...base, '--service', 'echo=kubernetes:echo', ...args], env)
  const { admin } = await process.line('DNS server is listening')
  const resolver = new Resolver()
  resolver.setServers([`${at}:${port}`])
  const answer = (): Promise<string> =>
    resolver.resolve4('echo.roundelay.test').then(
      list => list.sort().join(' '),
      error => error.code,
    )
  return {
    process,
    answer,
    until: (wanted: string) => until(`the answer is ${wanted}`, async () => (await answer()) === wanted),
    ready: async () => (await fetch(`http://${admin}/readyz`)).status,
  }
}

test('the whole program answers with what a Service has, and a pod that goes leaves the answer at its event', async t => {
  const api = await startApi(t)
  // The list is held back, to see that nothing is answered before it.
  let release = () => {}
  api.answer = ({ kind }, response) => {
    if (kind !== 'list') return false
    const metadata = { resourceVersion: '0' }
    release = () => response.end(JSON.stringify({ metadata, items: [] }))
    return true
  }
  const { process, answer, until, ready } = await startDns(t, api, ['--check', 'none'])
  await api.until(() => api.lists().length === 1)
  assert.deepEqual([await answer(), await ready()], ['ESERVFAIL', 503])
  api.answer = () => false
  release()
  await process.line('service ready')
  assert.deepEqual([await answer(), await ready()], ['ENODATA', 200])
  await api.until(() => api.watches.size === 1)

  const pods = ['127.0.4.1', '127.0.4.2', '127.0.4.3']
  const ending = { ready: false, serving: true, terminating: true }
  const times: number[] = []
  const change = async (wanted: string, ...given: ReturnType<typeof slice>[]) => {
    api.put(...given)
    times.push(await until(wanted))
  }
  await change(pods.join(' '), slice('a', pods), slice('b', null, 'IPv6'))
  for (let turn = 0; turn < 10; turn++) {
    await change('127.0.4.1 127.0.4.3', slice('a', [pods[0]!, [pods[1]!, ending], pods[2]!]))
    await change('127.0.4.1', slice('a', [pods[0]!, [pods[1]!, ending]]))
    await change(pods.join(' '), slice('a', pods))
  }
  t.diagnostic(
    `event to answer, ${times.length} times: median ${times.sort((a, b) => a - b)[times.length >> 1]} ms, most ${times.at(-1)} ms`,
  )
  // No endpoint is ready: those that still serve are answered.
  await change(
    '127.0.4.2',
    slice('a', [
      [pods[0]!, { ready: false }],
      [pods[1]!, ending],
      [pods[2]!, { ...ending, serving: false }],
    ]),
  )
  await change('ENODATA', slice('a', []))
  await change(pods.join(' '), slice('a', pods))

  await api.down()
  const { reason } = await process.line('source failed: the last good answer stays in use')
  assert.match(String(reason), /^the Kubernetes API at /)
  // Further failures change nothing, and are not reported again.
  api.answer = (_asked, response) => refuse(response, 500, 'failed')
  const lists = api.lists().length
  await api.up()
  await api.until(() => api.lists().length === lists + 2)
  assert.deepEqual([await answer(), await ready()], [pods.join(' '), 200])
  assert.equal(process.lines.filter(({ msg }) => msg.startsWith('source failed')).length, 1)
  api.put(slice('a', ['127.0.4.9']))
  api.answer = () => false
  await until('127.0.4.9')
  await process.line('source recovered')
  process.process.kill('SIGTERM')
  assert.deepEqual(await process.ended, { code: 0, signal: null })
  assert.equal(process.stderr(), '')
})

test('the whole program is ready only when a round of checks has followed the first list', async t => {
  const api = await startApi(t)
  const port = await freePort('127.0.4.1', '127.0.4.2')
  api.put(slice('a', ['127.0.4.1', '127.0.4.2']))
  const check = ['--check', `udp:${port}`, '--check-interval', '2s', '--check-timeout', '2s']
  const echo = start(t, ['echo', '--listen', `127.0.4.1:${port}`, '--admin', '127.0.4.1:0'])
  await echo.line('echo replica ready')
  const mute = createSocket('udp4').bind(port, '127.0.4.2')
  t.after(() => mute.close())
  await once(mute, 'listening')
  const { process, answer, ready, until } = await startDns(t, api, check)
  await api.until(() => api.watches.size === 1)
  assert.deepEqual([await answer(), await ready()], ['ESERVFAIL', 503])
  await process.line('service ready')
  await until('127.0.4.1')
  assert.equal(await ready(), 200)
})
