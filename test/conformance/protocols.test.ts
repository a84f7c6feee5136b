/**
 * Every protocol on every server model, over every transport that the model is made for, and behind inetd.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { type TestContext, test } from 'node:test'
import type { Transport } from '../../src/address.ts'
import { systemClock } from '../../src/clock.ts'
import { type ProtocolName, protocol, protocolNames } from '../../src/protocols.ts'
import { modelNames, models } from '../../src/servers/models.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { cli } from '../support/process.ts'
import { udpClient } from '../support/udp.ts'
import { until } from '../support/until.ts'
import { client, read } from './clients.ts'
import { serve } from './in-process.ts'

const unavailable = await whyUnavailable()
const KIB = 1024
const daytime = /^[A-Z][a-z]{2} [A-Z][a-z]{2} [ 123]\d \d\d:\d\d:\d\d \d{4}\r\n$/
const secondsSince1900 = (octets: Buffer) => octets.readUInt32BE() - 2_208_988_800

function isNow(octets: Buffer): void {
  assert.equal(octets.length, 4)
  const late = Date.now() / 1000 - secondsSince1900(octets)
  assert.ok(late >= 0 && late < 60, `${late} s late`)
}

/** What comes until the server ends the connection. The client's own end is left to the test. */
async function all(socket: Socket): Promise<Buffer> {
  const pieces: Buffer[] = []
  socket.on('data', (piece: Buffer) => pieces.push(piece))
  await once(socket, 'end')
  return Buffer.concat(pieces)
}

const overTcp: Record<ProtocolName, (socket: Socket) => Promise<void>> = {
  async echo(socket) {
    socket.write('hello')
    assert.equal(await read(socket, 5), 'hello')
    socket.end('the end')
    assert.equal(String(await all(socket)), 'the end')
  },
  async discard(socket) {
    socket.write(Buffer.alloc(300 * KIB))
    socket.end()
    assert.equal((await all(socket)).length, 0)
  },
  async chargen(socket) {
    // Nothing is sent: the server speaks first. What is received comes in order, over more than one reply.
    const OCTETS = 200 * KIB
    const text = (await read(socket, OCTETS)).slice(0, OCTETS)
    const line = (i: number) =>
      `${Array.from({ length: 72 }, (_, j) => String.fromCharCode(0x20 + ((i + j) % 95))).join('')}\r\n`
    const pattern = Array.from({ length: 95 }, (_, i) => line(i)).join('')
    assert.ok(pattern.repeat(Math.ceil(OCTETS / pattern.length)).startsWith(text))
    socket.end('ignored')
    await all(socket)
  },
  async daytime(socket) {
    assert.match(String(await all(socket)), daytime)
    socket.end('ignored')
  },
  async time(socket) {
    isNow(await all(socket))
    socket.end('ignored')
  },
}

type Ask = (payload: string) => Promise<Buffer>

const overUdp: Record<Exclude<ProtocolName, 'discard'>, (ask: Ask) => Promise<void>> = {
  async echo(ask) {
    for (const text of ['hello', '', 'x'.repeat(9000)]) assert.equal(String(await ask(text)), text)
  },
  async chargen(ask) {
    for (const octets of [0, 1, 10, 74, 75, 512])
      assert.equal((await ask('x'.repeat(octets))).length, Math.min(octets, 74))
  },
  async daytime(ask) {
    for (const text of ['', 'hello', 'x'.repeat(1000)]) assert.match(String(await ask(text)), daytime)
  },
  async time(ask) {
    for (const text of ['', 'hello', 'x'.repeat(1000)]) isNow(await ask(text))
  },
}

async function speaks(t: TestContext, name: ProtocolName, transport: Transport, port: number): Promise<void> {
  if (transport === 'tcp') return await overTcp[name](await client(t, port))
  const socket = await udpClient(t)
  if (name !== 'discard') return await overUdp[name](payload => socket.ask(payload, port))
  for (const text of ['', 'hello', 'x'.repeat(9000)]) socket.send(text, port, '127.0.0.1')
}

for (const model of modelNames)
  for (const transport of models[model].transports)
    for (const name of protocolNames)
      test(`${name} on ${model} over ${transport.toUpperCase()}`, {
        timeout: 60_000,
        skip: models[model].needsLinux ? (unavailable ?? false) : false,
      }, async t => {
        const spoken = protocol(name, systemClock)
        const server = await serve(t, await models[model].load(), spoken, {
          transports: [transport],
          ...{ start: 1, minSpare: 1, maxSpare: 1 },
        })
        await speaks(t, name, transport, server.port)
        await until('nobody is served', () => server.counters.active === 0)
        assert.deepEqual(server.reports, [])
        assert.equal(server.counters.datagramsFailed, 0)
        if (name === 'discard') assert.equal(server.counters.datagrams, 0)
      })

for (const name of protocolNames)
  test(`${name} on stdio, as inetd hands its sockets over`, {
    timeout: 60_000,
    skip: unavailable ?? false,
  }, async t => {
    const { bindUdp, listenTcp } = await import('../../src/sys/sockets.ts')
    const { close } = await import('../../src/sys/libc.ts')
    const place = { address: '127.0.0.1', port: 0 }
    const sockets = { tcp: listenTcp(place, true), udp: bindUdp(place, 65_536) }
    await Promise.all(
      (['tcp', 'udp'] as const).map(async transport => {
        const { fd, address } = sockets[transport]
        t.after(() => close(fd))
        const args = ['echo', '--stdio', '--protocol', name]
        const child = spawn(process.execPath, [cli, ...args], { stdio: [fd, 'ignore', 'inherit'] })
        const ended = once(child, 'close')
        t.after(async () => {
          child.kill('SIGKILL')
          await ended
        })
        await speaks(t, name, transport, address.port)
        assert.equal(child.exitCode, null, 'it waits for the next')
      }),
    )
  })
