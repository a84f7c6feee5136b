import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import type { TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import { CANNOT_RUN, type ExecOrders, type MuxOrders, ORDERS, REPORT } from '../../src/inetd/exec.ts'
import { has } from '../support/process.ts'
import { until } from '../support/until.ts'
import { client, member, noMember, program, root, stateOf, test, told } from './client.ts'

const shim = fileURLToPath(new URL('../../src/inetd/exec.ts', import.meta.url))
const PATH = process.env.PATH ?? ''
const orRoot = root ? false : 'only root can become somebody else'

/**
 * Starts the shim as inetd does, with a connection as descriptors 0, 1 and 2, and returns the client of that
 * connection.
 */
async function shimFor(t: TestContext, orders: ExecOrders | MuxOrders, wrapper: readonly string[] = []) {
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => void server.close())
  const accepted = once(server, 'connection')
  const peer = await client(t, (server.address() as AddressInfo).port)
  const [connection]: Socket[] = (await accepted) as [Socket]
  const [command, ...args] = [...wrapper, process.execPath, shim]
  const child: ChildProcess = spawn(command!, args, {
    stdio: [connection, connection, connection, 'pipe'],
    env: { ...process.env, [ORDERS]: JSON.stringify(orders) },
  })
  connection.destroy()
  t.after(() => void child.kill('SIGKILL'))
  let report = ''
  child.stdio[REPORT]!.on('data', data => {
    report += data
  })
  const ended = once(child, 'close').then(([code, signal]) => code ?? signal)
  return { peer, child, ended, report: () => report && JSON.parse(report) }
}

const root0 = { name: 'root', uid: 0, gid: 0, supplementary: false }

test('the shim becomes the program: the same process with the ordered arguments and environment', async t => {
  const path = program(t, 'tell')
  const env = { PATH, GREETING: 'hello\nworld', PROTO: 'TCP' }
  const orders = { path: '/usr/bin/env', argv: ['an-odd-name', 'perl', path, 'a b'], account: undefined, env }
  const { peer, child, ended } = await shimFor(t, orders)
  const said = told(await peer.all)
  assert.equal(await ended, 0)
  assert.deepEqual(said.env, { ...env, GREETING: 'hello world' })
  assert.equal(said.fds, '0 1 2')
  assert.equal(said.same, '1')
  assert.equal(said.blocking, '1')
  assert.equal(said.timeouts, '0.0 0.0')
  assert.equal(said.cmdline, `perl ${path} a b`)
  assert.ok(child.pid)
})

test('argv[0] is what the configuration says', async t => {
  const argv = ['an-odd-name', '-c', 'echo $0']
  const { peer } = await shimFor(t, { path: '/bin/sh', argv, account: undefined, env: {} })
  assert.equal(await peer.all, 'an-odd-name\n')
})

test('no signal is ignored or blocked in the program, though Node ignores some', async t => {
  const orders = { path: program(t, 'tell'), argv: ['tell'], account: undefined, env: { PATH } }
  const said = told(await (await shimFor(t, orders)).peer.all)
  assert.deepEqual([Number(said.ignored), Number(said.blocked)], [0, 0])
})

test(
  'the shim takes on the user, the group and the supplementary groups',
  async t => {
    const who = member(t)
    if (!who) return t.skip(noMember)
    const account = { ...who, supplementary: true }
    const orders = { path: program(t, 'tell'), argv: ['tell'], account, env: { PATH: '/usr/bin:/bin' } }
    const said = told(await (await shimFor(t, orders)).peer.all)
    const four = (id: number) => Array(4).fill(id).join(' ')
    assert.equal(said.ids, `${four(who.uid)} ${four(who.gid)}`)
    assert.equal(said.groups, who.groups)
  },
  orRoot,
)

test(
  'the shim does not leave the groups of root to a user without supplementary groups',
  async t => {
    const account = { name: 'daemon', uid: 1, gid: 1, supplementary: false }
    const orders = { path: program(t, 'tell'), argv: ['tell'], account, env: { PATH: '/usr/bin:/bin' } }
    const said = told(await (await shimFor(t, orders)).peer.all)
    assert.equal(said.ids, '1 1 1 1 1 1 1 1')
    assert.equal(said.groups, '1')
  },
  orRoot,
)

test('if the program cannot be run the shim exits with 127, and the client receives nothing', async t => {
  for (const [path, code] of [
    ['/nonexistent', 'ENOENT'],
    ['/etc/passwd', 'EACCES'],
    ['/', 'EACCES'],
    ['/etc/passwd/x', 'ENOTDIR'],
  ] as const) {
    const { peer, ended, report } = await shimFor(t, { path, argv: ['x'], account: undefined, env: {} })
    assert.equal(await ended, CANNOT_RUN, path)
    assert.equal(await peer.all, '', path)
    assert.deepEqual([report().program, report().code], [path, code])
  }
})

/**
 * Runs a command as a root that cannot change its user. Unlike another user it can read the checkout wherever
 * that lies.
 */
const withoutSetuid = ['setpriv', '--bounding-set', '-setuid,-setgid', '--inh-caps', '-setuid,-setgid']

test(
  'a program is not run if the shim may not take on its user',
  async t => {
    const path = program(t, 'tell')
    const account = root ? { name: 'daemon', uid: 1, gid: 1, supplementary: false } : root0
    const orders = { path, argv: ['tell'], account, env: { PATH } }
    const { peer, ended, report } = await shimFor(t, orders, root ? withoutSetuid : [])
    assert.equal(await peer.all, '')
    assert.equal(await ended, CANNOT_RUN)
    assert.equal(report().code, 'EPERM')
    assert.match(report().message, /initgroups/)
  },
  root && !has('setpriv') && 'no setpriv',
)

const services: MuxOrders['services'] = [
  { name: 'greet', plus: true, path: '/bin/echo', argv: ['echo', 'hello'], account: undefined },
  { name: 'copy', plus: false, path: '/bin/cat', argv: ['cat'], account: undefined },
  { name: 'missing', plus: true, path: '/nonexistent', argv: ['x'], account: undefined },
]

/** The answer of tcpmux to `text`. */
async function multiplexed(t: TestContext, text: string): Promise<string> {
  const { peer } = await shimFor(t, { services, env: {} })
  peer.end(text)
  return peer.all
}

test('tcpmux (RFC 1078) answers "help" with its services, one on each line', async t => {
  assert.equal(await multiplexed(t, 'help\r\n'), 'greet\r\ncopy\r\nmissing\r\n')
  assert.equal(await multiplexed(t, 'HELP\r\n'), 'greet\r\ncopy\r\nmissing\r\n')
})

test('tcpmux sends "+" for a service with a plus, and nothing for the others', async t => {
  assert.equal(await multiplexed(t, 'greet\r\n'), '+Go\r\nhello\n')
  assert.equal(await multiplexed(t, 'copy\r\nall of it\r\n'), 'all of it\r\n')
})

test('tcpmux ignores case, and accepts a bare line feed', async t => {
  assert.equal(await multiplexed(t, 'GrEeT\r\n'), '+Go\r\nhello\n')
  assert.equal(await multiplexed(t, 'greet\n'), '+Go\r\nhello\n')
})

test('tcpmux reads no octet beyond the line, which leaves the rest to the program', async t => {
  const { peer } = await shimFor(t, { services, env: {} })
  for (const octet of 'copy\r\none') {
    peer.write(octet)
    await new Promise(resolve => setImmediate(resolve))
  }
  peer.end(' two')
  assert.equal(await peer.all, 'one two')
})

test('tcpmux answers a request for an unknown service with "-"', async t => {
  for (const name of ['nothing', '', 'greet ', '+greet'])
    assert.match(await multiplexed(t, `${name}\r\n`), /^-.+\r\n$/, JSON.stringify(name))
})

test('tcpmux ends without an answer if it receives no line, or one that is too long', async t => {
  assert.equal(await multiplexed(t, ''), '')
  assert.equal(await multiplexed(t, 'greet'), '')
  assert.equal(await multiplexed(t, 'x'.repeat(10_000)), '')
})

test('a program behind tcpmux gets a socket without time-outs', async t => {
  const path = program(t, 'tell')
  const mux = [{ name: 'tell', plus: false, path, argv: ['tell'], account: undefined }]
  const { peer } = await shimFor(t, { services: mux, env: { PATH } })
  peer.end('tell\r\n')
  const said = told(await peer.all)
  assert.equal(said.timeouts, '0.0 0.0')
  assert.equal(said.blocking, '1')
})

test('tcpmux ends for a client that sends no name, or sends it too slowly', async t => {
  const silent = await shimFor(t, { services, env: {}, nameTimeoutMs: 200 })
  assert.equal(await silent.peer.all, '')
  assert.equal(await silent.ended, 0)
  const slow = await shimFor(t, { services, env: {}, nameTimeoutMs: 200 })
  const octets = setInterval(() => slow.peer.write('x'), 20)
  t.after(() => clearInterval(octets))
  assert.equal(await slow.peer.all, '')
  assert.equal(await slow.ended, 0)
})

test('the environment of programs is not visible in the arguments of the shim', async t => {
  const { child, peer } = await shimFor(t, { services, env: { SECRET: 'xyzzy' } })
  await until('the program sleeps', () => stateOf(child.pid as number) === 'S')
  assert.doesNotMatch(readFileSync(`/proc/${child.pid}/cmdline`, 'utf8'), /xyzzy/)
  peer.end('greet\r\n')
  assert.equal(await peer.all, '+Go\r\nhello\n')
})
