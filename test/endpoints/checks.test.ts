import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { type AddressInfo, connect, createServer as createTcpServer } from 'node:net'
import { type TestContext, test } from 'node:test'
import type { ProbeResult } from '../../src/client/probe.ts'
import { type Check, checkForever } from '../../src/endpoints/checks.ts'
import { portOf, start } from '../process.ts'

interface Reported {
  readonly result: ProbeResult
  readonly seconds: number
}

/** Checks 127.0.0.1 until the test ends; `next` is the next report. */
function checking(t: TestContext, checks: readonly Check[], intervalMs = 20, timeoutMs = 5000) {
  const stop = new AbortController()
  const list: Reported[] = []
  let wake = () => {}
  const options = { checks, intervalMs, timeoutMs, rise: 1, fall: 1 }
  const report = (result: ProbeResult, seconds: number) => {
    list.push({ result, seconds })
    wake()
  }
  const running = checkForever('127.0.0.1', options, report, stop.signal)
  const end = () => {
    stop.abort()
    return running
  }
  t.after(end)
  const next = async (): Promise<Reported> => {
    if (list.length === 0)
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
  const [intervalMs, answerMs, count] = [300, 250, 6]
  const starts: number[] = []
  const begun = performance.now()
  const port = await udpServer(t, reply => {
    starts.push(performance.now() - begun)
    setTimeout(reply, answerMs)
  })
  const { next } = checking(t, [{ kind: 'udp', port }], intervalMs)
  for (let i = 0; i < count; i++) assert.equal((await next()).result.ok, true)
  // Never early (but for a timer's rounding), and far from interval + answer.
  for (const [i, at] of starts.entries())
    assert.ok(at >= i * intervalMs - 5 * count, `check ${i} at ${at} ms`)
  const mean = (starts[count - 1]! - starts[0]!) / (count - 1)
  t.diagnostic(
    `interval ${intervalMs} ms, an answer takes ${answerMs} ms: ${mean.toFixed(1)} ms between starts`,
  )
  assert.ok(mean < intervalMs + answerMs - 50)
})

test('an answer that takes longer than the interval puts the next check off: never two at a time', async t => {
  let open = 0
  let most = 0
  const port = await udpServer(t, reply => {
    most = Math.max(most, ++open)
    setTimeout(() => {
      open--
      reply()
    }, 30)
  })
  const { next } = checking(t, [{ kind: 'udp', port }], 1)
  for (let i = 0; i < 5; i++) assert.equal((await next()).result.ok, true)
  assert.equal(most, 1)
})

test('a thousand endpoints that are added together are not asked together', async t => {
  const [count, intervalMs] = [1000, 2000]
  const starts: number[] = []
  let all = () => {}
  const asked = new Promise<void>(resolve => {
    all = resolve
  })
  const begun = performance.now()
  // TCP, since of a thousand datagrams at once many would be lost.
  const server = createTcpServer(socket => {
    if (starts.push(performance.now() - begun) === count) all()
    socket.on('error', () => {}).pipe(socket)
  }).listen({ host: '127.0.0.1', port: 0, backlog: 2 * count })
  t.after(() => server.close())
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const runs = Array.from({ length: count }, () => checking(t, [{ kind: 'tcp', port }], intervalMs))
  await asked
  await Promise.all(runs.map(run => run.end()))
  const [early, late] = [starts[count / 10], starts[(count * 9) / 10]]
  t.diagnostic(
    `of ${count} first checks the middle 80 % took ${(late! - early!).toFixed()} of ${intervalMs} ms`,
  )
  // Even, that is 1600 ms. A stalled machine can only squeeze what was due while it stood still.
  assert.ok(late! - early! > 800)
  // Also not all after the first interval, as with an interval's wait for each.
  assert.ok(starts[0]! < intervalMs)
})

test('every way to fail is a result with its reason, within the timeout', async t => {
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
    '/long': [200, 'x'.repeat(70_000)],
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
  const nobody = portOfServer(closed)
  await once(closed.close(), 'close')

  const web = (path: string): Check => ({ kind: 'http', port: portOfServer(http), path })
  const none: Check = { kind: 'none' }
  const table: readonly (readonly [Check[], RegExp, boolean?])[] = [
    [[{ kind: 'udp', port: silentUdp }], /^no answer within 200 ms$/],
    [[{ kind: 'tcp', port: portOfServer(silentTcp) }], /^no answer within 200 ms$/],
    [[web('/silent')], /^no answer within 200 ms$/],
    [[{ kind: 'udp', port: wrong.address().port }], /^the echo differs from what was sent$/],
    [[{ kind: 'tcp', port: portOfServer(hangsUp) }], /^connection closed after 5 of 16 bytes$/],
    [[{ kind: 'udp', port: nobody }], /ECONNREFUSED/],
    [[{ kind: 'tcp', port: nobody }], /ECONNREFUSED/],
    [[{ kind: 'http', port: nobody, path: '/' }], /ECONNREFUSED/],
    [[web('/500')], /^HTTP 500$/],
    [[web('/302')], /^HTTP 302$/],
    [[web('/odd')], /^HTTP 503$/],
    [[web('/null')], /^HTTP 503$/],
    [[web('/long')], /^the answer is longer than 65536 bytes$/],
    [[web('/503')], /^HTTP 503 starting$/],
    [[web('/draining')], /^HTTP 503 draining$/, true],
    // All must pass; the first that fails says why, but one that drains is heard first.
    [[none, web('/500'), web('/503')], /^HTTP 500$/],
    [[web('/500'), { kind: 'udp', port: silentUdp }, web('/draining')], /^HTTP 503 draining$/, true],
  ]
  for (const [checks, detail, draining = false] of table) {
    const { next, end } = checking(t, checks, 20, 200)
    const { result, seconds } = await next()
    await end()
    assert.match(result.detail, detail)
    assert.ok(!result.ok && result.draining === draining, JSON.stringify(checks))
    assert.ok(detail.source.includes('no answer') ? seconds > 0.19 : seconds >= 0)
  }
})

test("a replica's /readyz gives its load, and says that it drains while its echo still passes", async t => {
  const replica = start(t, ['echo', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', '--drain', '20s'])
  const ready = await replica.line('echo replica ready')
  const port = portOf((ready.listen as string[])[0])
  const both = checking(t, [
    { kind: 'udp', port },
    { kind: 'http', port: portOf(ready.admin), path: '/readyz' },
  ])
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
  const echo = checking(t, [
    { kind: 'udp', port },
    { kind: 'tcp', port },
  ])
  assert.deepEqual((await echo.next()).result, { ok: true, detail: 'echoed 16 bytes, echoed 16 bytes' })
  await Promise.all([both.end(), echo.end()])
})

test('abort during a check ends it without a report', async t => {
  let asked = () => {}
  const question = new Promise<void>(resolve => {
    asked = resolve
  })
  const port = await udpServer(t, () => asked())
  const { end, list } = checking(t, [{ kind: 'udp', port }], 20, 300)
  await question
  await end()
  assert.deepEqual(list, [])
})
