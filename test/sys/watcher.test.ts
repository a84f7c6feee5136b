import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { connect } from 'node:net'
import type { TestContext } from 'node:test'
import { promisify } from 'node:util'
import { headers } from '../../src/sys/layouts.ts'
import { accept4, close, recv } from '../../src/sys/libc.ts'
import { bindUdp, listenTcp } from '../../src/sys/sockets.ts'
import { startWatcher, type Watcher } from '../../src/sys/watcher.ts'
import { ownedBound, test, until } from './kernel.ts'

async function watcherFor(t: TestContext): Promise<Watcher> {
  const watcher = await startWatcher()
  t.after(() => watcher.close())
  return watcher
}

const udpSocket = (t: TestContext) => ownedBound(t, bindUdp({ address: '127.0.0.1', port: 0 }, 65_536))

/** Sends datagrams to this port. Resolves when the kernel has them. */
async function send(t: TestContext, port: number, ...texts: readonly string[]): Promise<void> {
  const socket = createSocket('udp4')
  t.after(() => void socket.close())
  socket.connect(port, '127.0.0.1')
  await once(socket, 'connect')
  for (const text of texts) await new Promise(resolve => socket.send(text, resolve))
}

/**
 * Resolves when all messages that the thread has sent so far have arrived: that of a later datagram comes
 * after them.
 */
async function afterAnother(t: TestContext, watcher: Watcher): Promise<void> {
  const { fd, address } = udpSocket(t)
  let seen = false
  watcher.watch(fd, () => {
    seen = true
  })
  await send(t, address.port, 'another')
  await until(() => seen)
}

test('a readable socket is reported once, and its datagram is still there', async t => {
  const watcher = await watcherFor(t)
  const { fd, address } = udpSocket(t)
  let calls = 0
  watcher.watch(fd, () => calls++)
  await afterAnother(t, watcher)
  assert.equal(calls, 0, 'no datagram was sent yet')
  await send(t, address.port, 'one', 'two')
  await until(() => calls > 0)
  await afterAnother(t, watcher)
  assert.equal(calls, 1)
  const buffer = Buffer.alloc(10)
  assert.equal(buffer.toString('latin1', 0, recv(fd, buffer, headers.MSG_DONTWAIT)), 'one')
})

test('a socket that is watched again is reported if a datagram is left', async t => {
  const watcher = await watcherFor(t)
  const { fd, address } = udpSocket(t)
  await send(t, address.port, 'before it is watched')
  for (let i = 0; i < 3; i++) await new Promise<void>(resolve => watcher.watch(fd, resolve))
})

test('a socket may be watched again within the callback', async t => {
  const watcher = await watcherFor(t)
  const { fd, address } = udpSocket(t)
  let calls = 0
  const again = () => {
    if (++calls < 3) watcher.watch(fd, again)
  }
  watcher.watch(fd, again)
  await send(t, address.port, 'x')
  await until(() => calls === 3)
  await afterAnother(t, watcher)
  assert.equal(calls, 3)
})

test('a listening socket is reported when a client waits', async t => {
  const watcher = await watcherFor(t)
  const { fd, address } = ownedBound(t, listenTcp({ address: '127.0.0.1', port: 0 }, true))
  const readable = new Promise<void>(resolve => watcher.watch(fd, resolve))
  const socket = connect(address.port, '127.0.0.1')
  t.after(() => void socket.destroy())
  await readable
  assert.ok(close(accept4(fd, headers.SOCK_CLOEXEC)) === 0, 'the client is left to the caller')
})

test('a forgotten socket is not reported, even if its message was on its way', async t => {
  const watcher = await watcherFor(t)
  const [a, b] = [udpSocket(t), udpSocket(t)]
  const told: string[] = []
  const forgetOther = (name: string, other: number) => () => {
    told.push(name)
    watcher.forget(other)
  }
  watcher.watch(a.fd, forgetOther('a', b.fd))
  watcher.watch(b.fd, forgetOther('b', a.fd))
  await send(t, a.address.port, 'x')
  await send(t, b.address.port, 'x')
  await afterAnother(t, watcher)
  assert.equal(told.length, 1)
  watcher.forget(a.fd)
  watcher.forget(a.fd)
})

test('a new descriptor with the number of an old one is not confused with it', async t => {
  const watcher = await watcherFor(t)
  const old = bindUdp({ address: '127.0.0.1', port: 0 }, 65_536)
  watcher.watch(old.fd, () => assert.fail('it is closed'))
  await send(t, old.address.port, 'for the old one')
  watcher.forget(old.fd)
  close(old.fd)
  const { fd } = udpSocket(t)
  assert.equal(fd, old.fd)
  let calls = 0
  watcher.watch(fd, () => calls++)
  await afterAnother(t, watcher)
  assert.equal(calls, 0)
})

test('each of a hundred sockets gets its own callback', async t => {
  const watcher = await watcherFor(t)
  const sockets = Array.from({ length: 100 }, () => udpSocket(t))
  const told = new Set<number>()
  for (const { fd } of sockets) watcher.watch(fd, () => told.add(fd))
  for (const { address } of sockets) await send(t, address.port, 'x')
  await until(() => told.size === sockets.length)
})

test('a number that is no descriptor is an error with its code', async t => {
  const watcher = await watcherFor(t)
  assert.throws(() => watcher.watch(1_000_000, () => {}), { code: 'EBADF', syscall: 'epoll_ctl' })
})

test('close closes every descriptor', async () => {
  const open = () => readdirSync('/proc/self/fd').length
  await (await startWatcher()).close()
  const before = open()
  for (let i = 0; i < 5; i++) await (await startWatcher()).close()
  assert.equal(open(), before)
})

test('a process that ends does not wait for the thread', async () => {
  const url = new URL('../../src/sys/watcher.ts', import.meta.url)
  const script = `import('${url}').then(async ({ startWatcher }) => { await startWatcher(); process.exit(7) })`
  const ended = promisify(execFile)(process.execPath, ['-e', script], { timeout: 30_000 })
  await assert.rejects(ended, { code: 7 })
})
