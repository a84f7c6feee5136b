import assert from 'node:assert/strict'
import { createSocket, type RemoteInfo } from 'node:dgram'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { type TestContext, test } from 'node:test'
import { runLoad } from '../../src/client/load.ts'
import { Payloads } from '../../src/client/payload.ts'
import { isFailure, type LoadOptions, type LoadResult, totals } from '../../src/client/tally.ts'
import { eventLoop } from '../../src/servers/event-loop.ts'
import { echo } from '../support/echo.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

const options = { timeout: 60_000 }
const never = new AbortController().signal
/** The test ends the run when it has seen enough. */
const FOR_LONG = 60_000

const defaults: LoadOptions = {
  transport: 'udp',
  host: '127.0.0.1',
  port: 0,
  connections: 1,
  outstanding: 1,
  size: 32,
  rate: 0,
  durationMs: 200,
  timeoutMs: 10_000,
  resolve: 'each',
  newConnection: false,
  seed: 1,
}

async function echoServer(t: TestContext, address = '127.0.0.1') {
  const listen = [{ address, port: 0 }]
  const server = await eventLoop(echo, { listen, maxConnections: 9e9, idleMs: 9e4, say: () => {} })
  t.after(() => server.close(AbortSignal.abort()))
  return { port: server.addresses[0]!.port, counters: server.counters }
}

/** `answer` receives each datagram, its number from 1 on, and a function that replies. */
async function udpServer(
  t: TestContext,
  answer: (message: Buffer, nth: number, reply: (octets: Buffer) => void) => void,
): Promise<number> {
  const socket = createSocket('udp4').bind(0, '127.0.0.1')
  let count = 0
  socket.on('message', (message: Buffer, { port, address }: RemoteInfo) =>
    answer(message, ++count, octets => socket.send(octets, port, address)),
  )
  await once(socket, 'listening')
  t.after(() => void socket.close())
  return socket.address().port
}

/** `serve` receives each connection and its number from 1 on. */
async function tcpServer(t: TestContext, serve: (socket: Socket, nth: number) => void): Promise<number> {
  const sockets: Socket[] = []
  const server = createServer({ noDelay: true }, socket =>
    serve(
      socket.on('error', () => {}),
      sockets.push(socket),
    ),
  ).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return (server.address() as AddressInfo).port
}

/** Moves the time on in steps of half a millisecond; in between, sockets are read. */
async function runByVirtualTime(load: LoadOptions, clock: VirtualClock): Promise<LoadResult> {
  let over = false
  const run = runLoad(load, never, undefined, clock).finally(() => {
    over = true
  })
  while (!over) await clock.advance(0.5)
  return run
}

const flipped = (octets: Buffer, at: number): Buffer => {
  const copy = Buffer.from(octets)
  copy[at]! ^= 1
  return copy
}

const clean = ({ lost, wrong, late, failed }: ReturnType<typeof totals>) => [lost, wrong, late, failed]

for (const transport of ['udp', 'tcp'] as const) {
  test(`a closed loop over ${transport} gets every payload back, whatever its size`, options, async t => {
    for (const host of ['127.0.0.1', '::1']) {
      const { port, counters } = await echoServer(t, host)
      for (const size of [transport === 'tcp' ? 1 : 0, 3, 4, 5, 1500, 65_507]) {
        const before = counters.datagrams
        const load = { ...defaults, transport, host, port, size, connections: 3, outstanding: 2 }
        const result = await runLoad({ ...load, durationMs: 50 }, never)
        const sum = totals(result)
        assert.ok(sum.done > 0, `${size} octets`)
        assert.deepEqual(clean(sum), [0, 0, 0, 0], `${size} octets`)
        assert.equal(result.latency.count, sum.done)
        assert.equal(result.replicas[0]!.connections, 3)
        if (transport === 'udp') assert.equal(counters.datagrams - before, sum.done)
      }
    }
  })

  test(`an open loop over ${transport} sends exactly what is due`, options, async t => {
    const { port } = await echoServer(t)
    const load = { ...defaults, transport, port, connections: 7, outstanding: 50, rate: 500, durationMs: 400 }
    const result = await runLoad(load, never)
    const sum = totals(result)
    assert.deepEqual([sum.done, result.unsent, ...clean(sum)], [200, 0, 0, 0, 0, 0])
  })

  test(`--new-connection over ${transport} opens one for each operation`, options, async t => {
    const { port, counters } = await echoServer(t)
    for (const rate of [0, 200]) {
      const load = { ...defaults, transport, port, connections: 3, newConnection: true, rate }
      const result = await runLoad(load, never)
      const { done, ...rest } = totals(result)
      const { connections } = result.replicas[0]!
      assert.ok(done > 10)
      // At the end some connections may be open that have sent nothing yet.
      assert.ok(connections >= done && connections <= done + 3, `${connections} for ${done}`)
      assert.deepEqual(rest, { lost: 0, wrong: 0, late: 0, failed: 0 })
    }
    assert.ok(counters.connections + counters.datagrams > 20)
  })

  test(
    `without a server over ${transport}, connections fail again and again, and nothing is done`,
    options,
    async t => {
      const stop = new AbortController()
      const { port } = await (transport === 'udp'
        ? tcpServer(t, () => {}).then(port => ({ port }))
        : udpServer(t, () => {}).then(port => ({ port })))
      const enough = ({ replicas }: Pick<LoadResult, 'replicas'>) => replicas[0]!.failed > 3 && stop.abort()
      const load = { ...defaults, transport, port, connections: 2, durationMs: FOR_LONG }
      const result = await runLoad(load, stop.signal, enough)
      const sum = totals(result)
      assert.equal(sum.done, 0)
      assert.ok(sum.failed > 3)
      assert.ok(isFailure(result))
    },
  )
}

test(
  'a datagram with a wrong octet, one that is too short and one without a request are wrong',
  options,
  async t => {
    const stop = new AbortController()
    const port = await udpServer(t, (message, nth, reply) => {
      if (nth === 2) reply(flipped(message, 31))
      else if (nth === 4) reply(message.subarray(0, 31))
      else reply(message)
      if (nth === 6) reply(message)
      if (nth === 8) stop.abort()
    })
    const result = await runLoad({ ...defaults, port, durationMs: FOR_LONG }, stop.signal)
    assert.deepEqual(totals(result), { done: 5, lost: 0, wrong: 3, late: 0, failed: 0 })
    assert.ok(isFailure(result))
  },
)

test('each request that a server drops is one lost operation, and the run goes on', options, async t => {
  for (const size of [32, 2]) {
    let dropped = 0
    const port = await udpServer(t, (message, nth, reply) => {
      if (nth % 10 === 0) dropped++
      else reply(message)
    })
    const load = { ...defaults, port, size, connections: 10, rate: 1000, timeoutMs: 50, durationMs: 800 }
    const result = await runByVirtualTime(load, new VirtualClock())
    const { done, lost, wrong } = totals(result)
    assert.deepEqual([lost, wrong], [dropped, 0])
    assert.ok(lost > 0 && done >= 9 * lost && isFailure(result), `${done} done, ${lost} lost`)
  }
})

test('a reply that comes after the time-out is late, no longer lost', options, async t => {
  const outcome = async (size: number) => {
    const stop = new AbortController()
    let answerFirst = () => {}
    const clock = new VirtualClock()
    const port = await udpServer(t, (message, nth, reply) => {
      if (nth === 1) {
        answerFirst = () => reply(message)
        void clock.advance(400)
      }
      if (nth === 2) answerFirst()
      if (nth >= 2) reply(message)
      if (nth === 4) stop.abort()
    })
    const load = { ...defaults, port, size, timeoutMs: 300, durationMs: FOR_LONG }
    const result = await runLoad(load, stop.signal, undefined, clock)
    return { ...totals(result), connections: result.replicas[0]!.connections }
  }
  const ends = { wrong: 0, failed: 0, done: 2 }
  assert.deepEqual(await outcome(4), { ...ends, lost: 0, late: 1, connections: 1 })
  // Without a number it could be taken for the next reply: the next request is sent from another socket.
  assert.deepEqual(await outcome(3), { ...ends, lost: 1, late: 0, connections: 2 })
})

test('when a UDP server falls silent, the socket is replaced', options, async t => {
  const stop = new AbortController()
  const clock = new VirtualClock()
  const port = await udpServer(t, (_message, nth) => {
    if (nth > 4) stop.abort()
    else void clock.advance(1200)
  })
  const load = { ...defaults, port, timeoutMs: 1000, durationMs: FOR_LONG }
  const result = await runLoad(load, stop.signal, undefined, clock)
  const { connections, failed, lost } = result.replicas[0]!
  assert.deepEqual({ connections, failed, lost }, { connections: 2, failed: 1, lost: 4 })
})

test('replies over TCP are compared wherever the stream is cut', options, async t => {
  const port = await tcpServer(t, async socket => {
    let rest = Buffer.alloc(0)
    let length = 0
    socket.on('data', (data: Buffer) => {
      rest = Buffer.concat([rest, data])
    })
    while (!socket.destroyed) {
      length = (length % 71) + 1
      const piece = rest.subarray(0, length)
      rest = rest.subarray(piece.length)
      if (piece.length > 0) socket.write(piece)
      await new Promise(setImmediate)
    }
  })
  for (const size of [1, 7, 33]) {
    const load = { ...defaults, transport: 'tcp', port, size, connections: 2, outstanding: 8 } as const
    const sum = totals(await runLoad(load, never))
    assert.ok(sum.done > 16)
    assert.deepEqual(clean(sum), [0, 0, 0, 0])
  }
})

test('a TCP stream with a wrong reply is closed, and another one opened', options, async t => {
  const stop = new AbortController()
  const clock = new VirtualClock()
  const port = await tcpServer(t, (socket, nth) => {
    // The pause before the next connection.
    socket.on('close', () => void clock.advance(1100))
    socket.on('data', (data: Buffer) => {
      if (nth === 1) socket.write(flipped(data, 3))
      else if (nth === 2) socket.write(Buffer.concat([data, data]))
      // The third gets no reply within the time-out.
      else if (nth === 3) void clock.advance(700)
      else stop.abort()
    })
  })
  const load = { ...defaults, transport: 'tcp', port, timeoutMs: 500, durationMs: FOR_LONG } as const
  const result = await runLoad(load, stop.signal, undefined, clock)
  assert.deepEqual(totals(result), { done: 1, lost: 1, wrong: 2, late: 0, failed: 3 })
  assert.equal(result.replicas[0]!.connections, 4)
})

test('a TCP server that resets does not stop the run', options, async t => {
  const stop = new AbortController()
  const port = await tcpServer(t, (socket, nth) => {
    let messages = 0
    socket.on('data', data => {
      if (++messages === 6) socket.resetAndDestroy()
      else socket.write(data)
    })
    if (nth === 9) stop.abort()
  })
  const load = { ...defaults, transport: 'tcp', port, durationMs: FOR_LONG } as const
  const sum = totals(await runLoad(load, stop.signal))
  assert.deepEqual(sum, { done: 40, lost: 8, wrong: 0, late: 0, failed: 8 })
})

test(
  'a server that stalls once shows in an open loop in all operations that were due meanwhile',
  options,
  async t => {
    const held: (() => void)[] = []
    let holding = false
    const clock = new VirtualClock()
    const port = await udpServer(t, (message, nth, reply) => {
      if (nth === 50) {
        holding = true
        clock.after(300, () => {
          holding = false
          for (const answer of held) answer()
        })
      }
      if (holding) held.push(() => reply(message))
      else reply(message)
    })
    const load = { ...defaults, port, connections: 4, rate: 500, durationMs: 1000 }
    const result = await runByVirtualTime(load, clock)
    const { done, lost } = totals(result)
    assert.deepEqual([done + result.unsent, lost], [500, 0])
    assert.equal(held.length, 4)
    // About a hundred were due in the first 200 ms of the stall. Counted from sending, only the four that
    // were held back are slow.
    const percentOfHundredMs = 85
    assert.ok(result.latency.percentile(percentOfHundredMs) > 100e6)
    assert.ok(result.latency.max > 295e6)
    assert.ok(result.behind > 100)
  },
)

test(
  'an open loop that asks too much keeps its pace, and reports what could not be sent',
  options,
  async t => {
    const port = await udpServer(t, () => {})
    const load = { ...defaults, port, connections: 2, outstanding: 3, rate: 1000, timeoutMs: 100 }
    const result = await runByVirtualTime(load, new VirtualClock())
    const { done, lost, failed } = totals(result)
    assert.deepEqual([done, lost + result.unsent], [0, 200])
    assert.ok(lost >= 6 && failed <= 2)
  },
)

test('the same seed sends the same octets, and another seed sends others', options, async t => {
  const sent = async (seed: number, transport: 'udp' | 'tcp') => {
    const stop = new AbortController()
    const seen: string[] = []
    const record = (message: Buffer) => {
      if (seen.push(message.toString('hex')) === 20) stop.abort()
    }
    const port =
      transport === 'udp'
        ? await udpServer(t, (message, _nth, reply) => {
            record(message)
            reply(message)
          })
        : await tcpServer(t, socket =>
            socket.on('data', (data: Buffer) => {
              record(data)
              socket.write(data)
            }),
          )
    await runLoad({ ...defaults, transport, port, seed, durationMs: FOR_LONG }, stop.signal)
    return seen
  }
  const first = await sent(1, 'udp')
  assert.equal(new Set(first.map(hex => hex.slice(8))).size, 20)
  assert.deepEqual(await sent(1, 'udp'), first)
  assert.deepEqual(await sent(1, 'tcp'), first)
  assert.notDeepEqual(await sent(2, 'udp'), first)
})

test(
  'an aborted run ends at once, and counts what is in flight neither as done nor as lost',
  options,
  async t => {
    const stop = new AbortController()
    const port = await udpServer(t, (_message, nth) => nth === 6 && stop.abort())
    const load = { ...defaults, port, connections: 2, outstanding: 3, durationMs: FOR_LONG }
    assert.deepEqual(totals(await runLoad(load, stop.signal)), {
      done: 0,
      lost: 0,
      wrong: 0,
      late: 0,
      failed: 0,
    })
    const before = await runLoad(load, AbortSignal.abort())
    assert.deepEqual([before.replicas, before.elapsedMs], [[], 0])
  },
)

test('a first look-up that fails is the error of the run', options, async () => {
  const load = { ...defaults, host: 'x'.repeat(64), port: 7 }
  await assert.rejects(runLoad(load, never), { syscall: 'getaddrinfo' })
})

test('a payload matches itself in any piece, and nothing else', () => {
  for (const size of [0, 1, 3, 4, 5, 100]) {
    const payloads = new Payloads(size, 0)
    for (const n of [0, 1, 2 ** 31, 2 ** 32 - 1]) {
      const payload = payloads.make(n)
      if (size >= 4) assert.equal(payloads.numberOf(payload), n)
      for (let at = 0; at <= size; at++)
        for (let end = at; end <= size; end++) {
          assert.ok(payloads.matches(n, at, payload, at, end))
          if (end > at) assert.ok(!payloads.matches(n, at, flipped(payload, end - 1), at, end))
        }
      assert.ok(!payloads.matches(n, 0, Buffer.concat([payload, payload, Buffer.alloc(1)])))
    }
  }
})
