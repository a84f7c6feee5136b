import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import type { Socket } from 'node:net'
import { type TestContext, test } from 'node:test'
import { descriptorRoom, Listeners } from '../../src/net/listeners.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { attempt, client, clients, ended, read, roundTrip } from '../conformance/clients.ts'
import { until } from '../support/until.ts'

const options = { timeout: 60_000, skip: (await whyUnavailable()) ?? false }

/** An echo server for `cap` clients at a time. */
async function listen(t: TestContext, cap: number, ...hosts: string[]) {
  const reports: unknown[] = []
  const served = new Set<Socket>()
  let most = 0
  const listeners: Listeners = new Listeners(
    cap,
    socket => {
      served.add(socket)
      most = Math.max(most, served.size, listeners.active)
      socket.on('error', () => {})
      socket.once('close', () => {
        served.delete(socket)
        listeners.left()
      })
      socket.pipe(socket)
    },
    (_level, message, details) => reports.push({ message, ...details }),
  )
  t.after(() => {
    listeners.close()
    for (const socket of served) socket.destroy()
  })
  const ports: number[] = []
  for (const address of hosts.length > 0 ? hosts : ['127.0.0.1'])
    ports.push((await listeners.open({ address, port: 0 })).port)
  return { listeners, reports, ports, port: ports[0], most: () => most }
}

test('600 clients wait for one place, and each gets it', {
  ...options,
  timeout: 10_000,
}, async t => {
  const CLIENTS = 600
  const { listeners, port, most, reports } = await listen(t, 1)
  const first = await client(t, port!)
  await roundTrip(first, 'first')
  const others = await clients(t, port!, CLIENTS)
  const answers = others.map(async (socket, i) => {
    socket.end(`${1000 + i}`)
    assert.equal(await read(socket, 4), `${1000 + i}`)
  })
  await until('all wait', () => listeners.waiting === CLIENTS)
  assert.equal(listeners.active, 1)
  first.end()
  await Promise.all(answers)
  await until('no client is left', () => listeners.active === 0)
  assert.equal(most(), 1)
  assert.deepEqual(reports, [{ message: 'connection cap reached: further clients wait', cap: 1 }])
})

test('all listeners share the cap, and all accept again when there is room', options, async t => {
  const { listeners, ports, most } = await listen(t, 3, '127.0.0.1', '::1', '127.0.0.2')
  const hosts = ['127.0.0.1', '::1', '127.0.0.2']
  const all = Array.from({ length: 60 }, async (_, i) => {
    const socket = await client(t, ports[i % 3]!, hosts[i % 3])
    socket.end(`${10 + i}`)
    assert.equal(await read(socket, 2), `${10 + i}`)
  })
  await Promise.all(all)
  await until('no client is left', () => listeners.active === 0 && listeners.waiting === 0)
  assert.ok(most() <= 3, `${most()} at a time`)
})

test('to pause and to go on a hundred times costs no descriptor', options, async t => {
  const { listeners, port } = await listen(t, 1)
  const descriptors = () => readdirSync('/proc/self/fd').length
  const before = descriptors()
  for (let i = 0; i < 100; i++) {
    const socket = await client(t, port!)
    await roundTrip(socket, `${i}`)
    socket.end()
    await ended(socket)
    socket.destroy()
  }
  await until('no client is left', () => listeners.active === 0)
  await until('all are let go', () => descriptors() <= before)
})

test(
  'after close new clients and those that wait are refused; those that are served go on',
  options,
  async t => {
    const { listeners, port } = await listen(t, 1)
    const served = await client(t, port!)
    await roundTrip(served, 'served')
    const waits = await client(t, port!)
    await until('it waits', () => listeners.waiting === 1)
    listeners.close()
    await ended(waits)
    assert.equal(waits.bytesRead, 0)
    assert.equal(await attempt(t, port!), 'ECONNREFUSED')
    await roundTrip(served, 'still served')
    served.end()
    await until('it has left', () => listeners.active === 0)
    assert.equal(await attempt(t, port!), 'ECONNREFUSED', 'a client that leaves does not open it again')
    listeners.close()
  },
)

test('the cap is never more than the number of free descriptors', options, async t => {
  const room = descriptorRoom()
  assert.ok(room >= 1 && Number.isInteger(room))
  const { listeners } = await listen(t, 1_000_000_000)
  assert.ok(listeners.cap <= room)
  assert.equal((await listen(t, 1)).listeners.cap, 1)
})
