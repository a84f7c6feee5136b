import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { type TestContext, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { BUSY, type ChildOrders, CONTROL, IDLE } from '../../src/servers/orders.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { headers } from '../../src/sys/layouts.ts'
import type * as Sys from '../../src/sys/libc.ts'
import type * as Sockets from '../../src/sys/sockets.ts'
import { client, ended, MIB, randomOctets, roundTrip } from '../conformance/clients.ts'
import { descriptorOf } from '../conformance/proc.ts'
import { until } from '../support/until.ts'
import { option } from '../sys/kernel.ts'

const options = { timeout: 30_000, skip: (await whyUnavailable()) ?? false }
const program = fileURLToPath(new URL('../../src/servers/child.ts', import.meta.url))
const { accept4, close }: typeof Sys = options.skip
  ? ({} as typeof Sys)
  : await import('../../src/sys/libc.ts')
const { listenTcp }: typeof Sockets = options.skip
  ? ({} as typeof Sockets)
  : await import('../../src/sys/sockets.ts')

/** The program itself, with the descriptors that it would be given by its parent: us. */
function child(
  t: TestContext,
  orders: Partial<ChildOrders>,
  connection: Socket | 'ignore',
  listeners: readonly number[] = [],
) {
  const all = {
    protocol: 'echo',
    idleMs: 60_000,
    listeners: listeners.length,
    maxRequests: 0,
    ...orders,
  }
  const process_ = spawn(process.execPath, [program, JSON.stringify(all)], {
    stdio: [connection, 'ignore', 'pipe', 'pipe', ...listeners],
  })
  let stderr = ''
  process_.stderr?.on('data', data => {
    stderr += data
  })
  const control = process_.stdio[CONTROL] as Socket
  let states = ''
  control
    .on('error', () => {})
    .on('data', data => {
      states += data
    })
  const exited = once(process_, 'close').then(([code, signal]) => ({ code, signal }))
  t.after(async () => {
    process_.kill('SIGKILL')
    await exited
  })
  return { control, exited, kill: () => process_.kill('SIGKILL'), states: () => states, stderr: () => stderr }
}

/** Both ends of a connection: the client's, and the server's, unread. */
async function pair(t: TestContext, server: Server, path?: string): Promise<[Socket, Socket]> {
  t.after(() => void server.close())
  await once(path ? server.listen(path) : server.listen(0, '127.0.0.1'), 'listening')
  const accepted = once(server, 'connection')
  const where = path ? { path } : { port: (server.address() as { port: number }).port, host: '127.0.0.1' }
  const socket = connect({ ...where, allowHalfOpen: true })
  t.after(() => void socket.destroy())
  return [socket.on('error', () => {}), (await accepted)[0]]
}

const paused = () => createServer({ pauseOnConnect: true, allowHalfOpen: true })
const ends = { code: 0, signal: null }

test(
  'it serves the connection that it is given, over TCP and over a Unix socket, and ends',
  options,
  async t => {
    const path = join(tmpdir(), `roundelay-child-${process.pid}.sock`)
    t.after(() => rmSync(path, { force: true }))
    for (const where of [undefined, path]) {
      const [socket, connection] = await pair(t, paused(), where)
      const { exited, states } = child(t, {}, connection)
      connection.destroy()
      const payload = randomOctets(3 * MIB + 1)
      socket.end(payload)
      assert.ok(payload.equals(await buffer(socket)))
      assert.deepEqual(await exited, ends)
      assert.equal(states(), 'b', 'it reports when it has the connection')
    }
  },
)

test('it ends when its client resets, when nothing moves, and when its parent is gone', options, async t => {
  const reset = async () => {
    const [socket, connection] = await pair(t, paused())
    const { exited } = child(t, {}, connection)
    connection.destroy()
    await roundTrip(socket, 'hello')
    socket.resetAndDestroy()
    assert.deepEqual(await exited, ends)
  }
  const idle = async () => {
    const [socket, connection] = await pair(t, paused())
    const { exited } = child(t, { idleMs: 200 }, connection)
    connection.destroy()
    await roundTrip(socket, 'hello')
    await ended(socket)
    assert.deepEqual(await exited, ends)
  }
  const orphan = async () => {
    const [socket, connection] = await pair(t, paused())
    const { exited, control } = child(t, {}, connection)
    connection.destroy()
    await roundTrip(socket, 'hello')
    control.destroy()
    await ended(socket)
    assert.deepEqual(await exited, ends)
  }
  await Promise.all([reset(), idle(), orphan()])
})

function listening(t: TestContext) {
  const { fd, address } = listenTcp({ address: '127.0.0.1', port: 0 })
  t.after(() => close(fd))
  return { fd, port: address.port }
}

test(
  'it reports when it is idle and when busy, and ends after as many clients as it was told',
  options,
  async t => {
    const { fd, port } = listening(t)
    const { exited, states } = child(t, { maxRequests: 3 }, 'ignore', [fd])
    await until('it is idle', () => states() === IDLE)
    for (let i = 1; i <= 3; i++) {
      const socket = await client(t, port)
      await roundTrip(socket, `${i}`)
      await until('it is busy', () => states() === (IDLE + BUSY).repeat(i))
      socket.end()
      await ended(socket)
    }
    assert.deepEqual(await exited, ends)
    assert.equal(states(), (IDLE + BUSY).repeat(3))
  },
)

test('told to stop it ends, but not before its client', options, async t => {
  const { fd, port } = listening(t)
  const idle = child(t, {}, 'ignore', [fd])
  await until('it is idle', () => idle.states() === IDLE)
  idle.control.write('stop')
  assert.deepEqual(await idle.exited, ends)

  const busy = child(t, {}, 'ignore', [fd])
  const socket = await client(t, port)
  await roundTrip(socket, 'served')
  busy.control.write('stop')
  const next = await client(t, port)
  next.write('not by this one')
  for (let i = 0; i < 20; i++) await roundTrip(socket, `still served ${i}`)
  socket.end()
  await ended(socket)
  assert.deepEqual(await busy.exited, ends)
  // The other client was left to a sibling.
  const sibling = child(t, {}, 'ignore', [fd])
  assert.equal(String((await once(next, 'data'))[0]), 'not by this one')
  sibling.control.destroy()
  assert.deepEqual(await sibling.exited, ends)
})

test('siblings share listening sockets: none fails when another was faster', options, async t => {
  const { fd, port } = listening(t)
  const siblings = [1, 2, 3].map(() => child(t, {}, 'ignore', [fd]))
  await until('all are idle', () => siblings.every(({ states }) => states() === IDLE))
  for (let i = 0; i < 100; i++) {
    const socket = await client(t, port)
    socket.end('x')
    assert.equal(String(await buffer(socket)), 'x')
  }
  const served = siblings.map(({ states }) => [...states()].filter(state => state === BUSY).length)
  await until('all are idle again', () => siblings.every(({ states }) => states().endsWith(IDLE)))
  assert.equal(
    siblings.reduce((sum, { states }) => sum + [...states()].filter(state => state === BUSY).length, 0),
    100,
  )
  t.diagnostic(`served ${served}`)
})

test('siblings that wake up for a client that another gets report nothing', options, async t => {
  const { fd, address } = listenTcp({ address: '127.0.0.1', port: 0 })
  t.after(() => close(fd))
  const siblings = Array.from({ length: 4 }, () => child(t, {}, 'ignore', [fd]))
  await until('all are idle', () => siblings.every(({ states }) => states() === 'i'))
  for (let i = 0; i < 40; i++) {
    const socket = connect({ ...address, host: '127.0.0.1' })
    t.after(() => void socket.destroy())
    socket.end('hello')
    assert.equal(String(await buffer(socket)), 'hello')
  }
  const all = () => siblings.map(({ states }) => states())
  await until('all are idle again', () => all().every(states => states.endsWith('i')))
  for (const states of all()) assert.match(states, /^i(bi)*$/)
  assert.equal(all().join('').replaceAll('i', '').length, 40)
})

const { SOL_SOCKET, SO_KEEPALIVE, IPPROTO_TCP, TCP_NODELAY } = headers

test('its connection has keep-alive and TCP_NODELAY', options, async t => {
  const [socket, connection] = await pair(t, paused())
  t.after(() => connection.destroy())
  child(t, {}, connection)
  await roundTrip(socket, 'hello')
  // The options are those of the socket, of which this process still has a descriptor.
  const fd = descriptorOf('tcp', socket.remotePort as number, socket.localPort)
  assert.equal(option(fd, SOL_SOCKET, SO_KEEPALIVE), 1)
  assert.equal(option(fd, IPPROTO_TCP, TCP_NODELAY), 1)
})

test('the connections that it accepts have keep-alive and TCP_NODELAY', options, async t => {
  const { fd, port } = listening(t)
  const { states } = child(t, {}, 'ignore', [fd])
  await until('it is idle', () => states() === IDLE)
  const socket = await client(t, port)
  await roundTrip(socket, 'hello')
  // The child is busy, so this test accepts the next client itself: with the same options.
  const next = await client(t, port)
  const accepted = accept4(fd, headers.SOCK_CLOEXEC)
  t.after(() => close(accepted))
  assert.equal(option(accepted, SOL_SOCKET, SO_KEEPALIVE), 1)
  assert.equal(option(accepted, IPPROTO_TCP, TCP_NODELAY), 1)
  next.destroy()
})

test('without a protocol of that name it fails before it reports that it has started', options, async t => {
  const { fd } = listening(t)
  const { exited, states, stderr } = child(t, { protocol: 'unknown' }, 'ignore', [fd])
  assert.deepEqual(await exited, { code: 1, signal: null })
  assert.equal(states(), '')
  assert.match(stderr(), /there is no protocol "unknown"/)
})

test('with a session that goes on by itself it sends, discards, and notices the end', options, async t => {
  const [socket, connection] = await pair(t, paused())
  const { exited } = child(t, { protocol: 'chargen' }, connection)
  connection.destroy()
  let octets = 0
  socket.on('data', data => {
    octets += data.length
  })
  socket.write(randomOctets(3 * MIB))
  await until('the client sends as it receives', () => octets > 3 * MIB && socket.writableLength === 0)
  socket.end()
  await ended(socket)
  assert.deepEqual(await exited, ends)
})

test('with a session that is over it does not reset a client that still sends', options, async t => {
  const [socket, connection] = await pair(t, paused())
  const { exited } = child(t, { protocol: 'daytime' }, connection)
  connection.destroy()
  let text = ''
  socket.on('data', data => {
    text += data
  })
  const payload = randomOctets(3 * MIB)
  socket.write(payload)
  await once(socket, 'end')
  assert.equal(text.length, 26)
  await once(socket.end(payload), 'close')
  assert.equal(socket.errored, null)
  assert.deepEqual(await exited, ends)
})
