import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import type { concurrent as Concurrent } from '../../src/servers/concurrent.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { attempt, client, clients, ended, read, roundTrip } from '../conformance/clients.ts'
import { ownChildren, serve } from '../conformance/in-process.ts'
import { knowOddProtocols, named } from '../conformance/odd-protocols.ts'
import { runs } from '../conformance/proc.ts'
import { echo } from '../support/echo.ts'
import { until } from '../support/until.ts'

const options = { timeout: 60_000, skip: (await whyUnavailable()) ?? false }
const concurrent: typeof Concurrent = options.skip
  ? () => assert.fail()
  : (await import('../../src/servers/concurrent.ts')).concurrent

test('at the cap clients wait in the order in which they came, and it is logged once', options, async t => {
  const server = await serve(t, concurrent, echo, { maxChildren: 2 })
  const served = await clients(t, server.port, 2)
  await Promise.all(served.map(socket => roundTrip(socket, 'served')))
  const order: number[] = []
  const waiting = []
  for (let i = 0; i < 4; i++) {
    const socket = await client(t, server.port)
    socket.once('data', () => order.push(i))
    socket.write('x')
    waiting.push(socket)
  }
  await until('four wait', () => server.counters.waiting === 4)
  for (let i = 0; i < 20; i++) await roundTrip(served[0]!, `${i}`)
  assert.equal(order.length, 0)
  assert.equal(server.counters.active, 2)
  assert.equal(ownChildren().length, 2)
  // One that gives up while it waits takes no place.
  waiting[1]!.resetAndDestroy()
  served[0]!.end()
  for (const i of [0, 2, 3]) {
    await until(`the ${i}th is served`, () => order.includes(i))
    waiting[i]!.end()
  }
  assert.deepEqual(order, [0, 2, 3])
  served[1]!.end()
  await until('nobody is left', () => server.counters.active === 0)
  assert.equal(server.counters.waiting, 0)
  assert.deepEqual(server.reports, [
    { level: 'warn', message: 'connection cap reached: further clients wait', details: { cap: 2 } },
  ])
  await until('no process is left', () => ownChildren().length === 0)
})

test('it counts connections, processes and failures', options, async t => {
  const server = await serve(t, concurrent, echo)
  assert.deepEqual(server.children?.(), { scoreboard: [], forks: 0, failures: 0 })
  const [a, b] = await clients(t, server.port, 2)
  await Promise.all([roundTrip(a!, 'a'), roundTrip(b!, 'b')])
  const { scoreboard, ...sums } = server.children?.() ?? assert.fail()
  assert.deepEqual(sums, { forks: 2, failures: 0 })
  assert.deepEqual(scoreboard?.map(({ pid }) => pid).toSorted(), ownChildren().toSorted())
  const killed = scoreboard[0]!.pid
  process.kill(killed, 'SIGKILL')
  await until('it is noticed', () => server.counters.active === 1)
  assert.deepEqual(server.reports, [
    {
      level: 'warn',
      message: 'child died: its client is cut off',
      details: { child: killed, reason: 'killed by SIGKILL' },
    },
  ])
  await Promise.race([ended(a!), ended(b!)])
  const { counters } = server
  assert.deepEqual([counters.connections, counters.active, counters.waiting], [2, 1, 0])
  assert.equal(server.children?.().failures, 1)
})

test('a protocol may give no reply to a piece', options, async t => {
  knowOddProtocols(t)
  const { port } = await serve(t, concurrent, named('silentEcho'))
  const socket = await client(t, port)
  await roundTrip(socket, 'loud')
  socket.write('quiet')
  // It was received alone, when the kernel has no more of it.
  await until('the server has it', () => socket.writableLength === 0)
  socket.end()
  await ended(socket)
  assert.equal(socket.bytesRead, 4)
})

test(
  'close refuses the clients that wait, lets the others finish, and leaves no process',
  options,
  async t => {
    const server = await serve(t, concurrent, echo, { maxChildren: 1 })
    const served = await client(t, server.port)
    await roundTrip(served, 'served')
    const waits = await client(t, server.port)
    await until('one waits', () => server.counters.waiting === 1)
    const children = ownChildren()
    let over = false
    const closed = server.close(new AbortController().signal).then(() => {
      over = true
    })
    await ended(waits)
    assert.equal(waits.bytesRead, 0)
    assert.equal(await attempt(t, server.port), 'ECONNREFUSED')
    for (let i = 0; i < 20; i++) await roundTrip(served, `still served ${i}`)
    assert.equal(over, false)
    served.end()
    await closed
    assert.deepEqual(children.filter(runs), [])
  },
)

test('close at the deadline cuts what is open', options, async t => {
  const server = await serve(t, concurrent, echo)
  const sockets = await clients(t, server.port, 2)
  await Promise.all(sockets.map(socket => roundTrip(socket, 'open')))
  const children = ownChildren()
  const deadline = new AbortController()
  const closed = server.close(deadline.signal)
  await roundTrip(sockets[0]!, 'still open')
  deadline.abort()
  await Promise.all([closed, ...sockets.map(ended)])
  assert.deepEqual(children.filter(runs), [])
  assert.deepEqual(server.reports, [], 'a connection that we cut has not failed')
})

test('clients of several addresses share one cap', options, async t => {
  const listen = [
    { address: '127.0.0.1', port: 0 },
    { address: '::1', port: 0 },
  ]
  const server = await serve(t, concurrent, echo, { listen, maxChildren: 1 })
  const [v4, v6] = server.addresses
  const first = await client(t, v6!.port, v6!.address)
  await roundTrip(first, 'first')
  const second = await client(t, v4!.port)
  second.write('second')
  await until('it waits', () => server.counters.waiting === 1)
  assert.equal(second.bytesRead, 0)
  first.end()
  assert.equal(await read(second, 6), 'second')
})

test('an address in use is named with its code and port', options, async t => {
  const other = createServer().listen(0, '127.0.0.1')
  await new Promise(resolve => other.once('listening', resolve))
  t.after(() => void other.close())
  const { port } = other.address() as { port: number }
  await assert.rejects(serve(t, concurrent, echo, { listen: [{ address: '127.0.0.1', port }] }), {
    message: `bind EADDRINUSE 127.0.0.1:${port}`,
    code: 'EADDRINUSE',
    syscall: 'bind',
    address: '127.0.0.1',
    port,
  })
})

test(
  'a process that dies during its start costs no client: the client waits for another',
  options,
  async t => {
    const folder = mkdtempSync(join(tmpdir(), 'roundelay-cure-'))
    process.env.ODD_PROTOCOL_CURE = join(folder, 'cure')
    t.after(() => {
      delete process.env.ODD_PROTOCOL_CURE
      rmSync(folder, { recursive: true })
    })
    knowOddProtocols(t)
    const server = await serve(t, concurrent, named('dyingEcho'))
    const socket = await client(t, server.port)
    socket.write('patience')
    await until('two have died', () => (server.children?.().failures ?? 0) >= 2)
    assert.equal(server.counters.connections, 0)
    writeFileSync(process.env.ODD_PROTOCOL_CURE, '')
    assert.equal(await read(socket, 8), 'patience')
    assert.equal(server.counters.connections, 1)
    assert.deepEqual(
      server.reports.map(({ message }) => message),
      ['child died during its start: its client waits'],
      'it is not logged for each of them',
    )
  },
)

test('whatever spawn throws, the server goes on and its clients wait', options, async t => {
  // Longer than an argument may be: E2BIG, one of those that Node throws.
  const server = await serve(t, concurrent, named('x'.repeat(200_000)))
  const socket = await client(t, server.port)
  await until('it is reports', () => server.reports.length > 0)
  const { level, message, details } = server.reports[0]!
  assert.deepEqual([level, message], ['error', 'cannot start a process: clients wait'])
  assert.equal((details.err as NodeJS.ErrnoException).code, 'E2BIG')
  assert.equal(socket.closed, false)
  socket.destroy()
})
