import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { type TestContext, test } from 'node:test'
import { echo } from '../../src/protocols.ts'
import { WINDOW_TICKS } from '../../src/servers/pool-size.ts'
import type { prefork as Prefork } from '../../src/servers/prefork.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { client, clients, ended, read, roundTrip, until } from '../conformance/clients.ts'
import { ownChildren, type Served, serve } from '../conformance/in-process.ts'
import { holders } from '../conformance/proc.ts'
import { startReplica } from '../conformance/replica.ts'

const options = { timeout: 60_000, skip: (await whyUnavailable()) ?? false }
const prefork: typeof Prefork = options.skip
  ? () => assert.fail()
  : (await import('../../src/servers/prefork.ts')).prefork
const TICK_MS = 50

const board = (server: Served) => server.children?.().scoreboard ?? []
const count = (server: Served, wanted: string) => board(server).filter(({ state }) => state === wanted).length
const started = (server: Served, processes: number) =>
  until(`${processes} are idle`, () => count(server, 'idle') === processes)
const pool = (t: TestContext, wanted: Parameters<typeof serve>[3] = {}) =>
  serve(t, prefork, echo, { tickMs: TICK_MS, ...wanted })

test('the pool grows under load and shrinks after it, and never has too many', options, async t => {
  const LOAD = 20
  const limits = { start: 2, minSpare: 2, maxSpare: 4, maxChildren: 24 }
  const server = await pool(t, limits)
  let most = 0
  let full = 0
  let firstEnd = 0
  const sampling = setInterval(() => {
    most = Math.max(most, board(server).length, ownChildren().length)
    if (firstEnd === 0 && board(server).length - count(server, 'stopping') < full)
      firstEnd = performance.now()
  }, TICK_MS / 2)
  t.after(() => clearInterval(sampling))
  await started(server, 2)

  const sockets = await clients(t, server.port, LOAD)
  const began = performance.now()
  await Promise.all(sockets.map((socket, i) => roundTrip(socket, `I am ${i}`)))
  t.diagnostic(`${LOAD} clients were served after ${(performance.now() - began).toFixed()} ms`)
  assert.equal(server.counters.active, LOAD)
  assert.equal(new Set([...holders(server.port, ownChildren()).values()].flat()).size, LOAD)
  await until('there are spare ones', () => count(server, 'idle') >= limits.minSpare)

  full = board(server).length
  const left = performance.now()
  for (const socket of sockets) socket.end()
  await until('only the most spare are left', () => board(server).length === limits.maxSpare)
  t.diagnostic(`${full} processes became ${limits.maxSpare} in ${(performance.now() - left).toFixed()} ms`)
  assert.ok(firstEnd - left > (WINDOW_TICKS - 1) * TICK_MS, `the first ended ${firstEnd - left} ms after`)
  await until('the others are reaped', () => ownChildren().length === limits.maxSpare)
  assert.ok(most <= limits.maxChildren, `there were ${most}`)
  assert.equal(server.children?.().failures, 0)
  assert.deepEqual(server.said, [])
})

test('at the limit of processes clients wait, and it is said once', options, async t => {
  const server = await pool(t, { start: 2, minSpare: 2, maxSpare: 2, maxChildren: 3 })
  const sockets = await clients(t, server.port, 6)
  for (const [i, socket] of sockets.entries()) socket.write(`${i}`)
  await until('three wait', () => server.counters.active === 3 && server.counters.waiting === 3)
  await until('it is said', () => server.said.length > 0)
  assert.deepEqual(server.said, [
    { level: 'warn', message: 'process cap reached: further clients wait', details: { cap: 3 } },
  ])
  for (const [i, socket] of sockets.entries()) {
    if (socket.bytesRead === 0) assert.equal(await read(socket, 1), `${i}`)
    socket.end()
  }
  await until('nobody is served', () => server.counters.active === 0)
  assert.equal(server.counters.connections, 6)
  assert.equal(server.said.length, 1)
})

test('killed processes are replaced, and said to be dead and why', options, async t => {
  const server = await pool(t, { start: 3, minSpare: 3, maxSpare: 4 })
  await started(server, 3)
  const socket = await client(t, server.port)
  await roundTrip(socket, 'mine')
  const busy = board(server).find(({ state }) => state === 'busy')?.pid as number
  await started(server, 3)
  const idle = board(server).find(({ state }) => state === 'idle')?.pid as number
  for (const [pid, served] of [
    [idle, 0],
    [busy, 1],
  ]) {
    process.kill(pid!, 'SIGKILL')
    await until('it is said', () => server.said.some(({ details }) => details.child === pid))
    const { level, message, details } = server.said.find(({ details }) => details.child === pid) ?? {}
    assert.deepEqual([level, message], ['warn', 'child died'])
    assert.deepEqual([details?.reason, details?.served], ['killed by SIGKILL', served])
    await until(
      'another is there',
      () => count(server, 'idle') >= 3 && !board(server).some(c => c.pid === pid),
    )
  }
  await ended(socket)
  assert.equal(server.children?.().failures, 2)
  await roundTrip(await client(t, server.port), 'served')
})

test('when all are killed at once, others serve soon', options, async t => {
  const server = await pool(t, { start: 4, minSpare: 2, maxSpare: 4 })
  await started(server, 4)
  for (const { pid } of board(server)) process.kill(pid, 'SIGKILL')
  await until('all deaths are said', () => server.said.length === 4)
  const began = performance.now()
  await roundTrip(await client(t, server.port), 'served')
  const ticks = (performance.now() - began) / TICK_MS
  t.diagnostic(
    `served again after ${ticks.toFixed(1)} ticks, told to wait so many seconds: ${server.said.map(({ details }) => details.heldSeconds)}`,
  )
  assert.equal(server.children?.().failures, 4)
})

test(
  'processes that die at their start are not made ever faster, and it is not ready meanwhile',
  options,
  async t => {
    const folder = mkdtempSync(join(tmpdir(), 'roundelay-cure-'))
    const cure = join(folder, 'cure')
    process.env.DYING_ECHO_CURE = cure
    t.after(() => {
      delete process.env.DYING_ECHO_CURE
      rmSync(folder, { recursive: true })
    })
    const dying = {
      ...echo,
      name: 'dyingEcho',
      module: new URL('../conformance/dying-echo.ts', import.meta.url).href,
    }
    const server = await serve(t, prefork, dying, { tickMs: 20, start: 1, minSpare: 1, maxSpare: 2 })
    assert.equal(server.notReady?.(), 'no process is ready')
    await until('five have died', () => server.said.length >= 5)
    assert.equal(server.notReady?.(), 'no process is ready')
    for (const { message, details } of server.said)
      assert.deepEqual([message, details.reason, details.served], ['child died', 'exit code 1', 0])
    assert.deepEqual(
      server.said.slice(0, 5).map(({ details }) => details.heldSeconds),
      [0.02, 0.04, 0.08, 0.16, 0.32],
    )
    assert.ok((server.children?.().forks ?? 0) <= server.said.length + 1, 'one at a time')
    writeFileSync(cure, '')
    await until('it is ready', () => server.notReady?.() === undefined)
    await roundTrip(await client(t, server.port), 'cured')
  },
)

test('processes end after so many clients, and no client is lost', options, async t => {
  const server = await pool(t, { start: 2, minSpare: 1, maxSpare: 2, maxChildren: 2, maxRequests: 5 })
  await started(server, 2)
  const first = new Set(ownChildren())
  let left = 40
  const come = async () => {
    while (left-- > 0) {
      const socket = await client(t, server.port)
      socket.end('hello')
      assert.equal(String(await buffer(socket)), 'hello')
    }
  }
  await Promise.all([come(), come(), come()])
  await until('all are counted', () => server.counters.connections === 40)
  assert.ok(board(server).every(({ served, pid }) => served <= 5 && !first.has(pid)))
  const { forks, failures } = server.children?.() ?? {}
  assert.ok(forks && forks >= 8 && forks <= 2 + 8, `${forks} were made`)
  assert.equal(failures, 0)
  assert.deepEqual(
    server.said.filter(({ message }) => message === 'child died'),
    [],
  )
})

test('with none to start with, the first tick makes one', options, async t => {
  const server = await pool(t, { start: 0, minSpare: 1, maxSpare: 2 })
  assert.equal(server.notReady?.(), 'no process is ready')
  assert.deepEqual(board(server), [])
  await roundTrip(await client(t, server.port), 'served')
  assert.equal(server.notReady?.(), undefined)
})

test('a busy address does not starve another', options, async t => {
  const listen = [
    { address: '127.0.0.1', port: 0 },
    { address: '::1', port: 0 },
  ]
  const server = await pool(t, { listen, start: 1, minSpare: 1, maxSpare: 1, maxChildren: 1 })
  assert.deepEqual(
    server.addresses.map(({ address }) => address),
    ['127.0.0.1', '::1'],
  )
  await started(server, 1)
  const first = await client(t, server.port)
  await roundTrip(first, 'the only process is mine')
  const order: string[] = []
  const waiting = async (host: string, port: number) => {
    const socket = await client(t, port, host)
    socket.write('x')
    socket.once('data', () => {
      order.push(host)
      socket.end()
    })
    return ended(socket)
  }
  const all = [...Array(6).fill(server.addresses[0]), ...Array(6).fill(server.addresses[1])].map(
    ({ address, port }) => waiting(address, port),
  )
  await until('all wait', () => server.counters.waiting === 12)
  first.end()
  await Promise.all(all)
  const shares = [order.slice(0, 6), order.slice(6)].map(half => half.filter(host => host === '::1').length)
  assert.deepEqual(shares, [3, 3], order.join(' '))
})

test('an address in use is named with its code and port, and what was had is let go', options, async t => {
  const other = await pool(t)
  const freed = createServer().listen(0, '127.0.0.1')
  await new Promise(resolve => freed.once('listening', resolve))
  const { port } = freed.address() as { port: number }
  await new Promise(resolve => freed.close(resolve))
  const listen = [
    { address: '127.0.0.1', port },
    { address: '127.0.0.1', port: other.port },
  ]
  await assert.rejects(pool(t, { listen }), {
    message: `bind EADDRINUSE 127.0.0.1:${other.port}`,
    code: 'EADDRINUSE',
    syscall: 'bind',
    address: '127.0.0.1',
    port: other.port,
  })
  await pool(t, { listen: [{ address: '127.0.0.1', port }] })
})

test('the pool shows in /state and /metrics', options, async t => {
  const replica = await startReplica(t, 'prefork', ['--start', '3', '--min-spare', '1', '--max-spare', '3'])
  const socket = await client(t, replica.port)
  await roundTrip(socket, 'hello')
  const { model, transports, scoreboard, forks, failures, counters } = await replica.state()
  assert.deepEqual([model, transports, forks, failures], ['prefork', ['tcp'], 3, 0])
  assert.deepEqual(scoreboard?.map(({ pid }) => pid).toSorted(), replica.children().toSorted())
  assert.deepEqual(scoreboard?.map(({ state, served }) => `${state} ${served}`).toSorted(), [
    'busy 1',
    'idle 0',
    'idle 0',
  ])
  assert.deepEqual([counters.connections, counters.active, counters.waiting], [1, 1, 0])
  const { body } = await replica.admin('/metrics')
  for (const line of [
    'roundelay_echo_children{state="starting"} 0',
    'roundelay_echo_children{state="idle"} 2',
    'roundelay_echo_children{state="busy"} 1',
    'roundelay_echo_children{state="stopping"} 0',
    'roundelay_echo_forks_total 3',
    'roundelay_echo_child_failures_total 0',
    'roundelay_echo_connections_active 1',
    'roundelay_echo_connections_waiting 0',
  ])
    assert.ok(body.split('\n').includes(line), `${line} in\n${body}`)
  assert.equal((await replica.admin('/readyz')).status, 200)
})
