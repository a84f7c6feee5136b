import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer as createHttpServer, type RequestListener } from 'node:http'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import { type TestContext, test } from 'node:test'
import { promisify } from 'node:util'
import { httpGet } from '../../src/client/http.ts'
import { isOwnError, type ProbeResult, probe } from '../../src/client/probe.ts'
import { eventLoop } from '../../src/servers/event-loop.ts'
import { echo } from '../support/echo.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

const options = { timeout: 30_000 }
/** Far above what a loaded machine needs for an answer. */
const LONG_MS = 20_000
/** Of virtual time, where no answer is expected. */
const SHORT_MS = 150

async function listening(t: TestContext, server: Server, address = '127.0.0.1'): Promise<number> {
  const sockets = new Set<Socket>()
  server.on('connection', socket => sockets.add(socket.on('error', () => {})))
  server.listen(0, address)
  await once(server, 'listening')
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return (server.address() as AddressInfo).port
}

const failed = (detail: string | RegExp, draining = false) => ({ ok: false, detail, draining })

function assertResult(result: ProbeResult, expected: { ok: boolean; detail: string | RegExp }): void {
  if (typeof expected.detail === 'string') {
    assert.deepEqual(result, expected)
  } else {
    assert.match(result.detail, expected.detail)
    assert.deepEqual({ ...result, detail: '' }, { ...expected, detail: '' })
  }
}

test('an echo server passes over UDP and TCP, IPv4 and IPv6', options, async t => {
  const listen = ['127.0.0.1', '::1'].map(address => ({ address, port: 0 }))
  const server = await eventLoop(echo, { listen, maxConnections: 9, idleMs: 9e4, say: () => {} })
  t.after(() => server.close(AbortSignal.abort()))
  for (const target of server.addresses)
    for (const kind of ['udp', 'tcp'] as const)
      assert.deepEqual(await probe({ kind, ...target }, LONG_MS), { ok: true, detail: 'echoed 16 bytes' })
  assert.deepEqual([server.counters.datagrams, server.counters.connections], [2, 2])
})

test(
  'servers that are silent, absent, wrong or too brief fail, and the result says why',
  options,
  async t => {
    const udp = createSocket('udp4').bind(0, '127.0.0.1')
    await once(udp, 'listening')
    let answer = (message: Buffer): Buffer | undefined => message
    udp.on('message', (message, peer) => {
      const reply = answer(message)
      if (reply) udp.send(reply, peer.port, peer.address)
    })
    let serve = (socket: Socket): void => void socket.pipe(socket)
    const tcpPort = await listening(
      t,
      createServer(socket => serve(socket)),
    )
    const at = { address: '127.0.0.1' }
    const clock = new VirtualClock()
    const passTime = () => void clock.advance(SHORT_MS)
    const overUdp = (timeoutMs: number) =>
      probe({ kind: 'udp', ...at, port: udp.address().port }, timeoutMs, clock)
    const overTcp = (timeoutMs: number) => probe({ kind: 'tcp', ...at, port: tcpPort }, timeoutMs, clock)
    assert.equal((await overUdp(LONG_MS)).ok, true)
    assert.equal((await overTcp(LONG_MS)).ok, true)

    answer = () => void passTime()
    assertResult(await overUdp(SHORT_MS), failed(`no answer within ${SHORT_MS} ms`))
    for (const wrong of [Buffer.alloc(16), Buffer.alloc(0), Buffer.alloc(17)]) {
      answer = () => wrong
      assertResult(await overUdp(LONG_MS), failed('the echo differs from what was sent'))
    }
    answer = message => message.subarray(0, 15)
    assertResult(await overUdp(LONG_MS), failed('the echo differs from what was sent'))

    serve = socket => void socket.once('data', passTime)
    assertResult(await overTcp(SHORT_MS), failed(`no answer within ${SHORT_MS} ms`))
    serve = socket => void socket.once('data', (data: Buffer) => socket.write(data.subarray(0, 15), passTime))
    assertResult(await overTcp(SHORT_MS), failed(`no answer within ${SHORT_MS} ms`))
    serve = socket => void socket.once('data', (data: Buffer) => socket.end(data.subarray(0, 15)))
    assertResult(await overTcp(LONG_MS), failed('connection closed after 15 of 16 bytes'))
    serve = socket => void socket.once('data', () => socket.write(Buffer.alloc(16)))
    assertResult(await overTcp(LONG_MS), failed('the echo differs from what was sent'))
    serve = socket => void socket.once('data', () => socket.resetAndDestroy())
    assertResult(await overTcp(LONG_MS), failed(/ECONNRESET/))

    const { port } = udp.address()
    await new Promise<void>(resolve => void udp.close(resolve))
    for (const kind of ['udp', 'tcp'] as const)
      assertResult(await probe({ kind, ...at, port }, LONG_MS), failed(/ECONNREFUSED/))
    assertResult(await probe({ kind: 'http', ...at, port, path: '/' }, LONG_MS), failed(/ECONNREFUSED/))
  },
)

test('an answer that has come, but is not read yet, counts although the time is over', options, async t => {
  const clock = new VirtualClock()
  const udp = createSocket('udp4').bind(0, '127.0.0.1')
  await once(udp, 'listening')
  t.after(() => void udp.close())
  // The timer runs in the turn of the event loop in which the reply is sent: before the socket is read.
  udp.on('message', (message, peer) =>
    udp.send(message, peer.port, peer.address, () => void clock.advance(SHORT_MS)),
  )
  const target = { kind: 'udp', address: '127.0.0.1', port: udp.address().port } as const
  assert.deepEqual(await probe(target, SHORT_MS, clock), { ok: true, detail: 'echoed 16 bytes' })
})

test(
  'an HTTP server passes or fails by its status, and tells its load and whether it is draining',
  options,
  async t => {
    let answer: [status: number, body: string] = [200, '']
    const asked: unknown[] = []
    const handler: RequestListener = (request, response) => {
      asked.push([request.method, request.url, request.headers.host])
      response.writeHead(answer[0], { location: '/elsewhere' }).end(answer[1])
    }
    const ok = (detail: string, activeConnections?: number) =>
      activeConnections === undefined ? { ok: true, detail } : { ok: true, detail, activeConnections }
    const cases: [status: number, body: string, expected: object][] = [
      [200, '{"status":"ok","connections":12}', ok('HTTP 200', 12)],
      [200, '{"connections":0}', ok('HTTP 200', 0)],
      [204, '', ok('HTTP 204')],
      [200, 'plain text', ok('HTTP 200')],
      [299, 'null', ok('HTTP 299')],
      ...['-1', '1.5', '"7"', 'null', '1e400', '[3]'].map(
        n => [200, `{"connections":${n}}`, ok('HTTP 200')] as [number, string, object],
      ),
      [301, '', failed('HTTP 301')],
      [404, '{"status":7}', failed('HTTP 404')],
      [500, 'oh {', failed('HTTP 500')],
      [503, '{"status":"draining"}', failed('HTTP 503 draining', true)],
      [503, '{"status":"starting"}', failed('HTTP 503 starting')],
      [503, '{"status":"Draining"}', failed('HTTP 503 Draining')],
      // The detail is one line of a log or a terminal, whatever the answer contains.
      [503, '{"status":"one\\r\\ntwo\\u001b[2J"}', failed('HTTP 503')],
      [503, JSON.stringify({ status: 'x'.repeat(60_000) }), failed('HTTP 503')],
    ]
    for (const [i, address] of ['127.0.0.1', '::1'].entries()) {
      const port = await listening(t, createHttpServer(handler), address)
      for (const [status, body, expected] of cases) {
        answer = [status, body]
        const path = '/readyz?verbose'
        assert.deepEqual(await probe({ kind: 'http', address, port, path }, LONG_MS), expected, body)
      }
      const host = i === 0 ? `127.0.0.1:${port}` : `[::1]:${port}`
      assert.deepEqual(asked.at(-1), ['GET', '/readyz?verbose', host])
    }
    // No redirection was followed.
    assert.equal(asked.length, 2 * cases.length)
  },
)

test(
  'the status alone decides an HTTP check: a body that is long, cut off or stalled is no failure',
  options,
  async t => {
    const head = 'HTTP/1.1 200 OK\r\n'
    const draining = '{"status":"draining"}'
    const failures: [answer: string | undefined, detail: RegExp][] = [
      ['SSH-2.0-OpenSSH_9\r\n', /Parse Error/],
      [undefined, /socket hang up/],
      [`HTTP/1.1 500 No\r\n\r\n${'x'.repeat(70_000)}`, /^HTTP 500$/],
    ]
    const passes = [
      `${head}content-length: 10\r\n\r\nshort`,
      `${head}transfer-encoding: chunked\r\n\r\n5\r\nshort\r\n`,
      `${head}\r\n${'x'.repeat(65_536)}`,
      `${head}\r\n${'x'.repeat(65_537)}`,
      `${head}\r\n${'é'.repeat(40_000)}`,
    ]
    const clock = new VirtualClock()
    let answer: string | undefined
    let end = true
    const server = createServer(socket => {
      socket.once('data', () => {
        // What was written is read before the time is over.
        if (answer) socket.write(answer, () => end || setTimeout(() => void clock.advance(SHORT_MS), 100))
        if (end) socket.end()
        else if (!answer) void clock.advance(SHORT_MS)
      })
    })
    const target = {
      kind: 'http',
      address: '127.0.0.1',
      port: await listening(t, server),
      path: '/',
    } as const
    const pass = { ok: true, detail: 'HTTP 200' }
    for (const [text, detail] of failures) {
      answer = text
      assertResult(await probe(target, LONG_MS), failed(detail))
    }
    for (const text of passes) {
      answer = text
      assertResult(await probe(target, LONG_MS), pass)
    }
    end = false
    for (const text of [undefined, head]) {
      answer = text
      assertResult(await probe(target, SHORT_MS, clock), failed(`no answer within ${SHORT_MS} ms`))
    }
    for (const text of [`${head}content-length: 10\r\n\r\nshort`, `${head}\r\nno end`]) {
      answer = text
      assertResult(await probe(target, SHORT_MS, clock), pass)
    }
    answer = `HTTP/1.1 503 No\r\n\r\n${draining}`
    assertResult(await probe(target, SHORT_MS, clock), failed('HTTP 503 draining', true))
    // An endless body does not fill the memory: the connection is closed after 64 KiB.
    answer = `${head}\r\n`
    server.on('connection', socket => {
      const flood = () => {
        while (socket.writable && socket.write('x'.repeat(10_000)));
      }
      socket.once('data', flood).on('drain', flood)
    })
    const { body } = await httpGet(target, '/', AbortSignal.timeout(LONG_MS))
    assert.equal(body.length, 65_536)
  },
)

test('errors of this machine are told apart from results of the server', () => {
  const coded = (code: string) => isOwnError(Object.assign(new Error(code), { code }))
  for (const code of ['EMFILE', 'ENFILE', 'EADDRNOTAVAIL', 'ENOBUFS', 'ENOMEM', 'EINVAL'])
    assert.ok(coded(code), code)
  for (const code of ['ECONNREFUSED', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH', 'ECONNRESET', 'ABORT_ERR'])
    assert.ok(!coded(code), code)
})

/** Opens files until no descriptor is left, then probes. */
const EXHAUSTED = `
  import { openSync } from 'node:fs'
  import { probe } from '${new URL('../../src/client/probe.ts', import.meta.url)}'
  await probe({ kind: 'tcp', address: '127.0.0.1', port: 1 }, 1000)
  await probe({ kind: 'http', address: '127.0.0.1', port: 1, path: '/' }, 1000)
  await probe({ kind: 'udp', address: '127.0.0.1', port: 1 }, 1000)
  try { for (;;) openSync('/dev/null') } catch {}
  const results = []
  for (const kind of ['udp', 'tcp', 'http'])
    results.push(await probe({ kind, address: '127.0.0.1', port: 9, path: '/' }, 1000))
  process.stdout.write(JSON.stringify(results))
`

test(
  'a probe without a free descriptor reports an error of its own, over each transport',
  options,
  async () => {
    const node = `ulimit -n 80; exec "$0" --input-type=module -e "$1"`
    const { stdout } = await promisify(execFile)('sh', ['-c', node, process.execPath, EXHAUSTED])
    for (const result of JSON.parse(stdout)) {
      assert.match(result.detail, /EMFILE/)
      assert.deepEqual([result.ok, result.own], [false, true])
    }
  },
)
