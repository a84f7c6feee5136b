import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { type AddressInfo, connect, createServer as createTcpServer } from 'node:net'
import { type TestContext, test } from 'node:test'
import { type ProbeResult, probe } from '../../src/client/probe.ts'
import { pause, systemClock } from '../../src/clock.ts'
import { type Check, checkForever, firstDelayMs } from '../../src/endpoints/checks.ts'
import { portOf, start } from '../support/process.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

interface Reported {
  readonly result: ProbeResult
  readonly seconds: number
}

type Options = Partial<Parameters<typeof checkForever>[1]>

/** Far above what a loaded machine needs, where an answer is expected. */
const LONG_MS = 20_000
/** Where no answer is expected. */
const SHORT_MS = 200

/** Checks 127.0.0.1 until the test ends; `next` is the next report. */
function checking(t: TestContext, given: Options, delayMs = 0) {
  const stop = new AbortController()
  const list: Reported[] = []
  let wake = () => {}
  const times = { clock: systemClock, intervalMs: 20, timeoutMs: LONG_MS }
  const report = (result: ProbeResult, seconds: number) => {
    list.push({ result, seconds })
    wake()
  }
  const options = { checks: [], probe, ...times, ...given }
  const running = checkForever('127.0.0.1', options, delayMs, report, stop.signal)
  const end = async () => {
    stop.abort()
    // A check that has begun ends with its answer.
    if (given.clock instanceof VirtualClock) await given.clock.advance(1000)
    await running
  }
  t.after(end)
  const next = async (): Promise<Reported> => {
    while (list.length === 0)
      await new Promise<void>(resolve => {
        wake = resolve
      })
    return list.shift() as Reported
  }
  const until = async (fits: (result: ProbeResult) => boolean): Promise<ProbeResult> => {
    for (;;) {
      const { result } = await next()
      if (fits(result)) return result
    }
  }
  return { next, until, end, list }
}

/**
 * A probe in virtual time whose answer takes `answerMs`; `starts` has the times of its calls, `most` how many
 * were open at once.
 */
function slowProbe(clock: VirtualClock, answerMs: number) {
  const seen = { starts: [] as number[], most: 0 }
  let open = 0
  const probe = async (): Promise<ProbeResult> => {
    seen.starts.push(clock.now())
    seen.most = Math.max(seen.most, ++open)
    await pause(clock, answerMs)
    open--
    return { ok: true, detail: 'passed' }
  }
  return { seen, probe }
}

const CHECKS: readonly Check[] = [{ kind: 'udp', port: 7 }]

/** A UDP server on 127.0.0.1. */
async function udpServer(t: TestContext, onMessage: (reply: () => void) => void): Promise<number> {
  const socket = createSocket('udp4').bind(0, '127.0.0.1')
  t.after(() => socket.close())
  await once(socket, 'listening')
  socket.on('message', (message, peer) =>
    onMessage(() => socket.send(message, peer.port, peer.address, () => {})),
  )
  return socket.address().port
}

test('checks run from start to start, however long an answer takes', async t => {
  const clock = new VirtualClock()
  const { seen, probe } = slowProbe(clock, 250)
  const { list } = checking(t, { checks: CHECKS, clock, probe, intervalMs: 300 }, 150)
  await clock.advance(1500)
  assert.deepEqual(seen.starts, [150, 450, 750, 1050, 1350])
  assert.deepEqual(
    list.map(({ seconds }) => seconds),
    [0.25, 0.25, 0.25, 0.25],
  )
})

test('an answer that takes longer than the interval delays the next check: there are never two at a time', async t => {
  const clock = new VirtualClock()
  const { seen, probe } = slowProbe(clock, 30)
  checking(t, { checks: CHECKS, clock, probe, intervalMs: 1 })
  await clock.advance(100)
  assert.deepEqual([seen.starts, seen.most], [[0, 30, 60, 90], 1])
})

test('first checks start at once; only more than 50 together are spread, over a second at most', () => {
  const draws = [0, 0.25, 0.999]
  const delays = (added: number, intervalMs: number) =>
    draws.map(draw => firstDelayMs(added, intervalMs, () => draw))
  assert.deepEqual(delays(1, 60_000), [0, 0, 0])
  assert.deepEqual(delays(50, 60_000), [0, 0, 0])
  assert.deepEqual(delays(51, 60_000), [0, 250, 999])
  assert.deepEqual(delays(1000, 400), [0, 100, 399.6])
})

test('every way to fail is a result with its reason, within the time-out', async t => {
  const silentUdp = await udpServer(t, () => {})
  const wrong = createSocket('udp4').bind(0, '127.0.0.1')
  t.after(() => wrong.close())
  wrong.on('message', (_message, peer) => wrong.send('not what was sent', peer.port, peer.address))
  await once(wrong, 'listening')
  const silentTcp = createTcpServer().listen(0, '127.0.0.1')
  const hangsUp = createTcpServer(socket => socket.resume().end('short')).listen(0, '127.0.0.1')
  const bodies: Record<string, [number, string]> = {
    '/500': [500, 'oops'],
    '/503': [503, '{"status":"starting"}'],
    '/draining': [503, '{"status":"draining"}'],
    '/302': [302, ''],
    '/long': [500, 'x'.repeat(70_000)],
    '/odd': [503, '[null]'],
    '/null': [503, 'null'],
  }
  const http = createServer((request, response) => {
    const [status, body] = bodies[request.url ?? ''] ?? []
    if (status) response.writeHead(status).end(body)
  }).listen(0, '127.0.0.1')
  t.after(() => {
    for (const server of [silentTcp, hangsUp, http]) server.close()
    http.closeAllConnections()
  })
  await Promise.all([silentTcp, hangsUp, http].map(server => server.listening || once(server, 'listening')))
  const closed = createTcpServer().listen(0, '127.0.0.1')
  await once(closed, 'listening')
  const portOfServer = (server: { address(): unknown }) => (server.address() as AddressInfo).port
  const unused = portOfServer(closed)
  await once(closed.close(), 'close')

  const web = (path: string): Check => ({ kind: 'http', port: portOfServer(http), path })
  const none: Check = { kind: 'none' }
  const table: readonly (readonly [Check[], RegExp, boolean?])[] = [
    [[{ kind: 'udp', port: silentUdp }], /^no answer within 200 ms$/],
    [[{ kind: 'tcp', port: portOfServer(silentTcp) }], /^no answer within 200 ms$/],
    [[web('/silent')], /^no answer within 200 ms$/],
    [[{ kind: 'udp', port: wrong.address().port }], /^the echo differs from what was sent$/],
    [[{ kind: 'tcp', port: portOfServer(hangsUp) }], /^connection closed after 5 of 16 bytes$/],
    [[{ kind: 'udp', port: unused }], /ECONNREFUSED/],
    [[{ kind: 'tcp', port: unused }], /ECONNREFUSED/],
    [[{ kind: 'http', port: unused, path: '/' }], /ECONNREFUSED/],
    [[web('/500')], /^HTTP 500$/],
    [[web('/302')], /^HTTP 302$/],
    [[web('/odd')], /^HTTP 503$/],
    [[web('/null')], /^HTTP 503$/],
    [[web('/long')], /^HTTP 500$/],
    [[web('/503')], /^HTTP 503 starting$/],
    [[web('/draining')], /^HTTP 503 draining$/, true],
    // All must pass; the first failure is the reason, but draining beats it.
    [[none, web('/500'), web('/503')], /^HTTP 500$/],
    [[web('/500'), { kind: 'udp', port: silentUdp }, web('/draining')], /^HTTP 503 draining$/, true],
  ]
  for (const [checks, detail, draining = false] of table) {
    const timeoutMs = detail.source.includes('no answer') ? SHORT_MS : draining ? 2000 : LONG_MS
    const { next, end } = checking(t, { checks, timeoutMs })
    const { result, seconds } = await next()
    await end()
    assert.match(result.detail, detail)
    assert.ok(!result.ok && result.draining === draining, JSON.stringify(checks))
    assert.ok(seconds >= 0)
  }
})

test("a replica's /readyz gives its load, and reports that it drains while its echo still passes", async t => {
  const replica = start(t, ['echo', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', '--drain', '20s'])
  const ready = await replica.line('echo replica ready')
  const port = portOf((ready.listen as string[])[0])
  const readyz: Check = { kind: 'http', port: portOf(ready.admin), path: '/readyz' }
  const both = checking(t, { checks: [{ kind: 'udp', port }, readyz] })
  const load = (count: number) => (result: ProbeResult) => result.ok && result.activeConnections === count
  assert.equal((await both.until(load(0))).detail, 'echoed 16 bytes, HTTP 200')
  const clients = Array.from({ length: 3 }, () => connect(port, '127.0.0.1'))
  await both.until(load(3))
  clients.pop()?.destroy()
  await both.until(load(2))
  for (const client of clients) client.destroy()
  await both.until(load(0))

  process.kill(replica.pid, 'SIGTERM')
  const drains = await both.until(result => !result.ok)
  assert.deepEqual(drains, { ok: false, detail: 'HTTP 503 draining', draining: true })
  const checks: Check[] = (['udp', 'tcp'] as const).map(kind => ({ kind, port }))
  const echo = checking(t, { checks })
  assert.deepEqual((await echo.next()).result, { ok: true, detail: 'echoed 16 bytes, echoed 16 bytes' })
  await Promise.all([both.end(), echo.end()])
})

test('abort during a check ends it without a report', async t => {
  let started = () => {}
  let answer = () => {}
  const begun = new Promise<void>(resolve => {
    started = resolve
  })
  const probe = () =>
    new Promise<ProbeResult>(resolve => {
      started()
      answer = () => resolve({ ok: true, detail: 'too late' })
    })
  const clock = new VirtualClock()
  const { end, list } = checking(t, { checks: CHECKS, clock, probe })
  await clock.advance(0)
  await begun
  const ended = end()
  answer()
  await ended
  assert.deepEqual([list, clock.waiting], [[], 0])
})
