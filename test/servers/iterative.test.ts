import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { text } from 'node:stream/consumers'
import { type TestContext, test } from 'node:test'
import type { iterative as Iterative } from '../../src/servers/iterative.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { headers } from '../../src/sys/layouts.ts'
import { MIB, randomOctets } from '../conformance/clients.ts'
import { serve } from '../conformance/in-process.ts'
import { knowOddProtocols, silentEcho } from '../conformance/odd-protocols.ts'
import { descriptorOf } from '../conformance/proc.ts'
import { echo } from '../support/echo.ts'
import { udpClient } from '../support/udp.ts'
import { until } from '../support/until.ts'
import { option } from '../sys/kernel.ts'

const options = { timeout: 60_000, skip: (await whyUnavailable()) ?? false }
const iterative: typeof Iterative = options.skip
  ? () => assert.fail()
  : (await import('../../src/servers/iterative.ts')).iterative

/** A small program with an iterative server, that ends as it is told once a datagram was answered. */
async function program(t: TestContext, end: string) {
  const url = (path: string) => JSON.stringify(new URL(`../../src/${path}`, import.meta.url).href)
  const script = `
    import { iterative } from ${url('servers/iterative.ts')}
    import { protocol } from ${url('protocols.ts')}
    const echo = protocol('echo', { wallSeconds: () => 0 })
    const listen = [{ address: '127.0.0.1', port: 0 }]
    const server = await iterative(echo, { listen })
    console.log(server.addresses[0].port)
    process.stdin.once('data', async () => { ${end} })`
  const child = spawn(process.execPath, ['-e', script])
  t.after(() => child.kill('SIGKILL'))
  const stderr = text(child.stderr)
  const exited = once(child, 'exit', { signal: AbortSignal.timeout(20_000) })
  const port = Number(String((await once(child.stdout, 'data'))[0]))
  // Now its thread is blocked in recvfrom, or all but.
  assert.equal(String(await (await udpClient(t)).ask('hello', port)), 'hello')
  child.stdin.write('end')
  const [code, signal] = await exited
  return { code, signal, stderr: await stderr }
}

test('process.exit ends a process though its thread is blocked', options, async t => {
  assert.deepEqual(await program(t, 'process.exit(7)'), { code: 7, signal: null, stderr: '' })
})

test('process.exit ends a process some of whose threads have only just been started', options, async t => {
  const end = `
    const listen = [1, 2, 3, 4, 5, 6, 7, 8].map(i => ({ address: '127.0.0.' + i, port: 0 }))
    const { addresses } = await iterative(echo, { listen })
    const { createSocket } = await import('node:dgram')
    createSocket('udp4').on('message', () => process.exit(7)).send('x', addresses[0].port, '127.0.0.1')`
  for (let i = 0; i < 3; i++) assert.deepEqual(await program(t, end), { code: 7, signal: null, stderr: '' })
})

test('an uncaught error ends a process though its thread is blocked', options, async t => {
  const { code, signal, stderr } = await program(t, "throw new Error('uncaught')")
  assert.deepEqual([code, signal], [1, null])
  assert.match(stderr, /Error: uncaught/)
})

test('a process with a closed server ends by itself', options, async t => {
  const end = 'await server.close(new AbortController().signal); process.stdin.destroy()'
  assert.deepEqual(await program(t, end), { code: 0, signal: null, stderr: '' })
})

test(
  'a thread that cannot load its protocol ends the process, which would hear nothing without it',
  options,
  async t => {
    const end = `
    const broken = { ...echo, name: 'unknown' }
    await iterative(broken, { listen: [{ address: '127.0.0.1', port: 0 }] })`
    const { code, signal, stderr } = await program(t, end)
    assert.deepEqual([code, signal], [1, null])
    assert.match(stderr, /there is no protocol "unknown"/)
  },
)

test('each datagram is counted once, over all addresses', options, async t => {
  const listen = ['127.0.0.1', '::1', '127.0.0.2'].map(address => ({ address, port: 0 }))
  const { addresses, counters, close } = await serve(t, iterative, echo, { listen })
  assert.deepEqual(
    addresses.map(({ address }) => address),
    ['127.0.0.1', '::1', '127.0.0.2'],
  )
  for (const { address, port } of addresses) {
    const socket = await udpClient(t, address)
    for (const size of [0, 1, 1472, 65_507]) {
      const payload = randomOctets(size)
      assert.ok(payload.equals(await socket.ask(payload, port, address)))
    }
  }
  // What comes from a port of ours may come from ourselves.
  const own = await udpClient(t, '127.0.0.3', addresses[0]!.port)
  own.send('x', addresses[0]!.port, '127.0.0.1')
  await until('all are counted', () => counters.datagrams === 12 && counters.datagramsLoopDropped === 1)
  assert.equal(counters.datagramsFailed, 0)
  await close(AbortSignal.abort())
  assert.deepEqual(own.got, [])
  assert.deepEqual(
    [counters.datagrams, counters.datagramsLoopDropped],
    [12, 1],
    'the counts stay after the end',
  )
})

test('a protocol without a reply sends nothing', options, async t => {
  knowOddProtocols(t)
  const { port, counters } = await serve(t, iterative, silentEcho)
  const socket = await udpClient(t)
  socket.send('quiet', port, '127.0.0.1')
  assert.equal(String(await socket.ask('loud', port)), 'loud')
  assert.deepEqual(socket.got.map(String), ['loud'])
  await until('the one is counted', () => counters.datagrams === 1)
})

test('what came before the close is answered, and then the port is free', options, async t => {
  const server = await serve(t, iterative, echo)
  const socket = await udpClient(t)
  for (let i = 0; i < 100; i++) socket.send(`${i}`, server.port, '127.0.0.1')
  await until('the first is back', () => socket.got.length > 0)
  const sent = new Promise(resolve => socket.send('last', server.port, '127.0.0.1', resolve))
  await sent
  await server.close(new AbortController().signal)
  await until('all are answered', () => socket.got.length === 101)
  await serve(t, iterative, echo, { listen: [{ address: '127.0.0.1', port: server.port }] })
})

test('the deadline of a close ends it while datagrams pour in', options, async t => {
  const server = await serve(t, iterative, echo)
  const flood = spawn(process.execPath, ['-e', floodOf, `${server.port}`])
  t.after(() => flood.kill('SIGKILL'))
  await until('it pours', () => server.counters.datagrams > 2000)
  const began = performance.now()
  await server.close(AbortSignal.abort())
  t.diagnostic(`closed after ${(performance.now() - began).toFixed()} ms`)
})

const floodOf = `
  const socket = require('node:dgram').createSocket('udp4')
  socket.on('error', () => {})
  socket.bind(0, '127.0.0.1', () => {
    const pour = () => {
      for (let i = 0; i < 200; i++) socket.send('flood', +process.argv[1], '127.0.0.1')
      setImmediate(pour)
    }
    pour()
  })`

test('an address in use is named with its code and port, and the others are closed', options, async t => {
  const taken = (await udpClient(t, '127.0.0.3')).address().port
  const first = createSocket('udp4').bind(0, '127.0.0.1')
  await once(first, 'listening')
  const { port } = first.address()
  await once(first.close(), 'close')
  const listen = [
    { address: '127.0.0.1', port },
    { address: '127.0.0.3', port: taken },
  ]
  await assert.rejects(serve(t, iterative, echo, { listen }), {
    message: `bind EADDRINUSE 127.0.0.3:${taken}`,
    code: 'EADDRINUSE',
    syscall: 'bind',
    address: '127.0.0.3',
    port: taken,
  })
  await serve(t, iterative, echo, { listen: [{ address: '127.0.0.1', port }] })
})

test('its socket asks for a receive buffer of 4 MiB', options, async t => {
  const { port } = await serve(t, iterative, echo)
  const most = Number(readFileSync('/proc/sys/net/core/rmem_max', 'utf8'))
  // The kernel doubles it: socket(7).
  const octets = option(descriptorOf('udp', port), headers.SOL_SOCKET, headers.SO_RCVBUF)
  assert.equal(octets, 2 * Math.min(4 * MIB, most))
})
