import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { type AddressInfo, createServer as createTcpServer } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { run as check } from '../../src/commands/check.ts'
import { resolveOptions } from '../../src/commands/resolve-options.ts'
import { UsageError } from '../../src/errors.ts'
import { cli, has, portOf, run, start } from '../process.ts'

const options = { timeout: 30_000 }
/** Longer than a label may be: no resolver of the machine is asked. */
const noName = 'x'.repeat(64)

test('a replica is well over UDP, TCP and HTTP, by IPv4, IPv6 and name', options, async t => {
  const listen = ['--listen', '127.0.0.1:0', '--listen', '[::1]:0', '--admin', '127.0.0.1:0']
  const ready = await start(t, ['echo', ...listen]).line('echo replica ready')
  const [v4, v6] = ready.listen as string[]
  const admin = portOf(ready.admin)
  const targets = [
    [`udp://${v4}`, 'echoed 16 bytes'],
    [`tcp://${v4}/`, 'echoed 16 bytes'],
    [`udp://${v6}`, 'echoed 16 bytes'],
    [`tcp://${v6}`, 'echoed 16 bytes'],
    [`http://127.0.0.1:${admin}/livez`, 'HTTP 200'],
    [`http://LOCALHOST:${admin}/readyz?verbose=1`, 'HTTP 200'],
  ]
  for (const [i, result] of (
    await Promise.all(targets.map(([target]) => run(['check', target!])))
  ).entries()) {
    const [target, detail] = targets[i]!
    assert.deepEqual(result, { code: 0, stdout: `ok: ${target}: ${detail}\n`, stderr: '' })
  }
})

const skip =
  process.platform === 'linux' && process.getuid?.() === 0 && has('unshare')
    ? false
    : 'needs root and unshare for an /etc/hosts of its own'

test('a name is well if one of its addresses is, as where localhost is ::1 first', {
  ...options,
  skip,
}, async t => {
  const ready = await start(t, ['echo', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0']).line('ready')
  const hosts = join(mkdtempSync(join(tmpdir(), 'roundelay-')), 'hosts')
  t.after(() => rmSync(dirname(hosts), { recursive: true }))
  writeFileSync(hosts, '::1 localhost\n127.0.0.1 localhost\n')
  const script = 'mount --bind "$0" /etc/hosts && exec "$@"'
  const target = `http://localhost:${portOf(ready.admin)}/livez`
  const args = ['-m', 'sh', '-c', script, hosts, process.execPath, cli, 'check', target]
  const { stdout } = await promisify(execFile)('unshare', args)
  assert.equal(stdout, `ok: ${target}: HTTP 200\n`)
})

test('what is not well exits with 1 and says why in one line', options, async t => {
  const silent = createSocket('udp4').bind(0, '127.0.0.1')
  await once(silent, 'listening')
  t.after(() => void silent.close())
  const { port } = silent.address()
  const deaf = createTcpServer(socket => t.after(() => void socket.destroy())).listen(0, '127.0.0.1')
  const http = createServer((request, response) => {
    const status = Number(request.url?.slice(1))
    response.writeHead(status).end(`{"status":"${status === 503 ? 'draining' : 'a\\nb'}"}`)
  }).listen(0, '127.0.0.1')
  await Promise.all([deaf, http].map(server => once(server, 'listening')))
  for (const server of [deaf, http]) t.after(() => void server.close())
  const deafPort = (deaf.address() as AddressInfo).port
  const httpPort = (http.address() as AddressInfo).port
  const targets = [
    [`udp://127.0.0.1:${port}`, /^no answer within 300 ms$/],
    [`udp://127.0.0.1:${deafPort}`, /ECONNREFUSED/],
    [`tcp://127.0.0.1:${deafPort}`, /^no answer within 300 ms$/],
    [`tcp://[::1]:${deafPort}`, /ECONNREFUSED/],
    [`tcp://127.0.0.1:${httpPort}`, /^the echo differs from what was sent$/],
    [`http://127.0.0.1:${port}/livez`, /ECONNREFUSED/],
    [`http://127.0.0.1:${httpPort}/503`, /^HTTP 503 draining$/],
    [`http://127.0.0.1:${httpPort}/404`, /^HTTP 404$/],
    [`http://${noName}/livez`, /getaddrinfo .*x{64}/],
  ] as const
  const results = targets.map(([target]) => run(['check', '--timeout', '300ms', target]))
  for (const [i, { code, stdout, stderr }] of (await Promise.all(results)).entries()) {
    const [target, detail] = targets[i]!
    const [, why = ''] = /^failed: \S+: ([^\n]*)\n$/.exec(stdout) ?? []
    assert.match(why, detail, `${target} ${stdout}${stderr}`)
    assert.deepEqual({ code, stdout, stderr }, { code: 1, stdout: `failed: ${target}: ${why}\n`, stderr: '' })
  }
})

test('what is no target exits with 2 and says what would be one', options, async () => {
  const wrong = (target: string) =>
    `Cannot parse target "${target}": expected udp://HOST:PORT, tcp://HOST:PORT or http://HOST[:PORT]/path`
  const result = await run(['check', '127.0.0.1:7007'])
  assert.deepEqual(result, { code: 2, stdout: '', stderr: `roundelay: ${wrong('127.0.0.1:7007')}\n` })
  for (const target of [
    ...[
      'udp:7007',
      'udp://127.0.0.1',
      'udp://127.0.0.1:0',
      'udp://127.0.0.1:65536',
      'udp://127.0.0.1:7007/path',
    ],
    ...['tcp://:7007', 'tcp://127.0.0.1:seven', 'http://', 'http://127.0.0.1:0/livez', 'https://127.0.0.1/'],
    ...['ftp://127.0.0.1/', 'livez', ''],
  ]) {
    const context = { version: '', exit: () => assert.fail(`${target} was taken`), takeSignals: () => {} }
    const attempt = check(resolveOptions('check', {}, {}), [target], context)
    await assert.rejects(attempt, new UsageError(wrong(target)))
  }
})
