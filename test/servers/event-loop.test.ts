import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createCipheriv } from 'node:crypto'
import { createSocket, Socket as UdpSocket } from 'node:dgram'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer, isIPv6, type Socket } from 'node:net'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { type TestContext, test } from 'node:test'
import { promisify } from 'node:util'
import { systemClock } from '../../src/clock.ts'
import { MAX_QUEUED_OCTETS } from '../../src/net/bind.ts'
import { protocol, SMALL_SERVICE_PORTS } from '../../src/protocols.ts'
import { eventLoop } from '../../src/servers/event-loop.ts'
import type { ServerOptions } from '../../src/servers/service.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { descriptorOf } from '../conformance/proc.ts'
import { echo } from '../support/echo.ts'
import { has, portOf, run, start } from '../support/process.ts'
import { udpClient } from '../support/udp.ts'
import { until } from '../support/until.ts'

const KIB = 1024
const MIB = 1024 * KIB
const root = process.getuid?.() === 0
const options = { timeout: 60_000 }
const unavailable = (await whyUnavailable()) ?? false

/** The same octets in every run: AES in counter mode, keyed by the seed. */
const randomOctets = (length: number, seed = length): Buffer =>
  createCipheriv('aes-128-ctr', Buffer.alloc(16, `seed ${seed}`), Buffer.alloc(16)).update(
    Buffer.alloc(length),
  )

function* pieces(payload: Buffer): Generator<Buffer> {
  const random = randomOctets(256, payload.length + 1)
  for (let at = 0, i = 0; at < payload.length; i++) {
    const length = 1 + (random.readUInt16LE((2 * i) % 255) >> (i % 3 === 0 ? 12 : 0))
    yield payload.subarray(at, at + length)
    at += length
  }
}

async function serve(t: TestContext, address = '127.0.0.1', wanted: Partial<ServerOptions> = {}) {
  const full: number[] = []
  const service = await eventLoop(echo, {
    listen: [{ address, port: 0 }],
    maxConnections: 16_384,
    idleMs: 600_000,
    say: (_level, _message, details) => full.push((details as { cap: number }).cap),
    ...wanted,
  })
  let closing: Promise<void> | undefined
  const close = (deadline: AbortSignal) => {
    closing ??= service.close(deadline)
    return closing
  }
  const sockets = new Set<Socket>()
  t.after(async () => {
    for (const socket of sockets) socket.destroy()
    await close(AbortSignal.abort())
  })
  const { port } = service.addresses[0]!
  return {
    counters: service.counters,
    full,
    port,
    close,
    /** A connected client, destroyed when the test ends. */
    async client(): Promise<Socket> {
      const socket = connect({ host: address, port, allowHalfOpen: true, noDelay: true })
      sockets.add(socket)
      await once(socket, 'connect')
      return socket.on('error', () => {})
    },
  }
}

/** Writes and reads as many octets; the connection stays. */
async function roundTrip(socket: Socket, text: string): Promise<void> {
  socket.write(text)
  let got = ''
  while (got.length < text.length) got += (await once(socket, 'data'))[0]
  assert.equal(got, text)
}

/** Resolves when the socket is closed, with or without an error. */
const gone = (socket: Socket): Promise<void> => new Promise(resolve => socket.once('close', () => resolve()))

for (const address of ['127.0.0.1', '::1']) {
  test(`TCP over ${address} comes back to the octet, whatever the size and the pieces`, options, async t => {
    const { client, counters } = await serve(t, address)
    const sizes = [0, 1, 511, 512, 1460, 1461, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB + 1, 8 * MIB]
    for (const size of sizes) {
      const payload = randomOctets(size)
      const socket = await client()
      const reply = buffer(socket)
      Readable.from(pieces(payload)).pipe(socket)
      assert.ok(payload.equals(await reply), `${size} octets`)
    }
    await until('no connection is open', () => counters.active === 0)
    assert.equal(counters.connections, sizes.length)
  })

  test(`UDP over ${address} comes back whole, whatever the size`, options, async t => {
    const { port, counters } = await serve(t, address)
    const socket = await udpClient(t, address)
    const sizes = [0, 1, 511, 512, 1232, 1472, 1473, 9000, 65_506, 65_507]
    // The largest that the header's length field allows; over IPv4 the IP header counts too.
    if (isIPv6(address)) sizes.push(65_527)
    for (const size of sizes) {
      const payload = randomOctets(size)
      const reply = await socket.ask(payload, port, address)
      assert.ok(payload.equals(reply), `${size} octets, ${reply.length} back`)
    }
    assert.equal(counters.datagrams, sizes.length)
  })
}

test('one server takes IPv4 and IPv6 side by side', options, async t => {
  const listen = [
    { address: '127.0.0.1', port: 0 },
    { address: '::1', port: 0 },
  ]
  const service = await eventLoop(echo, { listen, maxConnections: 10, idleMs: 60_000, say: () => {} })
  t.after(() => service.close(AbortSignal.abort()))
  assert.deepEqual(
    service.addresses.map(({ address }) => address),
    ['127.0.0.1', '::1'],
  )
  for (const { address, port } of service.addresses) {
    const reply = await (await udpClient(t, address)).ask(Buffer.from('hello'), port, address)
    assert.equal(reply.toString(), 'hello')
    const socket = connect({ host: address, port, allowHalfOpen: true })
    socket.end('hello')
    assert.equal((await buffer(socket)).toString(), 'hello')
  }
})

test('a half-close is answered after the last octet, and not before it', options, async t => {
  const { client, counters } = await serve(t)
  const socket = await client()
  await roundTrip(socket, 'before')
  await roundTrip(socket, 'still open')
  assert.equal(socket.readableEnded, false)
  assert.equal(counters.active, 1)
  // Much more than the buffers hold: when the FIN is sent, most of it is still to come back.
  const payload = randomOctets(16 * MIB)
  socket.end(payload)
  assert.ok(payload.equals(await buffer(socket)))
  await until('no connection is open', () => counters.active === 0)
})

test('1,000 connections are served at the same time', options, async t => {
  const { client, counters } = await serve(t)
  const clients = await Promise.all(Array.from({ length: 1000 }, client))
  await Promise.all(clients.map((socket, i) => roundTrip(socket, `I am ${i}`)))
  assert.equal(counters.active, 1000)
  await Promise.all(clients.map((socket, i) => roundTrip(socket, `I am still ${i}`)))
  const rests = clients.map((socket, i) => {
    const rest = buffer(socket)
    socket.end(`bye ${i}`)
    return rest
  })
  for (const [i, rest] of rests.entries()) assert.equal((await rest).toString(), `bye ${i}`)
  await until('no connection is open', () => counters.active === 0)
  assert.equal(counters.connections, 1000)
})

test('clients that reset in mid-stream disturb no other client', options, async t => {
  const { client, counters } = await serve(t)
  const steady = await client()
  const payload = randomOctets(8 * MIB)
  const reply = buffer(steady)
  const source = Readable.from(pieces(payload))
  source.pipe(steady)
  for (let i = 0; i < 50; i++) {
    const socket = await client()
    socket.write(randomOctets(256 * KIB))
    // In turns before, while and after the echo comes back.
    if (i % 3) await once(socket, 'data')
    if (i % 3 === 2) socket.pause()
    socket.resetAndDestroy()
  }
  assert.ok(payload.equals(await reply))
  await until('no connection is open', () => counters.active === 0)
  await roundTrip(await client(), 'all is well')
})

test(
  'a connection on which nothing moves is closed, whether its client is silent or never reads',
  options,
  async t => {
    const { client, counters } = await serve(t, '127.0.0.1', { idleMs: 300 })
    const silent = await client()
    await roundTrip(silent, 'then nothing')
    const deaf = (await client()).pause()
    const offer = () => {
      while (deaf.writable && deaf.write(randomOctets(64 * KIB)));
    }
    deaf.on('drain', offer)
    offer()
    await Promise.all([once(silent.resume(), 'end'), gone(deaf)])
    await until('no connection is open', () => counters.active === 0)
  },
)

test(
  'over the cap a client waits and is not refused until another ends; it is logged once',
  options,
  async t => {
    const { client, counters, full } = await serve(t, '127.0.0.1', { maxConnections: 2 })
    const [a, b] = [await client(), await client()]
    await roundTrip(a, 'a')
    await roundTrip(b, 'b')
    const [c, d, e] = [await client(), await client(), await client()]
    for (const socket of [c, d, e]) socket.write('wait')
    await until('three connections wait', () => counters.waiting === 3)
    // Their octets have been here for some turns of the loop and are not answered.
    for (let i = 0; i < 20; i++) await roundTrip(a, `${i}`)
    // biome-ignore format: one line
    assert.deepEqual([c, d, e].map(socket => socket.bytesRead), [0, 0, 0])
    assert.deepEqual({ active: counters.active, waiting: counters.waiting }, { active: 2, waiting: 3 })

    // One that gives up while it waits does not take a place for good.
    d.resetAndDestroy()
    a.end()
    assert.equal(String((await once(c, 'data'))[0]), 'wait')
    assert.equal(e.bytesRead, 0)
    b.end()
    assert.equal(String((await once(e, 'data'))[0]), 'wait')
    await until('both are served', () => counters.waiting === 0 && counters.active === 2)
    assert.deepEqual(full, [2], 'not said with every client')

    c.end()
    e.end()
    await until('no connection is open', () => counters.active === 0)
    const again = [await client(), await client(), await client()]
    await until('one connection waits', () => counters.waiting === 1)
    for (const socket of again) socket.destroy()
  },
)

test(
  'datagrams from ports that answer by themselves are dropped and counted, the others echoed',
  options,
  async t => {
    const { port, counters } = await serve(t)
    // A socket of another process could hold one of these ports on every address: then it is not tried.
    const free = async (from: number) =>
      from !== 0 && (root || from >= 1024)
        ? udpClient(t, '127.0.0.2', from).catch(error => void assert.equal(error.code, 'EADDRINUSE'))
        : undefined
    const blocked = [await udpClient(t, '127.0.0.2', port)]
    for (const from of SMALL_SERVICE_PORTS) blocked.push(...[await free(from)].filter(socket => !!socket))
    t.diagnostic(`tried from ${blocked.length} ports`)
    for (const socket of blocked) socket.send('x', port, '127.0.0.1')
    const ordinary = await udpClient(t, '127.0.0.2')
    // A socket's queue is in order: when this is back, all the others were looked at.
    assert.equal(String(await ordinary.ask(Buffer.from('hello'), port, '127.0.0.1')), 'hello')
    assert.equal(counters.datagramsLoopDropped, blocked.length)
    assert.equal(counters.datagrams, 1)
    assert.deepEqual(
      blocked.flatMap(socket => socket.got),
      [],
    )
  },
)

const rawDatagram = `
import socket, struct, sys
source, source_port, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
udp = struct.pack('!HHHH', source_port, port, 9, 0) + b'x'
ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0,
  socket.inet_aton(source), socket.inet_aton('127.0.0.1'))
socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).sendto(ip + udp, ('127.0.0.1', 0))
`
const skip = root && has('python3') ? false : 'needs root and python3 for a raw socket'

test('a datagram that cannot be answered is counted and disturbs no other', { ...options, skip }, async t => {
  const { port, counters } = await serve(t)
  const socket = await udpClient(t, '127.0.0.1')
  const forge = (source: string, sourcePort: number) =>
    promisify(execFile)('python3', ['-c', rawDatagram, source, `${sourcePort}`, `${port}`])
  await forge('127.0.0.9', 0)
  // A reply to a broadcast address: the kernel refuses it.
  await forge('127.255.255.255', 5000)
  assert.equal(String(await socket.ask(Buffer.from('alive'), port, '127.0.0.1')), 'alive')
  await until('a reply has failed', () => counters.datagramsFailed > 0)
  assert.deepEqual(
    [counters.datagrams, counters.datagramsLoopDropped, counters.datagramsFailed],
    [1, 1, 1],
    'each datagram counts once: echoed, dropped, failed',
  )
})

test('close lets an open connection go on until the deadline, and ends it then', options, async t => {
  const { client, close, port, counters } = await serve(t, '127.0.0.1', { maxConnections: 2 })
  const idle = await client()
  const busy = await client()
  await roundTrip(idle, 'idle')
  const waits = await client()
  await until('one connection waits', () => counters.waiting === 1)
  const deadline = new AbortController()
  let over = false
  const reset = gone(waits)
  const closed = close(deadline.signal).then(() => {
    over = true
  })
  // The kernel still had it.
  await reset
  const refused = connect(port, '127.0.0.1')
  assert.equal((await once(refused, 'error').catch(error => [error]))[0].code, 'ECONNREFUSED')
  const udp = createSocket('udp4')
  t.after(() => void udp.close())
  udp.connect(port, '127.0.0.1')
  await once(udp, 'connect')
  udp.send('anyone there?')
  assert.equal((await once(udp, 'error'))[0].code, 'ECONNREFUSED')

  for (let i = 0; i < 20; i++) await roundTrip(busy, `still served ${i}`)
  busy.end()
  await once(busy, 'close')
  assert.equal(over, false)
  const cut = once(idle.resume(), 'end')
  deadline.abort()
  await cut
  await closed
})

test(
  'close resolves as soon as the last connection has ended, long before the deadline',
  options,
  async t => {
    const { client, close, counters } = await serve(t)
    const payload = randomOctets(4 * MIB)
    const socket = await client()
    await roundTrip(socket, 'open')
    const closed = close(new AbortController().signal)
    const rest = buffer(socket)
    socket.end(payload)
    assert.ok(payload.equals(await rest))
    await closed
    assert.equal(counters.active, 0)
  },
)

test('close with nothing open resolves without the deadline, and frees the port', options, async t => {
  const { close, port } = await serve(t)
  await close(new AbortController().signal)
  await serve(t, '127.0.0.1', { listen: [{ address: '127.0.0.1', port }] })
})

test(
  'an address that cannot be bound is named with its code and port, and the others are closed',
  options,
  async t => {
    const tcp = createServer().listen(0, '127.0.0.1')
    await once(tcp, 'listening')
    t.after(() => void tcp.close())
    const tcpPort = (tcp.address() as AddressInfo).port
    const udpPort = (await udpClient(t, '127.0.0.3')).address().port
    const { port: first, close } = await serve(t)
    await close(AbortSignal.abort())
    const cases = [
      { address: '127.0.0.1', port: tcpPort, code: 'EADDRINUSE' },
      { address: '127.0.0.3', port: udpPort, code: 'EADDRINUSE' },
      { address: '192.0.2.1', port: 7007, code: 'EADDRNOTAVAIL' },
      { address: '2001:db8::1', port: 7007, code: 'EADDRNOTAVAIL' },
    ]
    for (const { address, port, code } of cases) {
      const listen = [
        { address: '127.0.0.1', port: first },
        { address, port },
      ]
      await assert.rejects(serve(t, address, { listen }), { code, address, port })
      const again = await serve(t, '127.0.0.1', { listen: [{ address: '127.0.0.1', port: first }] })
      await again.close(AbortSignal.abort())
    }
  },
)

test('while too many replies wait for the kernel, datagrams are dropped and counted', options, async t => {
  const { port, counters } = await serve(t)
  const socket = await udpClient(t, '127.0.0.1')
  assert.equal(String(await socket.ask(Buffer.from('before'), port, '127.0.0.1')), 'before')
  // The kernel takes replies over loopback at once, so the queue is only pretended.
  let queued = MAX_QUEUED_OCTETS + 1
  t.mock.method(UdpSocket.prototype, 'getSendQueueSize', () => queued)
  socket.send('dropped', port, '127.0.0.1')
  await until('the datagram was handled', () => counters.datagrams + counters.datagramsOverloadDropped === 2)
  assert.equal(counters.datagramsOverloadDropped, 1)
  queued = MAX_QUEUED_OCTETS
  assert.equal(String(await socket.ask(Buffer.from('after'), port, '127.0.0.1')), 'after')
  assert.deepEqual(socket.got.map(String), ['before', 'after'])
  await until('two datagrams were received', () => counters.datagrams === 2)
  assert.equal(counters.datagramsOverloadDropped, 1)
})

test('its sockets have the options that are asked for', { ...options, skip: unavailable }, async t => {
  const { headers } = await import('../../src/sys/layouts.ts')
  const { option } = await import('../sys/kernel.ts')
  const { port, client } = await serve(t)
  const most = Number(readFileSync('/proc/sys/net/core/rmem_max', 'utf8'))
  const udp = descriptorOf('udp', port)
  // The kernel doubles the size of the receive buffer: socket(7).
  assert.equal(option(udp, headers.SOL_SOCKET, headers.SO_RCVBUF), 2 * Math.min(4 * MIB, most))
  const socket = await client()
  await roundTrip(socket, 'hello')
  const accepted = descriptorOf('tcp', port, socket.localPort)
  assert.equal(option(accepted, headers.SOL_SOCKET, headers.SO_KEEPALIVE), 1)
  assert.equal(option(accepted, headers.IPPROTO_TCP, headers.TCP_NODELAY), 1)
})

async function serveProtocol(t: TestContext, name: string, idleMs = 60_000) {
  const listen = [{ address: '127.0.0.1', port: 0 }]
  const service = await eventLoop(protocol(name, systemClock), {
    listen,
    maxConnections: 100,
    idleMs,
    say: () => {},
  })
  t.after(() => service.close(AbortSignal.abort()))
  const { port } = service.addresses[0]!
  const client = async () => {
    const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true })
    t.after(() => void socket.destroy())
    await once(socket, 'connect')
    return socket.on('error', () => {})
  }
  return { port, counters: service.counters, client }
}

test('chargen reads on while it sends, and ends when its client does', options, async t => {
  const { client, counters } = await serveProtocol(t, 'chargen')
  const socket = await client()
  let received = 0
  socket.on('data', data => {
    received += data.length
  })
  socket.write(randomOctets(8 * MIB))
  await until('all is received', () => received > 8 * MIB && socket.writableLength === 0)
  assert.equal(counters.active, 1)
  socket.end()
  await once(socket, 'end')
  await until('no connection is open', () => counters.active === 0)
})

test('a chargen client that reads as fast as it can does not starve another', options, async t => {
  const { client, port } = await serveProtocol(t, 'chargen')
  // In this process both ends share the loop: only what leaves it its turns moves at all.
  const greedy = await client()
  let received = 0
  greedy.on('data', data => {
    received += data.length
  })
  await until('1 MiB is received', () => received > MIB)
  const other = await client()
  await once(other, 'data')
  const udp = await udpClient(t, '127.0.0.1')
  const before = received
  for (let i = 0; i < 20; i++) assert.equal((await udp.ask(Buffer.from('x'), port, '127.0.0.1')).length, 1)
  await until('more is received', () => received > before)
})

test('a chargen client that never reads is offered a bounded number of octets', options, async t => {
  const written: number[] = []
  const { client, counters } = await serveProtocol(t, 'chargen', 500)
  const listener = ({ socket }: { socket: Socket }) => {
    const { write } = socket
    socket.write = ((data: Buffer, ...rest: []) => {
      written.push(data.length)
      return write.call(socket, data, ...rest)
    }) as Socket['write']
  }
  subscribe('net.server.socket', listener as never)
  t.after(() => unsubscribe('net.server.socket', listener as never))
  const deaf = (await client()).pause()
  await until('the connection is served', () => counters.active === 1)
  await until('no connection is open', () => counters.active === 0)
  const offered = written.reduce((sum, octets) => sum + octets, 0)
  t.diagnostic(`${offered} octets in ${written.length} pieces`)
  // What the kernel takes, and one piece more.
  assert.ok(offered > 16 * KIB && offered < 16 * MIB)
  deaf.destroy()
})

test('daytime does not reset a client that still sends', options, async t => {
  const { client, counters } = await serveProtocol(t, 'daytime')
  const socket = await client()
  let reply = ''
  socket.on('data', data => {
    reply += data
  })
  socket.write(randomOctets(8 * MIB))
  await once(socket, 'end')
  assert.equal(reply.length, 26)
  await once(socket.end(randomOctets(8 * MIB)), 'close')
  assert.equal(socket.errored, null)
  await until('no connection is open', () => counters.active === 0)
})

const rssMib = (pid: number): number =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / KIB

test('a peer that never reads is offered 1 GB and costs no memory', {
  ...options,
  skip: process.platform === 'linux' ? false : 'needs /proc',
}, async t => {
  const replica = start(t, ['echo', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0'])
  const ready = await replica.line('echo replica ready')
  const port = portOf((ready.listen as string[])[0])
  const warmUp = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  warmUp.end(randomOctets(64 * MIB))
  assert.equal((await buffer(warmUp)).length, 64 * MIB)

  const before = rssMib(replica.pid)
  let most = before
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true }).pause()
  t.after(() => void socket.destroy())
  const chunk = randomOctets(MIB)
  let offered = 0
  while (offered < KIB) {
    offered++
    const stuck = AbortSignal.timeout(1500)
    if (!socket.write(chunk)) await once(socket, 'drain', { signal: stuck }).catch(() => {})
    most = Math.max(most, rssMib(replica.pid))
    if (stuck.aborted) break
  }
  t.diagnostic(`${offered} MiB offered, memory from ${before.toFixed()} to ${most.toFixed()} MiB`)
  assert.ok(offered < KIB, 'the server stops reading when its peer does')
  assert.ok(most - before < 48, `grew from ${before} to ${most} MiB`)

  // Other clients are served, and nothing is lost once the peer reads.
  assert.equal(
    (await run(['send', '--tcp', '--port', `${port}`, '127.0.0.1', 'hi'])).stdout,
    '[2 bytes] hi\n',
  )
  socket.end()
  let received = 0
  for await (const data of socket) {
    const at = received % MIB
    const expected = Buffer.concat([chunk.subarray(at), chunk]).subarray(0, data.length)
    assert.ok(expected.equals(data), `from octet ${received}`)
    received += data.length
  }
  assert.equal(received, offered * MIB)
})
