import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { type TestContext, test } from 'node:test'
import type { Transport } from '../../src/address.ts'
import { openEcho } from '../../src/client/echo.ts'
import { eventLoop } from '../../src/servers/event-loop.ts'
import { echo } from '../support/echo.ts'

const options = { timeout: 30_000 }
const never = new AbortController().signal

async function tcpServer(t: TestContext, onConnection: (socket: Socket) => void) {
  const sockets = new Set<Socket>()
  const server = createServer(socket => {
    sockets.add(socket)
    onConnection(socket.on('error', () => {}))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { address: '127.0.0.1', port: (server.address() as AddressInfo).port }
}

async function silentUdp(t: TestContext) {
  const socket = createSocket('udp4').bind(0, '127.0.0.1')
  await once(socket, 'listening')
  t.after(() => void socket.close())
  return { socket, address: '127.0.0.1', port: socket.address().port }
}

/** Ports that were free a moment ago. */
async function closedPort(t: TestContext, transport: Transport) {
  if (transport === 'tcp') {
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    await new Promise(resolve => server.close(resolve))
    return { address: '127.0.0.1', port }
  }
  const { port, socket } = await silentUdp(t)
  // It is closed here, so not once more at the end of the test.
  await new Promise<void>(resolve => void socket.close(resolve))
  socket.close = () => socket
  return { address: '127.0.0.1', port }
}

for (const transport of ['udp', 'tcp'] as const)
  for (const address of ['127.0.0.1', '::1'])
    test(
      `a session over ${transport} with ${address} exchanges one payload after the other`,
      options,
      async t => {
        const listen = [{ address, port: 0 }]
        const server = await eventLoop(echo, { listen, maxConnections: 9, idleMs: 9e4, say: () => {} })
        t.after(() => server.close(AbortSignal.abort()))
        const session = await openEcho(transport, server.addresses[0]!, never)
        t.after(() => session.close())
        for (const size of [1, 0, 1472, 65_507, 3]) {
          const payload = Buffer.alloc(size, `payload of ${size}`)
          assert.ok(payload.equals(await session.exchange(payload, never)), `${size} octets`)
        }
      },
    )

test(
  'a stream that comes back in single octets is one echo, and what follows is left for the next exchange',
  options,
  async t => {
    const server = await tcpServer(t, socket => {
      socket.setNoDelay()
      socket.once('data', async () => {
        for (const octet of 'onetw') if (!socket.write(octet)) await once(socket, 'drain')
        socket.once('data', () => socket.end('o'))
      })
    })
    const session = await openEcho('tcp', server, never)
    t.after(() => session.close())
    assert.equal(String(await session.exchange(Buffer.from('one'), never)), 'one')
    assert.equal(String(await session.exchange(Buffer.from('two'), never)), 'two')
  },
)

const failures: readonly [name: string, onConnection: (socket: Socket) => void, expected: RegExp][] = [
  ['closes at once', socket => socket.end(), /^connection closed after 0 of 5 bytes$/],
  ['answers too little', socket => socket.end('hel'), /^connection closed after 3 of 5 bytes$/],
  ['resets', socket => socket.once('data', () => socket.resetAndDestroy()), /ECONNRESET/],
]
for (const [name, onConnection, expected] of failures)
  test(
    `an exchange with a TCP server that ${name} is rejected, and so are all that follow`,
    options,
    async t => {
      const session = await openEcho('tcp', await tcpServer(t, onConnection), never)
      t.after(() => session.close())
      await assert.rejects(session.exchange(Buffer.from('hello'), never), { message: expected })
      await assert.rejects(session.exchange(Buffer.from('hello'), never))
    },
  )

for (const transport of ['udp', 'tcp'] as const) {
  test(`a closed ${transport} port is an error at once, not a time-out`, options, async t => {
    const server = await closedPort(t, transport)
    const attempt = async () => {
      const session = await openEcho(transport, server, never)
      t.after(() => session.close())
      await session.exchange(Buffer.from('hello'), never)
    }
    await assert.rejects(attempt, { code: 'ECONNREFUSED' })
  })

  test(`an exchange over ${transport} ends when its signal aborts, before or during it`, options, async t => {
    const server = transport === 'tcp' ? await tcpServer(t, () => {}) : await silentUdp(t)
    const reason = new Error('enough')
    for (const abortFirst of [true, false]) {
      const session = await openEcho(transport, server, never)
      t.after(() => session.close())
      const controller = new AbortController()
      if (abortFirst) controller.abort(reason)
      const exchange = session.exchange(Buffer.from('hello'), controller.signal)
      if (!abortFirst) setImmediate(() => controller.abort(reason))
      await assert.rejects(exchange, error => error === reason || (error as Error).cause === reason)
    }
    await assert.rejects(openEcho(transport, server, AbortSignal.abort(reason)))
  })
}

test('a datagram that is too long is rejected, not dropped silently', options, async t => {
  const session = await openEcho('udp', await silentUdp(t), never)
  t.after(() => session.close())
  await assert.rejects(session.exchange(Buffer.alloc(65_508), never), { code: 'EMSGSIZE' })
})

test('only the server that was asked can answer over UDP', options, async t => {
  const server = await silentUdp(t)
  const stranger = await silentUdp(t)
  const session = await openEcho('udp', server, never)
  t.after(() => session.close())
  server.socket.once('message', (message, peer) =>
    stranger.socket.send('forged', peer.port, peer.address, () =>
      server.socket.send(message, peer.port, peer.address),
    ),
  )
  assert.equal(String(await session.exchange(Buffer.from('real'), never)), 'real')
})
