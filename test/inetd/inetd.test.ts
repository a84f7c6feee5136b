import assert from 'node:assert/strict'
import { once } from 'node:events'
import { chmodSync, existsSync, lstatSync, readFileSync, writeFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { parseInetdConf } from '../../src/inetd/conf.ts'
import { type InetdOptions, startInetd } from '../../src/inetd/inetd.ts'
import type { Configured } from '../../src/inetd/service.ts'
import type { Account } from '../../src/inetd/users.ts'
import { protocol, SMALL_SERVICE_PORTS } from '../../src/protocols.ts'
import { close } from '../../src/sys/libc.ts'
import { listenUnix } from '../../src/sys/sockets.ts'
import { freePorts } from '../support/ports.ts'
import { udpClient } from '../support/udp.ts'
import { until } from '../support/until.ts'
import { VirtualClock } from '../support/virtual-clock.ts'
import {
  childrenOf,
  client,
  descriptorsOf,
  folder,
  inodeOf,
  manyPorts,
  member,
  noMember,
  program,
  refusal,
  root,
  stateOf,
  talk,
  test,
  told,
} from './client.ts'

const MINUTE = 60_000
const TEN_MINUTES = 10 * MINUTE

interface Said {
  readonly level: string
  readonly message: string
  readonly details: object
}

// daytime writes the local time.
process.env.TZ = 'UTC'

/**
 * Starts inetd in this process; it is closed when the test ends. Every entry runs as `account`, by default as
 * the user of the test.
 */
async function serve(t: TestContext, conf: string, wanted: Partial<InetdOptions> = {}, account?: Account) {
  const said: Said[] = []
  const clock = new VirtualClock()
  const inetd = await startInetd({
    protocol: name => protocol(name, { wallSeconds: () => 1_795_445_580 }),
    maxChildren: 1024,
    maxPerIp: Infinity,
    ratePerIp: Infinity,
    maxConnections: 100,
    idleMs: MINUTE,
    clock,
    say: (level, message, details) => said.push({ level, message, details }),
    ...wanted,
  })
  let closing: Promise<void> | undefined
  const end = (deadline: AbortSignal) => {
    closing ??= inetd.close(deadline)
    return closing
  }
  t.after(() => end(AbortSignal.abort()))
  const apply = (text: string) => {
    const { entries, problems } = parseInetdConf(text, 'inetd.conf', () => undefined)
    assert.deepEqual(problems, [])
    return inetd.apply(
      entries.map((entry): Configured => ({ entry, at: `inetd.conf:${entry.line}`, account: () => account })),
    )
  }
  await apply(conf)
  return {
    inetd,
    clock,
    said,
    /** Errors and warnings, as text. */
    complaints: () => said.filter(({ level }) => level !== 'info').map(({ message }) => message),
    apply,
    close: end,
    row(service: string) {
      const found = inetd.rows().find(row => row.service === service)
      assert.ok(found, service)
      return found
    },
  }
}

const cat = (port: number, host = '127.0.0.1', wait = 'nowait') =>
  `${host.includes(':') ? `[${host}]` : host}:${port} stream tcp ${wait} root /bin/cat cat\n`
const perl = (port: number, type: 'stream' | 'dgram', wait: string, path: string, args = '') =>
  `127.0.0.1:${port} ${type} ${type === 'stream' ? 'tcp' : 'udp'} ${wait} root ${path} ${path} ${args}\n`

/** The process that answered, and its answer. */
const answer = (text: string) => {
  const [, pid, rest] = /^(\d+) (.*)$/s.exec(text) ?? []
  return { pid: Number(pid), rest }
}

for (const host of ['127.0.0.1', '::1'])
  test(`stream nowait over ${host}: each connection gets a program of its own`, async t => {
    const [port] = await freePorts(1)
    const { row } = await serve(t, cat(port!, host))
    const a = await client(t, port!, { host })
    const b = await client(t, port!, { host })
    b.write('b')
    a.write('a')
    await Promise.all([once(a, 'data'), once(b, 'data')])
    assert.equal(childrenOf(process.pid).length, 2)
    assert.deepEqual([row(`${port}/tcp`).started, row(`${port}/tcp`).running], [2, 2])
    a.end()
    b.end('c')
    assert.equal(await a.all, 'a')
    assert.equal(await b.all, 'bc')
    await until('no program runs', () => row(`${port}/tcp`).running === 0)
    assert.deepEqual(childrenOf(process.pid), [], 'there are no zombies')
  })

test('a large stream passes through a program complete', async t => {
  const [port] = await freePorts(1)
  await serve(t, cat(port!))
  const text = Array.from({ length: 200_000 }, (_, i) => `line ${i}\n`).join('')
  assert.ok((await talk(t, port!, text)) === text)
})

test('data that a client sends before the program runs is not lost', async t => {
  const [port] = await freePorts(1)
  await serve(t, cat(port!))
  const answers = await Promise.all(Array.from({ length: 20 }, (_, i) => talk(t, port!, `I am ${i}`)))
  assert.deepEqual(
    answers,
    answers.map((_, i) => `I am ${i}`),
  )
})

const EXPECTED = {
  fds: '0 1 2',
  same: '1',
  blocking: '1',
  timeouts: '0.0 0.0',
  ignored: '0',
  cwd: process.cwd(),
}
const withoutEnv = ({ fds, same, blocking, timeouts, ignored, cwd }: ReturnType<typeof told>) => ({
  fds,
  same,
  blocking,
  timeouts,
  ignored,
  cwd,
})
/** The variables of the connection. */
const connectionIn = ({ env }: ReturnType<typeof told>) =>
  Object.fromEntries(Object.entries(env).filter(([name]) => /^(PROTO|(TCP|UDP)(LOCAL|REMOTE))/.test(name)))

for (const host of ['127.0.0.1', '::1'])
  test(`a program for a connection over ${host} gets descriptors 0, 1 and 2, its arguments, and the addresses`, async t => {
    const [port] = await freePorts(1)
    const path = program(t, 'tell')
    process.env.ROUNDELAY_SECRET = 'ours'
    t.after(() => delete process.env.ROUNDELAY_SECRET)
    await serve(
      t,
      `[${host}]:${port} stream tcp nowait root ${path} odd-name "a b"`.replace('[127.0.0.1]', '127.0.0.1'),
    )
    const socket = await client(t, port!, { host })
    const { localPort } = socket
    const said = told(await socket.all)
    assert.deepEqual(withoutEnv(said), EXPECTED)
    assert.deepEqual(connectionIn(said), {
      PROTO: 'TCP',
      TCPLOCALIP: host,
      TCPLOCALPORT: `${port}`,
      TCPREMOTEIP: host,
      TCPREMOTEPORT: `${localPort}`,
    })
    assert.equal(said.env.PATH, process.env.PATH)
    assert.equal(said.env.ROUNDELAY_SECRET, undefined)
    assert.match(String(said.cmdline), / a b$/)
  })

test('argv[0] is the one of the configuration', async t => {
  const [port] = await freePorts(1)
  await serve(t, `127.0.0.1:${port} stream tcp nowait root /bin/sh odd-name -c "echo \\$0 $0"`)
  assert.equal(await talk(t, port!, ''), '$0 odd-name\n')
})

test('a program that gets the socket has it as descriptors 0, 1 and 2, and knows its address', async t => {
  const [tcp, datagrams] = await freePorts(2)
  const path = program(t, 'tell')
  await serve(
    t,
    perl(tcp!, 'stream', 'wait', path, 'accept') + perl(datagrams!, 'dgram', 'wait', path, 'recvfrom'),
  )
  const stream = told(await talk(t, tcp!, ''))
  assert.deepEqual(withoutEnv(stream), EXPECTED)
  assert.deepEqual(connectionIn(stream), {
    PROTO: 'TCP',
    TCPLOCALIP: '127.0.0.1',
    TCPLOCALPORT: `${tcp}`,
  })
  const datagram = told(String(await (await udpClient(t)).ask('x', datagrams!)))
  assert.deepEqual(withoutEnv(datagram), EXPECTED)
  assert.deepEqual(connectionIn(datagram), {
    PROTO: 'UDP',
    UDPLOCALIP: '127.0.0.1',
    UDPLOCALPORT: `${datagrams}`,
  })
})

test(
  'a program runs as its user and group, without the groups of inetd',
  async t => {
    const [port] = await freePorts(1)
    const account = { name: 'daemon', uid: 1, gid: 2, supplementary: false }
    await serve(t, perl(port!, 'stream', 'nowait', program(t, 'tell')), {}, account)
    const said = told(await talk(t, port!, ''))
    assert.equal(said.ids, '1 1 1 1 2 2 2 2')
    assert.equal(said.groups, '')
    assert.deepEqual(withoutEnv(said), EXPECTED)
  },
  root ? false : 'only root can start programs as somebody else',
)

test(
  'a program of a user with supplementary groups gets them in all three modes, and is otherwise the same',
  async t => {
    const who = member(t)
    if (!who) return t.skip(noMember)
    const [a, b, c] = await freePorts(3)
    const path = program(t, 'tell')
    const conf = [
      perl(a!, 'stream', 'nowait', path),
      perl(b!, 'stream', 'wait', path, 'accept'),
      perl(c!, 'dgram', 'wait', path, 'recvfrom'),
    ]
    const { row } = await serve(t, conf.join(''), {}, { ...who, supplementary: true })
    const all = [
      await talk(t, a!, ''),
      await talk(t, b!, ''),
      String(await (await udpClient(t)).ask('x', c!)),
    ].map(told)
    const four = (id: number) => Array(4).fill(id).join(' ')
    for (const said of all) {
      assert.equal(said.ids, `${four(who.uid)} ${four(who.gid)}`)
      assert.equal(said.groups, who.groups)
      assert.deepEqual(withoutEnv(said), EXPECTED)
      assert.equal(said.env.ROUNDELAY_EXEC_ORDERS, undefined)
      assert.equal(said.env.NODE_COMPILE_CACHE, process.env.NODE_COMPILE_CACHE)
    }
    assert.match(JSON.stringify(connectionIn(all[0]!)), /"TCPREMOTEPORT":"\d+"/)
    await until('no program runs', () => row(`${c}/udp`).running === 0)
  },
  root ? false : 'only root can start programs as somebody else',
)

test('stream wait: the program gets the listening socket and accepts by itself, and another program follows it', async t => {
  const [port] = await freePorts(1)
  const { row } = await serve(t, perl(port!, 'stream', 'wait', program(t, 'accept'), '2'))
  assert.equal(row(`${port}/tcp`).state, 'listening')
  const first = answer(await talk(t, port!, 'x'))
  const second = answer(await talk(t, port!, 'y'))
  const third = answer(await talk(t, port!, 'z'))
  assert.deepEqual([first.rest, second.rest, third.rest], ['x', 'y', 'z'])
  assert.equal(second.pid, first.pid)
  assert.notEqual(third.pid, first.pid)
  assert.equal(row(`${port}/tcp`).state, 'waiting')
  assert.equal(answer(await talk(t, port!, '')).pid, third.pid)
  await until('no program runs', () => row(`${port}/tcp`).running === 0)
  assert.equal(row(`${port}/tcp`).state, 'listening')
  assert.equal(row(`${port}/tcp`).started, 2)
})

test('stream wait: while the program runs no other is started, and it serves the clients that arrive', async t => {
  const [port] = await freePorts(1)
  const { row } = await serve(t, perl(port!, 'stream', 'wait', program(t, 'accept'), '3'))
  const slow = await client(t, port!)
  await until('one program runs', () => row(`${port}/tcp`).running === 1)
  assert.equal(row(`${port}/tcp`).state, 'waiting')
  const others = await Promise.all([client(t, port!), client(t, port!)])
  for (const other of others) other.end('other')
  slow.end('slow')
  const answers = [answer(await slow.all), answer(await others[0].all), answer(await others[1].all)]
  assert.deepEqual(
    answers.map(({ rest }) => rest),
    ['slow', 'other', 'other'],
  )
  assert.equal(new Set(answers.map(({ pid }) => pid)).size, 1)
  await until('no program runs', () => row(`${port}/tcp`).running === 0)
  assert.equal(row(`${port}/tcp`).started, 1)
})

test('dgram wait: the program finds the first datagram and those after it; then inetd watches again', async t => {
  const [port] = await freePorts(1)
  const { row } = await serve(t, perl(port!, 'dgram', 'wait', program(t, 'recvfrom'), '2'))
  const peer = await udpClient(t)
  const first = answer(String(await peer.ask('first', port!)))
  assert.equal(first.rest, 'first')
  assert.equal(row(`${port}/udp`).state, 'waiting')
  const second = answer(String(await peer.ask('second', port!)))
  assert.deepEqual(second, { pid: first.pid, rest: 'second' })
  const third = answer(String(await peer.ask('third', port!)))
  assert.equal(third.rest, 'third')
  assert.notEqual(third.pid, first.pid)
  assert.equal(row(`${port}/udp`).started, 2)
})

test('dgram wait: a burst of datagrams is served completely, by one program after the other', async t => {
  const [port] = await freePorts(1)
  const { row } = await serve(t, perl(port!, 'dgram', 'wait', program(t, 'recvfrom'), '1'))
  const peer = await udpClient(t)
  for (let i = 0; i < 10; i++) peer.send(`${i}`, port!)
  await until('ten replies have come', () => peer.got.length === 10)
  assert.deepEqual(
    peer.got.map(got => answer(String(got)).rest),
    Array.from({ length: 10 }, (_, i) => `${i}`),
  )
  await until('no program runs', () => row(`${port}/udp`).running === 0)
  assert.equal(row(`${port}/udp`).started, 10)
})

test('a service that starts too many programs in a minute is off for ten minutes, and then returns', async t => {
  const [port, other] = await freePorts(2)
  const { clock, said, row } = await serve(t, cat(port!, '127.0.0.1', 'nowait.3') + cat(other!))
  for (let i = 0; i < 3; i++) assert.equal(await talk(t, port!, 'x'), 'x')
  const refused = await client(t, port!)
  assert.equal(await refused.all, '', 'closed, not left hanging')
  assert.deepEqual(said, [
    {
      level: 'error',
      message: `${port}/tcp server failing (looping), service terminated`,
      details: { maxPerMinute: 3, offSeconds: 600 },
    },
  ])
  assert.equal(row(`${port}/tcp`).state, 'off')
  assert.equal(row(`${port}/tcp`).refused, 1)
  assert.equal(await refusal(port!), 'ECONNREFUSED')
  assert.equal(await talk(t, other!, 'unaffected'), 'unaffected')
  await clock.advance(TEN_MINUTES - 1)
  assert.equal(await refusal(port!), 'ECONNREFUSED')
  await clock.advance(1)
  await until('the service listens', () => row(`${port}/tcp`).state === 'listening')
  for (let i = 0; i < 3; i++) assert.equal(await talk(t, port!, 'again'), 'again')
})

test('starts that are a minute old do not count', async t => {
  const [port] = await freePorts(1)
  const { clock, said } = await serve(t, cat(port!, '127.0.0.1', 'nowait.2'))
  for (let i = 0; i < 6; i++) {
    assert.equal(await talk(t, port!, 'x'), 'x')
    await clock.advance(MINUTE / 2)
  }
  assert.deepEqual(said, [])
})

test('a datagram that no program reads switches the service off, and inetd survives', async t => {
  const [port, other] = await freePorts(2)
  const conf = `127.0.0.1:${port} dgram udp wait.20 root /bin/true true\n${cat(other!)}`
  const { clock, complaints, row } = await serve(t, conf)
  const peer = await udpClient(t)
  peer.send('never read', port!)
  await until('the service is off', () => row(`${port}/udp`).state === 'off')
  await until('no program runs', () => row(`${port}/udp`).running === 0)
  assert.deepEqual(complaints(), [`${port}/udp server failing (looping), service terminated`])
  assert.equal(row(`${port}/udp`).started, 20)
  assert.equal(inodeOf(port!, 'udp'), undefined)
  assert.equal(await talk(t, other!, 'x'), 'x')
  await clock.advance(TEN_MINUTES)
  await until('the service listens', () => row(`${port}/udp`).state === 'listening')
  peer.send('again', port!)
  await until('20 programs were started', () => row(`${port}/udp`).started > 20)
})

test('if a program cannot be run the connection is closed, the error is logged, and inetd survives', async t => {
  const dir = folder(t)
  const plain = join(dir, 'not-executable')
  writeFileSync(plain, '#!/bin/sh\n')
  const noInterpreter = join(dir, 'no-interpreter')
  writeFileSync(noInterpreter, '#!/nonexistent\n', { mode: 0o755 })
  const noFolder = join(plain, 'x')
  const paths = ['/nonexistent', plain, noInterpreter, noFolder, dir]
  const all = await freePorts(paths.length + 1)
  const good = all[paths.length]
  const conf = paths.map((path, i) => `127.0.0.1:${all[i]} stream tcp nowait root ${path} x\n`).join('')
  const { complaints, said, row } = await serve(t, conf + cat(good!))
  for (const [i, path] of paths.entries()) {
    assert.equal(await (await client(t, all[i]!)).all, '', path)
    assert.equal(row(`${all[i]}/tcp`).refused, 1, path)
    assert.equal(row(`${all[i]}/tcp`).running, 0, path)
  }
  // Once for each service, however often clients come.
  assert.equal(await (await client(t, all[0]!)).all, '')
  const reasons = ['ENOENT', 'EACCES', 'ENOENT', 'ENOTDIR', 'EACCES']
  assert.deepEqual(
    complaints(),
    paths.map((_, i) => `${all[i]}/tcp: cannot start a program`),
  )
  assert.deepEqual(
    said.map(({ details }) => {
      const { at, program, err } = details as { at: string; program: string; err: NodeJS.ErrnoException }
      return [at, program, err.code]
    }),
    paths.map((path, i) => [`inetd.conf:${i + 1}`, path, reasons[i]]),
  )
  assert.equal(await talk(t, good!, 'x'), 'x')
  writeFileSync(plain, '#!/bin/sh\necho fixed\n')
  chmodSync(plain, 0o755)
  assert.equal(await talk(t, all[1]!, ''), 'fixed\n')
})

test(
  'a program that cannot be run as a user with supplementary groups is logged, and the client receives nothing',
  async t => {
    const who = member(t)
    if (!who) return t.skip(noMember)
    const [port] = await freePorts(1)
    const conf = `127.0.0.1:${port} stream tcp nowait root /nonexistent x`
    const { said, row } = await serve(t, conf, {}, { ...who, supplementary: true })
    assert.equal(await talk(t, port!, ''), '')
    await until('one start has failed', () => row(`${port}/tcp`).failed === 1)
    assert.equal(said.length, 1)
    const { err, ...details } = said[0]!.details as { err: NodeJS.ErrnoException }
    assert.deepEqual(details, { at: 'inetd.conf:1', program: '/nonexistent' })
    assert.equal(err.code, 'ENOENT')
  },
  root ? false : 'only root can start programs as somebody else',
)

test(
  'a program that exits with 127 by itself was started, and is not logged',
  async t => {
    const who = member(t)
    if (!who) return t.skip(noMember)
    const [port] = await freePorts(1)
    const conf = `127.0.0.1:${port} stream tcp nowait root /bin/sh sh -c "exit 127"`
    const { said, row } = await serve(t, conf, {}, { ...who, supplementary: true })
    assert.equal(await talk(t, port!, ''), '')
    await until('one start has failed', () => row(`${port}/tcp`).failed === 1)
    assert.deepEqual(said, [])
  },
  root ? false : 'only root can start programs as somebody else',
)

test('a program whose user is gone when a client arrives is not run, and this is logged', async t => {
  const [nowait, wait, mux] = await freePorts(3)
  const conf = `127.0.0.1:${nowait} stream tcp nowait root /bin/cat cat
127.0.0.1:${wait} stream tcp wait.2 root /bin/cat cat
127.0.0.1:${mux} stream tcp nowait root internal tcpmux
tcpmux/cat stream tcp nowait root /bin/cat cat
`
  const { complaints, inetd, row } = await serve(t, '')
  const { entries } = parseInetdConf(conf, 'inetd.conf', () => undefined)
  const account = () => {
    throw new Error('there is no user "root" in /etc/passwd')
  }
  await inetd.apply(entries.map(entry => ({ entry, at: `inetd.conf:${entry.line}`, account })))
  assert.equal(await talk(t, nowait!, 'x'), '')
  assert.match(await talk(t, mux!, 'cat\r\n'), /^-/)
  await client(t, wait!)
  await until('the service is off', () => row(`${wait}/tcp`).state === 'off')
  assert.deepEqual(
    complaints().sort(),
    [
      ...[nowait, wait].map(port => `${port}/tcp: cannot start a program`),
      `${wait}/tcp server failing (looping), service terminated`,
      'tcpmux/cat/tcp: cannot start a program',
    ].sort(),
  )
})

test('a wait service whose program is missing tries again, and serves when the program exists', async t => {
  const [port] = await freePorts(1)
  const path = join(folder(t), 'server')
  const { complaints, clock, row } = await serve(t, perl(port!, 'dgram', 'wait', path))
  const peer = await udpClient(t)
  peer.send('patience', port!)
  await until('there is a complaint', () => complaints().length > 0)
  assert.deepEqual(complaints(), [`${port}/udp: cannot start a program`])
  writeFileSync(path, readFileSync(program(t, 'recvfrom')), { mode: 0o755 })
  while (peer.got.length === 0) await clock.advance(1000)
  assert.equal(answer(String(peer.got[0])).rest, 'patience')
  await until('no program runs', () => row(`${port}/udp`).running === 0)
})

test('only programs that fail are counted as failed', async t => {
  const [port] = await freePorts(1)
  const { row } = await serve(
    t,
    `127.0.0.1:${port} stream tcp nowait root /bin/sh sh -c "read how; eval $how"`,
  )
  for (const how of ['exit 0', 'exit 3', 'kill -9 $$']) await talk(t, port!, `${how}\n`)
  await until('no program runs', () => row(`${port}/tcp`).running === 0)
  const { started, failed, refused } = row(`${port}/tcp`)
  assert.deepEqual({ started, failed, refused }, { started: 3, failed: 2, refused: 0 })
})

test('at --max-children clients of all services wait, and are served later', async t => {
  const [a, b, waits] = await freePorts(3)
  const conf = cat(a!) + cat(b!) + perl(waits!, 'stream', 'wait', program(t, 'accept'))
  const { complaints, inetd } = await serve(t, conf, { maxChildren: 2 })
  const [first, second] = [await client(t, a!), await client(t, b!)]
  first.write('1')
  second.write('2')
  await Promise.all([once(first, 'data'), once(second, 'data')])
  assert.ok(inetd.full)
  const [third, fourth] = [await client(t, a!), await client(t, waits!)]
  third.end('3')
  fourth.end('4')
  for (let i = 0; i < 20; i++) {
    first.write('x')
    await once(first, 'data')
  }
  assert.deepEqual([third.soFar(), fourth.soFar()], ['', ''])
  assert.equal(childrenOf(process.pid).length, 2)
  first.end()
  second.end()
  assert.equal(await third.all, '3')
  assert.equal(answer(await fourth.all).rest, '4')
  assert.deepEqual(complaints(), ['process cap reached: further clients wait'], 'and this is logged once')
})

test('at --max-children a new service waits too', async t => {
  const [a, b] = await freePorts(2)
  const { apply } = await serve(t, cat(a!), { maxChildren: 1 })
  const first = await client(t, a!)
  first.write('1')
  await once(first, 'data')
  await apply(cat(a!) + cat(b!))
  const second = await client(t, b!)
  second.end('2')
  for (let i = 0; i < 20; i++) {
    first.write('x')
    await once(first, 'data')
  }
  assert.equal(second.soFar(), '')
  first.end()
  assert.equal(await second.all, '2')
})

test('over --max-per-ip a client is refused; other addresses are not, and it may return', async t => {
  const [port] = await freePorts(1)
  const { row } = await serve(t, cat(port!), { maxPerIp: 2 })
  const [a, b] = [await client(t, port!), await client(t, port!)]
  a.write('a')
  b.write('b')
  await Promise.all([once(a, 'data'), once(b, 'data')])
  assert.equal(await (await client(t, port!)).all, '')
  assert.equal(row(`${port}/tcp`).refused, 1)
  assert.equal(await talk(t, port!, 'x', { localAddress: '127.0.0.2' }), 'x')
  a.end()
  await a.all
  await until('one program runs', () => row(`${port}/tcp`).running === 1)
  assert.equal(await talk(t, port!, 'again'), 'again')
})

test('over --rate-per-ip a client is refused until the minute is over; other addresses are not', async t => {
  const [port] = await freePorts(1)
  const { row, clock } = await serve(t, cat(port!), { ratePerIp: 2 })
  for (let i = 0; i < 2; i++) assert.equal(await talk(t, port!, 'x'), 'x')
  assert.equal(await (await client(t, port!)).all, '')
  assert.equal(row(`${port}/tcp`).refused, 1)
  assert.equal(await talk(t, port!, 'x', { localAddress: '127.0.0.2' }), 'x')
  await clock.advance(MINUTE)
  assert.equal(await talk(t, port!, 'x'), 'x')
})

test('when the file is read again unchanged entries keep their sockets, wherever they stand', async t => {
  const [tcp, datagrams, internal, moved, to] = await freePorts(5)
  const recvfrom = program(t, 'recvfrom')
  const lines = [
    cat(tcp!),
    perl(datagrams!, 'dgram', 'wait', recvfrom),
    `127.0.0.1:${internal} stream tcp nowait root internal echo\n`,
  ]
  const { apply, complaints } = await serve(t, lines.join('') + cat(moved!))
  const inodes = () => [inodeOf(tcp!), inodeOf(datagrams!, 'udp'), inodeOf(internal!)]
  const before = inodes()
  assert.ok(before.every(Boolean))
  await apply(lines.reverse().join('# a comment\n\n') + cat(to!))
  assert.deepEqual(inodes(), before)
  assert.equal(await refusal(moved!), 'ECONNREFUSED')
  assert.equal(await talk(t, to!, 'moved'), 'moved')
  await apply(lines.join('').replace('/bin/cat cat', `/bin/cat cat -`))
  assert.deepEqual(inodes(), before, 'another program on the same socket')
  await apply('')
  assert.deepEqual(inodes(), [undefined, undefined, undefined])
  await apply(lines.join(''))
  assert.ok(inodes().every(Boolean))
  assert.deepEqual(complaints(), [])
})

test('when the file is read again the same address can get another program, limit or kind', async t => {
  const [port] = await freePorts(1)
  const { apply } = await serve(t, cat(port!))
  const line = (rest: string) => `127.0.0.1:${port} stream tcp ${rest}\n`
  assert.equal(await talk(t, port!, 'x'), 'x')
  await apply(line('nowait root /bin/echo echo other'))
  assert.equal(await talk(t, port!, ''), 'other\n')
  await apply(line('nowait root internal daytime'))
  assert.match(await talk(t, port!, ''), /2026\r\n$/)
  await apply(line(`wait root ${program(t, 'accept')} x`))
  assert.equal(answer(await talk(t, port!, 'y')).rest, 'y')
  await until('no child is left', () => childrenOf(process.pid).length === 0)
  await apply(line('nowait.1 root /bin/cat cat'))
  assert.equal(await talk(t, port!, 'z'), 'z')
  assert.equal(await talk(t, port!, 'z'), '', 'the new limit')
})

test('programs of a removed service continue, and leave no zombie', async t => {
  const [port, other] = await freePorts(2)
  const { apply } = await serve(t, cat(port!) + cat(other!))
  const socket = await client(t, port!)
  socket.write('before')
  await once(socket, 'data')
  await apply(cat(other!))
  assert.equal(await refusal(port!), 'ECONNREFUSED')
  socket.end(' and after')
  assert.equal(await socket.all, 'before and after')
  await until('no child is left', () => childrenOf(process.pid).length === 0)
})

test('a program that has the socket of a removed service continues, and inetd does not watch it again', async t => {
  const [port] = await freePorts(1)
  const { apply, inetd } = await serve(t, perl(port!, 'dgram', 'wait', program(t, 'recvfrom'), '2'))
  const peer = await udpClient(t)
  const { pid } = answer(String(await peer.ask('first', port!)))
  await apply('')
  assert.deepEqual(answer(String(await peer.ask('second', port!))), { pid, rest: 'second' })
  await until('no child is left', () => childrenOf(process.pid).length === 0)
  assert.equal(inodeOf(port!, 'udp'), undefined)
  assert.deepEqual(inetd.rows(), [])
})

test('a connection to a removed internal service continues', async t => {
  const [port] = await freePorts(1)
  const { apply } = await serve(t, `127.0.0.1:${port} stream tcp nowait root internal echo`)
  const socket = await client(t, port!)
  socket.write('before')
  await once(socket, 'data')
  await apply('')
  assert.equal(await refusal(port!), 'ECONNREFUSED')
  socket.end(' and after')
  assert.equal(await socket.all, 'before and after')
})

test('an address that cannot be bound is logged, and retried in time or when the file is read again', async t => {
  const holder = createServer().listen(0, '127.0.0.1')
  await once(holder, 'listening')
  t.after(() => void holder.close())
  const { port } = holder.address() as AddressInfo
  const [other] = await freePorts(1)
  const conf = cat(port) + cat(other!)
  const { complaints, row, clock, apply } = await serve(t, conf)
  const complaint = `${port}/tcp: cannot listen, trying again every 10 seconds`
  assert.deepEqual(complaints(), [complaint])
  assert.equal(row(`${port}/tcp`).state, 'off')
  assert.equal(await talk(t, other!, 'x'), 'x')
  await clock.advance(TEN_MINUTES)
  await apply(conf)
  assert.deepEqual(complaints(), [complaint, complaint], 'an operator who reads the file again is told again')
  await once(holder.close(), 'close')
  await apply(conf)
  assert.equal(await talk(t, port, 'fixed'), 'fixed')
  await clock.advance(TEN_MINUTES)
  assert.equal(await talk(t, port, 'once only'), 'once only')
  assert.equal(complaints().length, 2)
})

test('a service that is off for looping returns when the file is read again', async t => {
  const [port] = await freePorts(1)
  const { row, apply } = await serve(t, cat(port!, '127.0.0.1', 'nowait.1'))
  assert.equal(await talk(t, port!, 'x'), 'x')
  assert.equal(await (await client(t, port!)).all, '')
  assert.equal(row(`${port}/tcp`).state, 'off')
  await apply(cat(port!, '127.0.0.1', 'nowait.1'))
  assert.equal(await talk(t, port!, 'y'), 'y')
})

test('unix sockets are served like others, and their files are created and removed', async t => {
  const dir = folder(t)
  const [nowait, wait] = [join(dir, 'nowait.sock'), join(dir, 'with:colon.sock')]
  const tell = join(dir, 'tell.sock')
  const { row, apply } = await serve(
    t,
    `${nowait} stream unix nowait root /bin/cat cat
${wait} stream unix wait root ${program(t, 'accept')} x 2
${tell} stream unix nowait root ${program(t, 'tell')} x`,
  )
  for (let i = 0; i < 2; i++) assert.equal(await talk(t, nowait, 'hello'), 'hello')
  for (const path of [nowait, wait])
    assert.equal(lstatSync(path).mode & 0o777, 0o666, 'everybody may connect')
  const first = answer(await talk(t, wait, 'one'))
  const second = answer(await talk(t, wait, 'two'))
  assert.deepEqual([first.rest, second.rest, second.pid], ['one', 'two', first.pid])
  assert.notEqual(answer(await talk(t, wait, 'three')).pid, first.pid)
  const said = told(await talk(t, tell, ''))
  assert.deepEqual(withoutEnv(said), EXPECTED)
  assert.deepEqual(connectionIn(said), { PROTO: 'UNIX' })
  await apply('')
  assert.deepEqual([nowait, wait, tell].map(existsSync), [false, false, false])
  assert.throws(() => row(`${nowait}/unix`))
})

test('a service without a socket is not reported as listening: an internal one on a unix socket', async t => {
  const path = join(folder(t), 'internal.sock')
  const { complaints, row } = await serve(t, `${path} stream unix nowait root internal echo`)
  assert.equal(row(`${path}/unix`).state, 'off')
  assert.deepEqual(complaints(), [`${path}/unix: cannot listen, trying again every 10 seconds`])
})

test('a socket that an earlier server left is removed; any other file stays, and the service is off', async t => {
  const dir = folder(t)
  const [stale, file] = [join(dir, 'stale.sock'), join(dir, 'file')]
  close(listenUnix(stale, false))
  assert.ok(lstatSync(stale).isSocket())
  writeFileSync(file, 'precious')
  const line = (path: string) => `${path} stream unix nowait root /bin/cat cat\n`
  const { complaints, row, apply } = await serve(t, line(stale) + line(file))
  assert.equal(await talk(t, stale, 'hello'), 'hello')
  assert.deepEqual(complaints(), [`${file}/unix: cannot listen, trying again every 10 seconds`])
  assert.equal(row(`${file}/unix`).state, 'off')
  await apply('')
  assert.equal(readFileSync(file, 'utf8'), 'precious')
  assert.equal(existsSync(stale), false)
})

for (const host of ['127.0.0.1', '::1'])
  test(`the internal services over ${host} answer as their RFCs require, over TCP and UDP`, async t => {
    const [echo, discard, chargen, daytime, time] = await freePorts(5)
    const both = (port: number, name: string) =>
      `[${host}]:${port} stream tcp nowait root internal ${name}
[${host}]:${port} dgram udp wait root internal ${name}
`.replaceAll('[127.0.0.1]', '127.0.0.1')
    const { inetd } = await serve(
      t,
      both(echo!, 'echo') +
        both(discard!, 'discard') +
        both(chargen!, 'chargen') +
        both(daytime!, 'daytime') +
        both(time!, 'time'),
    )
    assert.equal(inetd.rows().length, 10)
    const seconds = Buffer.alloc(4)
    seconds.writeUInt32BE(1_795_445_580 + 2_208_988_800)
    assert.equal(await talk(t, echo!, 'hello', { host }), 'hello')
    assert.equal(await talk(t, discard!, 'hello', { host }), '')
    assert.equal(await talk(t, daytime!, '', { host }), 'Mon Nov 23 14:53:00 2026\r\n')
    assert.equal(await talk(t, time!, '', { host }), seconds.toString('latin1'))
    const lines = await client(t, chargen!, { host })
    await until('10,000 octets have come', () => lines.soFar().length > 10_000)
    lines.destroy()
    const line = (i: number) =>
      `${Array.from({ length: 72 }, (_, j) => String.fromCharCode(0x20 + ((i + j) % 95))).join('')}\r\n`
    const expected = Array.from({ length: 95 }, (_, i) => line(i)).join('')
    assert.ok(lines.soFar().startsWith(expected))

    const peer = await udpClient(t, host)
    assert.equal(String(await peer.ask('hello', echo!)), 'hello')
    assert.equal(String(await peer.ask('', daytime!)), 'Mon Nov 23 14:53:00 2026\r\n')
    assert.deepEqual(await peer.ask('', time!), seconds)
    assert.equal(String(await peer.ask('x'.repeat(10), chargen!)), line(0).slice(0, 10))
    assert.equal(String(await peer.ask('x'.repeat(5000), chargen!)), line(1))
    const before = peer.got.length
    peer.send('hello', discard!)
    await peer.ask('to be sure', echo!)
    assert.equal(peer.got.length, before + 1)
    assert.deepEqual(childrenOf(process.pid), [], 'without a program')
  })

test('internal services send no datagram to ports that answer by themselves', async t => {
  const names = ['echo', 'chargen', 'daytime', 'time']
  const own = await freePorts(names.length)
  const conf = names.map((name, i) => `127.0.0.1:${own[i]} dgram udp wait root internal ${name}\n`)
  await serve(t, conf.join(''))
  const small = SMALL_SERVICE_PORTS.filter(port => port > (root ? 0 : 1023))
  // A socket of another process could hold one of these on every address: then it is not ours to try.
  const from = (port: number) =>
    udpClient(t, '127.0.0.2', port).catch(error => void assert.equal(error.code, 'EADDRINUSE'))
  const ordinary = await udpClient(t, '127.0.0.2')
  for (const service of own) {
    const forged = [await from(service)]
    for (const port of small) forged.push(await from(port))
    for (const socket of forged) socket?.send('x', service)
    // A socket's queue is in order: when this is back, all the others were looked at.
    await ordinary.ask('x', service)
    assert.deepEqual(
      forged.flatMap(socket => socket?.got ?? []),
      [],
    )
  }
  t.diagnostic(`from ${small.length + 1} ports each`)
})

test('tcpmux (RFC 1078) starts its services, as they are when a client asks', async t => {
  const [port] = await freePorts(1)
  const line = `127.0.0.1:${port} stream tcp nowait root internal tcpmux\n`
  const tell = program(t, 'tell')
  const { apply, row } = await serve(
    t,
    `${line}tcpmux/+Tell stream tcp nowait root ${tell} tell\ntcpmux/copy stream tcp nowait root /bin/cat cat\n`,
  )
  assert.equal(await talk(t, port!, 'help\r\n'), 'tell\r\ncopy\r\n')
  assert.equal(await talk(t, port!, 'COPY\r\nthe rest'), 'the rest')
  assert.match(await talk(t, port!, 'none\r\n'), /^-.*\r\n$/)
  assert.equal(await talk(t, port!, ''), '')
  const socket = await client(t, port!)
  const { localPort } = socket
  socket.end('tell\r\n')
  const all = await socket.all
  assert.match(all, /^\+.*\r\n/)
  const said = told(all.slice(all.indexOf('\n') + 1))
  assert.deepEqual(withoutEnv(said), EXPECTED)
  assert.deepEqual(connectionIn(said), {
    PROTO: 'TCP',
    TCPLOCALIP: '127.0.0.1',
    TCPLOCALPORT: `${port}`,
    TCPREMOTEIP: '127.0.0.1',
    TCPREMOTEPORT: `${localPort}`,
  })
  await apply(`${line}tcpmux/other stream tcp nowait root /bin/echo echo new\n`)
  assert.equal(await talk(t, port!, 'other\r\n'), 'new\n')
  assert.match(await talk(t, port!, 'copy\r\n'), /^-/)
  await until('no program runs', () => row(`${port}/tcp`).running === 0)
})

test('500 services are opened, kept, and closed, and no descriptor is left', async t => {
  const { host, all } = manyPorts(500)
  const conf = all.map(port => cat(port, host)).join('')
  const before = descriptorsOf(process.pid).length
  const { apply, inetd, complaints } = await serve(t, conf)
  assert.equal(inetd.rows().length, 500)
  const inode = inodeOf(all[7]!, 'tcp', host)
  assert.ok(inode)
  await apply(conf)
  assert.equal(inodeOf(all[7]!, 'tcp', host), inode)
  for (const port of [all[0], all[250], all[499]]) assert.equal(await talk(t, port!, 'x', { host }), 'x')
  await apply(
    all
      .slice(0, 250)
      .map(port => cat(port, host))
      .join(''),
  )
  assert.equal(inetd.rows().length, 250)
  await apply('')
  await until(
    'the descriptors are closed',
    () => descriptorsOf(process.pid).filter(what => what.startsWith('socket:')).length < 10,
  )
  // The watcher's own remain until close.
  await until('the descriptors are closed', () => descriptorsOf(process.pid).length <= before + 8)
  assert.deepEqual(complaints(), [])
})

test('close resolves when the last program has ended, and every descriptor is closed', async t => {
  const before = descriptorsOf(process.pid).length
  const [port, waits] = await freePorts(2)
  const { close } = await serve(t, cat(port!) + perl(waits!, 'dgram', 'wait', program(t, 'recvfrom')))
  const socket = await client(t, port!)
  socket.write('x')
  await once(socket, 'data')
  let closed = false
  const closing = close(new AbortController().signal).then(() => {
    closed = true
  })
  assert.equal(await refusal(port!), 'ECONNREFUSED')
  socket.write('y')
  await once(socket, 'data')
  assert.equal(closed, false)
  socket.end('z')
  assert.equal(await socket.all, 'xyz')
  await closing
  socket.destroy()
  await until('the descriptors are closed', () => descriptorsOf(process.pid).length <= before)
})

test('close ends the programs that still run at the deadline', async t => {
  const [port] = await freePorts(1)
  const { close } = await serve(t, cat(port!))
  const socket = await client(t, port!)
  socket.write('x')
  await once(socket, 'data')
  const { pid } = childrenOf(process.pid)[0]!
  const deadline = new AbortController()
  const closing = close(deadline.signal)
  deadline.abort()
  await closing
  assert.equal(stateOf(pid), undefined)
  assert.equal(await socket.all, 'x')
})

test('an address that cannot be bound leaves no listener on the other addresses of the entry', async t => {
  const holder = createServer().listen({ port: 0, host: '::1' })
  await once(holder, 'listening')
  t.after(() => void holder.close())
  const { port } = holder.address() as AddressInfo
  const conf = `127.0.0.1,[::1]:${port} stream tcp nowait root /bin/cat cat`
  const { apply } = await serve(t, conf)
  assert.equal(await refusal(port), 'ECONNREFUSED', 'no socket listens that nobody accepts from')
  await once(holder.close(), 'close')
  await apply(conf)
  assert.equal(await talk(t, port, 'both'), 'both')
})

test('no UDP service answers another one, since the two could go on for ever', async t => {
  const [one, two] = await freePorts(2)
  await serve(
    t,
    `127.0.0.1:${one} dgram udp wait root internal echo\n127.0.0.2:${two} dgram udp wait root internal echo`,
  )
  const forged = await udpClient(t, '127.0.0.3', two)
  const honest = await udpClient(t)
  forged.send('forged', one!)
  assert.equal(String(await honest.ask('honest', one!)), 'honest')
  assert.equal(forged.got.length, 0)
})

test('once inetd is closing it opens no more sockets', async t => {
  const [port] = await freePorts(1)
  const { close, apply } = await serve(t, '')
  const closed = close(new AbortController().signal)
  await apply(cat(port!))
  await closed
  assert.equal(await refusal(port!), 'ECONNREFUSED')
})

test('a client that has reset its connection before it is accepted starts no program', async t => {
  const [port] = await freePorts(1)
  const { row } = await serve(t, cat(port!), { ratePerIp: 5 })
  for (let i = 0; i < 50; i++) {
    const socket = await client(t, port!)
    socket.resetAndDestroy()
  }
  await until('no program runs', () => row(`${port}/tcp`).running === 0)
  assert.ok(row(`${port}/tcp`).started <= 5, `${row(`${port}/tcp`).started} started`)
})
