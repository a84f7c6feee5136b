import assert from 'node:assert/strict'
import { ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { type TestContext, test } from 'node:test'
import { START_DEADLINE_MS } from '../../src/servers/children.ts'
import { WINDOW_TICKS } from '../../src/servers/pool-size.ts'
import type { prefork as Prefork } from '../../src/servers/prefork.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { client, clients, ended, read, roundTrip } from '../conformance/clients.ts'
import { ownChildren, type Served, serve } from '../conformance/in-process.ts'
import { knowOddProtocols, named } from '../conformance/odd-protocols.ts'
import { holders, runs } from '../conformance/proc.ts'
import { startReplica } from '../conformance/replica.ts'
import { echo } from '../support/echo.ts'
import { until } from '../support/until.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

const options = { timeout: 60_000, skip: (await whyUnavailable()) ?? false }
const prefork: typeof Prefork = options.skip
  ? () => assert.fail()
  : (await import('../../src/servers/prefork.ts')).prefork
const TICK_MS = 1000

interface Pool extends Served {
  readonly clock: VirtualClock
}

async function pool(t: TestContext, wanted: Parameters<typeof serve>[3] = {}, spoken = echo): Promise<Pool> {
  const clock = new VirtualClock()
  return Object.assign(await serve(t, prefork, spoken, { clock, ...wanted }), { clock })
}

const board = (server: Served) => server.children?.().scoreboard ?? []
const count = (server: Served, wanted: string) => board(server).filter(({ state }) => state === wanted).length
const started = (server: Served, processes: number) =>
  until(`${processes} are idle`, () => count(server, 'idle') === processes)

/** Lets ticks pass, but none while processes start, which takes real time, until `holds`. */
const ticking = (server: Pool, what: string, holds: () => boolean) =>
  until(what, async () => {
    if (!holds() && count(server, 'starting') === 0) await server.clock.advance(TICK_MS)
    return holds()
  })

test('the pool grows under load and shrinks after it, and never has too many', options, async t => {
  const LOAD = 12
  const limits = { start: 2, minSpare: 2, maxSpare: 4, maxChildren: 16 }
  const server = await pool(t, limits)
  let most = 0
  const notTooMany = () => {
    most = Math.max(most, board(server).length)
    return true
  }
  await started(server, 2)

  const sockets = await clients(t, server.port, LOAD)
  const all = sockets.map((socket, i) => roundTrip(socket, `I am ${i}`))
  await ticking(server, 'all are served', () => notTooMany() && server.counters.active === LOAD)
  await Promise.all(all)
  assert.equal(new Set([...holders(server.port, ownChildren()).values()].flat()).size, LOAD)
  await ticking(server, 'there are spare ones', () => count(server, 'idle') >= limits.minSpare)

  const full = board(server).length
  assert.equal(ownChildren().length, full)
  for (const socket of sockets) socket.end()
  await until('nobody is served', () => server.counters.active === 0)
  await server.clock.advance(WINDOW_TICKS * TICK_MS)
  assert.equal(count(server, 'stopping'), 0, 'not before the window is over')
  assert.equal(board(server).length, full)
  await server.clock.advance(TICK_MS)
  assert.equal(count(server, 'idle'), full - 1, 'one a tick')
  await ticking(server, 'only the most spare are left', () => board(server).length === limits.maxSpare)
  await server.clock.advance(3 * WINDOW_TICKS * TICK_MS)
  await until('the others are reaped', () => ownChildren().length === limits.maxSpare)
  assert.ok(most <= limits.maxChildren, `there were ${most}`)
  assert.equal(server.children?.().failures, 0)
  assert.deepEqual(server.reports, [])
})

test('at the limit of processes clients wait, and it is logged once', options, async t => {
  const server = await pool(t, { start: 2, minSpare: 2, maxSpare: 2, maxChildren: 3 })
  const sockets = await clients(t, server.port, 6)
  for (const [i, socket] of sockets.entries()) socket.write(`${i}`)
  const full = () => server.counters.active === 3 && server.counters.waiting === 3
  await ticking(server, 'three wait', full)
  await server.clock.advance(2 * TICK_MS)
  assert.deepEqual(server.reports, [
    { level: 'warn', message: 'process cap reached: further clients wait', details: { cap: 3 } },
  ])
  for (const [i, socket] of sockets.entries()) {
    if (socket.bytesRead === 0) assert.equal(await read(socket, 1), `${i}`)
    socket.end()
  }
  await until('nobody is served', () => server.counters.active === 0)
  assert.equal(server.counters.connections, 6)
  assert.equal(server.reports.length, 1)
})

test('killed processes are replaced, and it is logged that they died and why', options, async t => {
  const server = await pool(t, { start: 3, minSpare: 3, maxSpare: 4 })
  await started(server, 3)
  const socket = await client(t, server.port)
  await roundTrip(socket, 'mine')
  const busy = board(server).find(({ state }) => state === 'busy')?.pid as number
  await ticking(server, 'three are idle', () => count(server, 'idle') === 3)
  const idle = board(server).find(({ state }) => state === 'idle')?.pid as number
  for (const [pid, served] of [
    [idle, 0],
    [busy, 1],
  ]) {
    process.kill(pid!, 'SIGKILL')
    await until('it is logged', () => server.reports.some(({ details }) => details.child === pid))
    const { level, message, details } = server.reports.find(({ details }) => details.child === pid) ?? {}
    assert.deepEqual([level, message], ['warn', 'child died'])
    assert.deepEqual([details?.reason, details?.served], ['killed by SIGKILL', served])
    await ticking(
      server,
      'another is there',
      () => count(server, 'idle') >= 3 && !board(server).some(c => c.pid === pid),
    )
  }
  await ended(socket)
  assert.equal(server.children?.().failures, 2)
  await roundTrip(await client(t, server.port), 'served')
})

test('when all are killed at once, others serve after the next tick', options, async t => {
  const server = await pool(t, { start: 4, minSpare: 2, maxSpare: 4 })
  await started(server, 4)
  await server.clock.advance(TICK_MS)
  for (const { pid } of board(server)) process.kill(pid, 'SIGKILL')
  await until('all deaths are logged', () => server.reports.length === 4)
  await server.clock.advance(TICK_MS)
  await roundTrip(await client(t, server.port), 'served')
  assert.equal(server.children?.().failures, 4)
})

test('a process that dies early holds up the next one, a later death does not', options, async t => {
  const server = await pool(t, { start: 1, minSpare: 1, maxSpare: 1 })
  const kill = async (ageMs: number) => {
    await ticking(server, 'one is idle', () => count(server, 'idle') === 1)
    const born = board(server)[0]!.pid
    await server.clock.advance(ageMs)
    process.kill(born, 'SIGKILL')
    await until('it is logged', () => server.reports.some(({ details }) => details.child === born))
    return server.reports.at(-1)?.details.heldSeconds
  }
  assert.equal(await kill(499), 1)
  assert.equal(await kill(500), 0)
})

/** Until the file is there, processes of `dyingEcho` and `hangingEcho` do not start. */
function cure(t: TestContext): string {
  knowOddProtocols(t)
  const folder = mkdtempSync(join(tmpdir(), 'roundelay-cure-'))
  const path = join(folder, 'cure')
  process.env.ODD_PROTOCOL_CURE = path
  t.after(() => {
    delete process.env.ODD_PROTOCOL_CURE
    rmSync(folder, { recursive: true })
  })
  return path
}

test('a process that dies while it starts has died early, however long that took', options, async t => {
  cure(t)
  const server = await pool(t, { start: 1, minSpare: 1, maxSpare: 1 }, named('hangingEcho'))
  await server.clock.advance(10_000)
  const [starting] = board(server)
  assert.equal(starting?.state, 'starting')
  process.kill(starting.pid, 'SIGKILL')
  await until('it is logged', () => server.reports.length === 1)
  const { pid } = starting
  const details = { child: pid, reason: 'killed by SIGKILL', served: 0, heldSeconds: 1 }
  assert.deepEqual(server.reports, [{ level: 'warn', message: 'child died', details }])
})

test('a process that has not started after 20 s is killed, and another is started', options, async t => {
  const path = cure(t)
  const server = await pool(t, { start: 1, minSpare: 1, maxSpare: 1 }, named('hangingEcho'))
  const [first] = board(server)
  await server.clock.advance(START_DEADLINE_MS - 1)
  assert.deepEqual(board(server), [first])
  assert.equal(first?.state, 'starting')
  assert.equal(runs(first.pid), true)
  assert.equal(START_DEADLINE_MS, 20_000)
  writeFileSync(path, '')
  const kill = t.mock.method(ChildProcess.prototype, 'kill')
  await server.clock.advance(1)
  assert.deepEqual(
    kill.mock.calls.map(call => call.arguments),
    [['SIGKILL']],
  )
  await until('it is logged', () => server.reports.length > 0)
  assert.equal(server.reports[0]?.details.reason, 'killed by SIGKILL')
  await ticking(server, 'another serves', () => count(server, 'idle') === 1)
  await server.clock.advance(2 * START_DEADLINE_MS)
  assert.equal(server.children?.().failures, 1, 'one that has started is not killed')
  await roundTrip(await client(t, server.port), 'served')
})

test(
  'processes that die of their start are started ever less often, and it is not ready',
  options,
  async t => {
    const path = cure(t)
    const server = await pool(t, { start: 1, minSpare: 1, maxSpare: 2 }, named('dyingEcho'))
    assert.equal(server.notReady?.(), 'no process is ready')
    await ticking(server, 'five have died', () => server.reports.length >= 5)
    assert.equal(server.notReady?.(), 'no process is ready')
    for (const { message, details } of server.reports)
      assert.deepEqual([message, details.reason, details.served], ['child died', 'exit code 1', 0])
    assert.deepEqual(
      server.reports.map(({ details }) => details.heldSeconds),
      [1, 2, 4, 8, 16],
    )
    assert.equal(server.children?.().forks, 5, 'one at a time')
    writeFileSync(path, '')
    await ticking(server, 'it is ready', () => server.notReady?.() === undefined)
    await roundTrip(await client(t, server.port), 'cured')
  },
)

test(
  'a process that cannot load its protocol fails when it starts, not at its first client',
  options,
  async t => {
    const server = await pool(t, { start: 1, minSpare: 1, maxSpare: 1 }, named('unknown'))
    await until('it is logged', () => server.reports.length > 0)
    assert.deepEqual(
      [server.reports[0]?.message, server.reports[0]?.details.reason],
      ['child died', 'exit code 1'],
    )
    assert.equal(server.notReady?.(), 'no process is ready')
    assert.equal(server.counters.connections, 0)
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
    server.reports.filter(({ message }) => message === 'child died'),
    [],
  )
})

test('with none to start with, the first tick creates one', options, async t => {
  const server = await pool(t, { start: 0, minSpare: 1, maxSpare: 2 })
  await server.clock.advance(TICK_MS - 1)
  assert.equal(server.notReady?.(), 'no process is ready')
  assert.deepEqual(board(server), [])
  await server.clock.advance(1)
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

test('an address in use is named with its code and port, and the others are closed', options, async t => {
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
