/**
 * What every server model promises, tested on every model and transport, and what each one promises alone.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import type { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import { SMALL_SERVICE_PORTS } from '../../src/protocols.ts'
import { type ModelName, modelNames, models } from '../../src/servers/models.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { has } from '../support/process.ts'
import { udpClient } from '../support/udp.ts'
import { until } from '../support/until.ts'
import {
  attempt,
  client,
  clients,
  ended,
  KIB,
  MIB,
  pieces,
  randomOctets,
  read,
  roundTrip,
} from './clients.ts'
import { serve } from './in-process.ts'
import { leavesNoTrace, nobodyServed } from './no-trace.ts'
import { arrivalAt, gatedEcho, knowOddProtocols } from './odd-protocols.ts'
import { childrenOf, holders, rssMib, runs, udpQueued } from './proc.ts'
import { type Replica, startReplica } from './replica.ts'

const root = process.getuid?.() === 0
const unavailable = await whyUnavailable()
const options = {
  timeout: 60_000,
  skip: unavailable ? `what is under test is read from /proc, and ${unavailable}` : false,
}
const of = (title: string, model: string) => `${model}: ${title}`

type TcpModel = Exclude<ModelName, 'iterative'>
const tcpModels = ['concurrent', 'prefork', 'event-loop'] as const satisfies TcpModel[]
const forkingModels = ['concurrent', 'prefork'] as const

const notOffered: Record<string, string> = {
  'iterative over TCP': 'not offered: the first connection would hold up all others for as long as it likes',
  'concurrent over UDP': 'not offered: a process costs far more than the answer to one datagram',
  'prefork over UDP': 'not offered: a datagram is answered before another process could be woken',
}

/**
 * TCP clients that the servers below serve at a time: a process costs some 70 ms, a connection next to
 * nothing.
 */
const capacity = { concurrent: 8, prefork: 8 } as const
const capacityOf = (model: ModelName): number =>
  (capacity as Partial<Record<ModelName, number>>)[model] ?? 1000
const flags: Partial<Record<ModelName, readonly string[]>> = {
  concurrent: ['--max-children', `${capacity.concurrent}`],
  prefork: ['--start', `${capacity.prefork}`, '--max-children', `${capacity.prefork}`, '--max-spare', '8'],
}

for (const model of modelNames)
  for (const transport of ['udp', 'tcp'] as const) {
    const title = `${model} over ${transport.toUpperCase()}`
    const offered = models[model].transports.includes(transport)
    test(title, {
      ...options,
      timeout: 420_000,
      skip: options.skip || (offered ? false : notOffered[title]),
    }, async t => {
      const replica = await startReplica(t, model, [`--${transport}`, ...(flags[model] ?? [])])
      if (transport === 'udp') await datagrams(t, replica)
      else await connections(t, replica, model as TcpModel)
    })
  }

async function datagrams(t: TestContext, replica: Replica): Promise<void> {
  const { port, pid } = replica

  await t.test('a datagram comes back whole, whatever its size', options, async t => {
    const socket = await udpClient(t)
    for (const size of [0, 1, 511, 512, 1232, 1472, 1473, 9000, 65_506, 65_507]) {
      const payload = randomOctets(size)
      const reply = await socket.ask(payload, port)
      assert.ok(payload.equals(reply), `${size} octets, ${reply.length} back`)
    }
  })

  await t.test('each of 200 clients gets its own datagrams, from one process', options, async t => {
    const sockets = await Promise.all(Array.from({ length: 200 }, () => udpClient(t)))
    for (const round of ['once', 'again'])
      await Promise.all(
        sockets.map(async (socket, i) =>
          assert.equal(String(await socket.ask(`${i} ${round}`, port)), `${i} ${round}`),
        ),
      )
    assert.deepEqual(
      sockets.map(({ got }) => got.length),
      sockets.map(() => 2),
    )
    assert.deepEqual(childrenOf(pid), [])
  })

  await t.test(
    'garbage, and clients that are gone before their answer, disturb no other',
    options,
    async t => {
      const socket = await udpClient(t)
      const before = (await replica.state()).counters
      for (let i = 0; i < 50; i++) {
        const garbage = randomOctets(1 + 29 * i, i)
        assert.ok(garbage.equals(await socket.ask(garbage, port)))
      }
      for (let i = 0; i < 50; i++) {
        const vanishing = createSocket('udp4')
        vanishing.bind(0, '127.0.0.1')
        await once(vanishing, 'listening')
        await new Promise(resolve => vanishing.send('x', port, '127.0.0.1', resolve))
        // Its answer meets a closed port: the kernel tells the server so, by ICMP.
        await once(vanishing.close(), 'close')
      }
      assert.equal(String(await socket.ask('alive', port)), 'alive')
      await until('every datagram is counted, once', async () => {
        const { datagrams, datagramsFailed } = (await replica.state()).counters
        return datagrams + datagramsFailed === before.datagrams + before.datagramsFailed + 101
      })
    },
  )

  await t.test('datagrams from ports that answer by themselves are dropped and counted', options, async t => {
    const before = (await replica.state()).counters
    // Another process may hold a port on every address: then it is not tried.
    const from = async (source: number) =>
      udpClient(t, '127.0.0.2', source).catch(error => void assert.equal(error.code, 'EADDRINUSE'))
    const candidates = [port, ...SMALL_SERVICE_PORTS.filter(source => source >= 1024 || (root && source > 0))]
    const blocked = (await Promise.all(candidates.map(from))).filter(socket => !!socket)
    t.diagnostic(`tried from ${blocked.length} ports`)
    for (const socket of blocked) socket.send('x', port, '127.0.0.1')
    const ordinary = await udpClient(t, '127.0.0.2')
    // A socket's queue is in order: when this is back, all the others were looked at.
    assert.equal(String(await ordinary.ask('hello', port)), 'hello')
    const { datagramsLoopDropped } = (await replica.state()).counters
    assert.equal(datagramsLoopDropped - before.datagramsLoopDropped, blocked.length)
    assert.deepEqual(
      blocked.flatMap(({ got }) => got),
      [],
    )
  })

  const skip = options.skip || (root && has('python3') ? false : 'needs root and python3 for a raw socket')
  await t.test(
    'a datagram that cannot be answered is counted and disturbs no other',
    { ...options, skip },
    async t => {
      const before = (await replica.state()).counters
      // From port 0; and from a broadcast address, to which the kernel refuses to send.
      await forge(port, ['127.0.0.9', 0], ['127.255.255.255', 5000])
      const socket = await udpClient(t)
      assert.equal(String(await socket.ask('alive', port)), 'alive')
      await until('both are counted', async () => {
        const { datagramsLoopDropped, datagramsFailed } = (await replica.state()).counters
        return (
          datagramsLoopDropped === before.datagramsLoopDropped + 1 &&
          datagramsFailed === before.datagramsFailed + 1
        )
      })
    },
  )

  await t.test('one bulk client does not starve 100 others', options, async t => {
    const IN_FLIGHT = 16
    const ROUNDS = 20
    const payload = randomOctets(4 * KIB)
    const bulk = await udpClient(t)
    let going = true
    let moved = 0
    bulk.on('message', () => {
      moved++
      if (going) bulk.send(payload, port, '127.0.0.1')
    })
    for (let i = 0; i < IN_FLIGHT; i++) bulk.send(payload, port, '127.0.0.1')
    await until('the bulk moves', () => moved > 100)
    const before = moved
    const pingers = await Promise.all(Array.from({ length: 100 }, () => udpClient(t)))
    await Promise.all(
      pingers.map(async (socket, i) => {
        for (let round = 0; round < ROUNDS; round++)
          assert.equal(String(await socket.ask(`${i} ${round}`, port)), `${i} ${round}`)
      }),
    )
    assert.ok(moved > before, 'nor do they starve it')
    t.diagnostic(`${100 * ROUNDS} datagrams of the others beside ${moved - before} of the bulk`)
    going = false
  })
}

const rawDatagrams = `
import socket, struct, sys
port = int(sys.argv[1])
for source, source_port in zip(sys.argv[2::2], sys.argv[3::2]):
  udp = struct.pack('!HHHH', int(source_port), port, 9, 0) + b'x'
  ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0,
    socket.inet_aton(source), socket.inet_aton('127.0.0.1'))
  socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).sendto(ip + udp, ('127.0.0.1', 0))
`
const forge = (port: number, ...sources: [address: string, port: number][]) =>
  promisify(execFile)('python3', ['-c', rawDatagrams, `${port}`, ...sources.flat().map(String)])

async function connections(t: TestContext, replica: Replica, model: TcpModel): Promise<void> {
  const { port, pid } = replica
  const nobody = () => nobodyServed(replica)
  const all = () => [pid, ...replica.children()]
  /** Each of them is held by one process: which, in their order. */
  const holdersOf = async (sockets: readonly Socket[]): Promise<number[]> => {
    let pids: (readonly number[])[] = []
    await until('each connection is held by one process', () => {
      const held = holders(port, all())
      pids = sockets.map(({ localPort }) => held.get(localPort as number) ?? [])
      return pids.every(({ length }) => length === 1)
    })
    return pids.flat()
  }

  await t.test(
    'octets come back in order, whatever their number and pieces, and the end after the last',
    options,
    async t => {
      for (const size of [0, 1, 1460, 64 * KIB + 1, 3 * MIB + 7]) {
        const payload = randomOctets(size)
        const socket = await client(t, port)
        const reply = buffer(socket)
        Readable.from(pieces(payload)).pipe(socket)
        assert.ok(payload.equals(await reply), `${size} octets`)
      }
      const socket = await client(t, port)
      await roundTrip(socket, 'before')
      await roundTrip(socket, 'the end')
      assert.equal(socket.readableEnded, false)
      // Much more than the buffers hold: when the FIN is sent, most of it is still to come back.
      const payload = randomOctets(16 * MIB)
      socket.end(payload)
      assert.ok(payload.equals(await buffer(socket)))
      await nobody()
    },
  )

  if (model === 'event-loop')
    await t.test('1,000 clients are served at the same time, by one process', options, async t => {
      const sockets = await clients(t, port, capacityOf(model))
      for (const round of ['first', 'second'])
        await Promise.all(sockets.map((socket, i) => roundTrip(socket, `${round} of ${i}`)))
      assert.equal((await replica.state()).counters.active, 1000)
      assert.deepEqual(new Set(await holdersOf(sockets)), new Set([pid]))
      assert.deepEqual(replica.children(), [])
    })

  if (model === 'concurrent')
    await t.test('every client has a process of its own, and the parent holds none', options, async t => {
      const [a, b] = await clients(t, port, 2)
      await Promise.all([roundTrip(a!, 'a'), roundTrip(b!, 'b')])
      const pids = await holdersOf([a!, b!])
      assert.equal(new Set([pid, ...pids]).size, 3)
      const { scoreboard, counters } = await replica.state()
      assert.deepEqual(
        scoreboard?.toSorted((one, other) => one.pid - other.pid),
        pids.toSorted((one, other) => one - other).map(pid => ({ pid, state: 'busy', served: 1 })),
      )
      assert.equal(counters.active, 2)
      await roundTrip(a!, 'still there')
      a!.end()
      await ended(a!)
      await until('its process has ended', () => !runs(pids[0]!))
      await roundTrip(b!, 'still there')
    })

  if (model === 'prefork')
    await t.test(
      'as many clients as processes are served, the next waits unrefused until one leaves',
      options,
      async t => {
        const sockets = await clients(t, port, capacityOf(model))
        await Promise.all(sockets.map((socket, i) => roundTrip(socket, `I am ${i}`)))
        const pids = await holdersOf(sockets)
        assert.equal(new Set([pid, ...pids]).size, 1 + capacityOf(model))
        const next = await client(t, port)
        next.write('and I?')
        await until('it waits', async () => (await replica.state()).counters.waiting === 1)
        for (const socket of sockets) await roundTrip(socket, 'still served')
        assert.equal(next.bytesRead, 0)
        assert.equal((await replica.state()).counters.active, capacityOf(model))
        sockets[5]!.end()
        assert.equal(await read(next, 6), 'and I?')
        assert.deepEqual(await holdersOf([next]), [pids[5]], 'by the one that became free')
        assert.equal((await replica.state()).counters.waiting, 0)
      },
    )

  await t.test('clients that reset in mid-stream disturb no other', options, async t => {
    await nobody()
    const steady = await client(t, port)
    const payload = randomOctets(8 * MIB)
    const reply = buffer(steady)
    Readable.from(pieces(payload)).pipe(steady)
    for (let i = 0; i < (model === 'concurrent' ? 6 : 12); i++) {
      const socket = await client(t, port)
      socket.write(randomOctets(256 * KIB))
      // In turns before, while and after the echo comes back.
      if (i % 3) await once(socket, 'data')
      if (i % 3 === 2) socket.pause()
      socket.resetAndDestroy()
    }
    assert.ok(payload.equals(await reply))
    await nobody()
    await roundTrip(await client(t, port), 'all is well')
    assert.equal((await replica.state()).failures ?? 0, 0)
  })

  await t.test(
    'a client that never reads costs little memory, loses nothing and disturbs no other',
    options,
    async t => {
      const MOST = 256
      const chunk = randomOctets(MIB)
      const deaf = await client(t, port)
      const warmUp = randomOctets(16 * MIB)
      deaf.write(warmUp)
      for (let got = 0; got < warmUp.length; ) got += (await once(deaf, 'data'))[0].length
      deaf.pause()
      const rss = () => all().reduce((sum, pid) => sum + rssMib(pid), 0)
      const before = rss()
      let most = before
      let offered = 0
      for (let stuck = false; !stuck && offered < MOST; ) {
        offered++
        if (!deaf.write(chunk)) {
          const patience = AbortSignal.timeout(700)
          await once(deaf, 'drain', { signal: patience }).catch(() => {})
          stuck = patience.aborted
        }
        most = Math.max(most, rss())
      }
      t.diagnostic(`${offered} MiB offered, memory from ${before.toFixed()} to ${most.toFixed()} MiB`)
      assert.ok(offered < MOST, 'the server stops reading when its client does')
      assert.ok(most - before < 48, `grew from ${before} to ${most} MiB`)
      await roundTrip(await client(t, port), 'nobody else is held up')
      deaf.end()
      let received = 0
      for await (const data of deaf) {
        const at = received % MIB
        const expected = Buffer.concat([chunk.subarray(at), chunk]).subarray(0, data.length)
        assert.ok(expected.equals(data), `from octet ${received}`)
        received += data.length
      }
      assert.equal(received, offered * MIB)
    },
  )

  // There is a process for each: a client that waits for one is not starved by the bulk client.
  const pinging = Math.min(100, capacityOf(model) - 1)
  await t.test(`one bulk client does not starve ${pinging} others`, options, async t => {
    await nobody()
    const ROUNDS = 30
    const bulk = await client(t, port)
    const chunk = randomOctets(256 * KIB)
    let going = true
    const pump = () => {
      while (going && bulk.write(chunk));
    }
    let moved = 0
    bulk.on('drain', pump).on('data', data => {
      moved += data.length
    })
    pump()
    await until('the bulk moves', () => moved > 8 * MIB)
    const before = moved
    const pingers = await clients(t, port, pinging)
    await Promise.all(
      pingers.map(async (socket, i) => {
        for (let round = 0; round < ROUNDS; round++) await roundTrip(socket, `${i} ${round}`)
      }),
    )
    assert.ok(moved > before, 'nor do they starve it')
    t.diagnostic(
      `${pinging * ROUNDS} round trips of the others beside ${((moved - before) / MIB).toFixed()} MiB`,
    )
    going = false
  })

  // The slow suite has 1,000 for each model.
  const many = model === 'concurrent' ? 24 : 200
  await t.test(`after ${many} connections there is no zombie and no descriptor more`, options, t =>
    leavesNoTrace(t, replica, many),
  )

  await t.test(
    'the kill of a process disturbs its own client only, and is logged',
    {
      ...options,
      skip:
        options.skip ||
        (model === 'event-loop' ? 'one process serves all: there is no other to go on' : false),
    },
    async t => {
      const [victim, steady] = await clients(t, port, 2)
      await Promise.all([roundTrip(victim!, 'victim'), roundTrip(steady!, 'steady')])
      const [killed] = await holdersOf([victim!])
      process.kill(killed!, 'SIGKILL')
      await ended(victim!)
      const line = await replica.line(line => line.child === killed)
      assert.equal(line.level, 'warn')
      assert.match(line.msg, /^child died/)
      assert.equal(line.reason, 'killed by SIGKILL')
      await roundTrip(steady!, 'nothing happened')
      await roundTrip(await client(t, port), 'nor here')
      const { failures, scoreboard } = await replica.state()
      assert.equal(failures, 1)
      assert.ok(scoreboard?.every(({ pid }) => pid !== killed))
      await until('the killed process is reaped', () => childrenOf(pid).every(child => child.pid !== killed))
    },
  )
}

const startAs: Partial<Record<ModelName, readonly string[]>> = {
  prefork: ['--start', '3', '--min-spare', '1', '--max-spare', '3'],
}

for (const model of tcpModels) {
  test(of('at the limit of descriptors clients wait, none is refused or lost', model), options, async t => {
    const LIMIT = 48
    const CLIENTS = 20
    const replica = await startReplica(
      t,
      model,
      model === 'prefork' ? ['--start', '40', '--max-spare', '40'] : [],
      {
        descriptors: LIMIT,
      },
    )
    const sockets = await clients(t, replica.port, CLIENTS)
    for (const [i, socket] of sockets.entries()) socket.write(`${10 + i}`)
    let losses = 0
    for (const socket of sockets) socket.once('close', () => losses++).once('end', () => losses++)
    const { cap } = (await replica.line('cap reached: further clients wait')) as unknown as { cap: number }
    t.diagnostic(`${cap} are served with ${LIMIT} descriptors`)
    assert.ok(cap > 4 && cap < CLIENTS)
    await until('the others wait', async () => {
      const { active, waiting } = (await replica.state()).counters
      return active === cap && waiting === CLIENTS - cap
    })
    const served = sockets.filter(({ bytesRead }) => bytesRead > 0)
    await until('as many as it can are answered', () => sockets.filter(s => s.bytesRead > 0).length === cap)
    assert.equal(losses, 0)
    assert.ok(served.length <= cap)
    // They leave one after the other, as soon as each has its answer.
    await Promise.all(
      sockets.map(async (socket, i) => {
        if (socket.bytesRead === 0) assert.equal(await read(socket, 2), `${10 + i}`)
        socket.end()
        await ended(socket)
      }),
    )
    await until('all have left', async () => (await replica.state()).counters.active === 0)
    await roundTrip(await client(t, replica.port), 'and the next is served')
    assert.equal(replica.lines.filter(({ msg }) => msg.includes('cap reached')).length, 1)
    assert.deepEqual(
      replica.lines.filter(({ level }) => level === 'error'),
      [],
    )
  })

  test(of('SIGTERM lets an open connection finish and refuses new ones', model), options, async t => {
    const replica = await startReplica(t, model, [
      ...(startAs[model] ?? []),
      '--drain',
      '0',
      '--grace',
      '50s',
    ])
    const socket = await client(t, replica.port)
    await roundTrip(socket, 'open')
    const children = replica.children()
    replica.kill('SIGTERM')
    await replica.line('closing')
    await until('new ones are refused', async () => (await attempt(t, replica.port)) === 'ECONNREFUSED')
    await roundTrip(socket, 'still served')
    const payload = randomOctets(4 * MIB)
    socket.end(payload)
    assert.ok(payload.equals(await buffer(socket)))
    assert.deepEqual(await replica.exited, { code: 0, signal: null })
    assert.deepEqual(children.filter(runs), [], 'no child is left')
  })

  test(of('at the end of the grace what is open is cut', model), options, async t => {
    const replica = await startReplica(t, model, [
      ...(startAs[model] ?? []),
      '--drain',
      '0',
      '--grace',
      '500ms',
    ])
    const sockets = await clients(t, replica.port, 2)
    for (const socket of sockets) await roundTrip(socket, 'open')
    const children = replica.children()
    replica.kill('SIGTERM')
    await replica.line('closing')
    await roundTrip(sockets[0]!, 'still served')
    await Promise.all(sockets.map(ended))
    assert.deepEqual(await replica.exited, { code: 0, signal: null })
    assert.deepEqual(children.filter(runs), [], 'no child is left')
    // A connection that we cut has not failed.
    assert.deepEqual(
      replica.lines.filter(({ level }) => level !== 'info'),
      [],
    )
  })

  test(of('a connection on which nothing moves is closed', model), options, async t => {
    const replica = await startReplica(t, model, [...(startAs[model] ?? []), '--idle-timeout', '400ms'])
    const silent = await client(t, replica.port)
    await roundTrip(silent, 'then nothing')
    const deaf = (await client(t, replica.port)).pause()
    const offer = () => {
      while (deaf.writable && deaf.write(randomOctets(64 * KIB)));
    }
    deaf.on('drain', offer)
    offer()
    await Promise.all([ended(silent), new Promise<void>(resolve => deaf.once('close', () => resolve()))])
    await until('nobody is served', async () => (await replica.state()).counters.active === 0)
    assert.equal((await replica.state()).failures ?? 0, 0)
  })
}

test('iterative: SIGTERM ends it, and its port is closed', options, async t => {
  const replica = await startReplica(t, 'iterative', ['--drain', '0', '--grace', '50s'])
  const socket = await udpClient(t)
  assert.equal(String(await socket.ask('served', replica.port)), 'served')
  replica.kill('SIGTERM')
  assert.deepEqual(await replica.exited, { code: 0, signal: null })
  const late = createSocket('udp4')
  t.after(() => void late.close())
  late.connect(replica.port, '127.0.0.1')
  await once(late, 'connect')
  late.send('anyone there?')
  assert.equal((await once(late, 'error'))[0].code, 'ECONNREFUSED')
})

for (const model of modelNames)
  test(of('a second signal ends it at once, and its children', model), options, async t => {
    const replica = await startReplica(t, model, [
      ...(startAs[model] ?? []),
      ...['--drain', '50s', '--grace', '50s'],
    ])
    if (model === 'iterative') assert.equal(String(await (await udpClient(t)).ask('x', replica.port)), 'x')
    else await roundTrip(await client(t, replica.port), 'open')
    const children = replica.children()
    replica.kill('SIGTERM')
    await replica.line('draining')
    replica.kill('SIGINT')
    assert.deepEqual(await replica.exited, { code: 130, signal: null })
    await until('no child is left', () => !children.some(runs), 5000)
  })

for (const model of forkingModels) {
  test(of('when its parent is killed, every process ends by itself', model), options, async t => {
    const replica = await startReplica(t, model, startAs[model])
    const socket = await client(t, replica.port)
    await roundTrip(socket, 'open')
    const children = replica.children()
    const [serving] = holders(replica.port, children).get(socket.localPort as number) ?? []
    assert.ok(serving)
    const idle = children.filter(pid => pid !== serving)
    assert.equal(idle.length, model === 'prefork' ? 2 : 0)
    replica.kill('SIGKILL')
    await replica.exited
    const since = performance.now()
    await until('the idle ones have ended', () => !idle.some(runs), 2000)
    const idleMs = performance.now() - since
    await until('the serving one has ended', () => !runs(serving), 5000)
    t.diagnostic(
      `idle ones after ${idleMs.toFixed()} ms, serving one after ${(performance.now() - since).toFixed()} ms`,
    )
    await ended(socket)
  })

  test(
    of('a process whose client never pauses ends too when its parent is killed', model),
    options,
    async t => {
      const replica = await startReplica(t, model, startAs[model])
      const socket = await client(t, replica.port)
      let over = false
      const pinging = (async () => {
        for (;;) await roundTrip(socket, 'ping').then(() => sleep(5))
      })().catch(() => {
        over = true
      })
      t.after(() => pinging)
      await until('it is served', () => socket.bytesRead > 0)
      const children = replica.children()
      replica.kill('SIGKILL')
      await replica.exited
      await until('every process has ended', () => !children.some(runs), 5000)
      await until('the client sees it', () => over)
    },
  )
}

/** A gate at which handlers wait. It is opened when the test ends, if not before. */
function gate(t: TestContext) {
  knowOddProtocols(t)
  const folder = mkdtempSync(join(tmpdir(), 'roundelay-gate-'))
  const path = join(folder, 'gate')
  const open = () => writeFileSync(path, '')
  t.after(async () => {
    open()
    // Handlers that wait have to see it first.
    await sleep(50)
    rmSync(folder, { recursive: true })
  })
  return {
    message: `wait ${path}`,
    open,
    arrived: () => until('a handler waits', () => existsSync(arrivalAt(path))),
  }
}

test('iterative: while one datagram is being answered the next waits in the kernel', options, async t => {
  const { message, open, arrived } = gate(t)
  const { port, counters } = await serve(t, await models.iterative.load(), gatedEcho)
  const [a, b] = [await udpClient(t), await udpClient(t)]
  const order: string[] = []
  a.on('message', () => order.push('a'))
  b.on('message', () => order.push('b'))
  const answered = [a.ask(message, port)]
  await arrived()
  answered.push(b.ask('me too', port))
  await until("b's datagram is in the queue", () => udpQueued(port) > 0)
  assert.deepEqual(order, [])
  assert.equal(counters.datagrams, 0)
  open()
  assert.deepEqual((await Promise.all(answered)).map(String), [message, 'me too'])
  await until('both are counted', () => counters.datagrams === 2)
  assert.equal(udpQueued(port), 0)
})

for (const model of forkingModels)
  test(of('while one process is blocked another serves', model), options, async t => {
    const { message, open, arrived } = gate(t)
    const { port } = await serve(t, await models[model].load(), gatedEcho)
    const [a, b] = await clients(t, port, 2)
    a!.write(message)
    await arrived()
    for (let i = 0; i < 10; i++) await roundTrip(b!, `served ${i}`)
    assert.equal(a!.bytesRead, 0)
    open()
    assert.equal(await read(a!, message.length), message)
  })

test('event-loop: while one handler blocks all clients wait, over TCP and UDP', options, async t => {
  const { message, open, arrived } = gate(t)
  const thread = new Worker(new URL('event-loop-thread.ts', import.meta.url))
  t.after(() => thread.terminate())
  const [{ port }] = await once(thread, 'message')
  const [a, b] = await clients(t, port, 2)
  await Promise.all([roundTrip(a!, 'a'), roundTrip(b!, 'b')])
  const before = b!.bytesRead
  a!.write(message)
  await arrived()
  const udp = await udpClient(t)
  const answered = udp.ask('me too', port)
  b!.write('and me')
  await until("the datagram is in the kernel's queue", () => udpQueued(port) > 0)
  assert.equal(b!.bytesRead, before)
  open()
  assert.equal(await read(a!, message.length), message)
  assert.equal(await read(b!, 6), 'and me')
  assert.equal(String(await answered), 'me too')
})
