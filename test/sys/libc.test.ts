import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { on, once } from 'node:events'
import { existsSync, readSync, writeSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Server } from 'node:net'
import { constants } from 'node:os'
import type { TestContext } from 'node:test'
import { Worker } from 'node:worker_threads'
import koffi from 'koffi'
import type { SocketAddress } from '../../src/address.ts'
import { epollEvent, headers, layouts } from '../../src/sys/layouts.ts'
import * as libc from '../../src/sys/libc.ts'
import { bindUdp, encodeAddress, errno, portOfEncoded, prepareConnection } from '../../src/sys/sockets.ts'
import { connection, families, option, owned, ownedBound, pollFor, test } from './kernel.ts'
import { startThread } from './thread.ts'

const { SOL_SOCKET, IPPROTO_TCP, SOCK_STREAM, SOCK_DGRAM, SOCK_CLOEXEC, MSG_DONTWAIT } = headers
const LIMIT_MS = 10_000

/** Our blocking UDP socket, and as many of Node's; what Node sends is in our queue once `tell` resolves. */
async function datagrams(t: TestContext, address: string, type: 'udp4' | 'udp6', clients = 1) {
  const { fd, address: where } = ownedBound(t, bindUdp({ address, port: 0 }, 1_000_000))
  prepareConnection(fd, LIMIT_MS)
  const peers = Array.from({ length: clients }, async () => {
    const socket = createSocket(type)
    t.after(() => socket.close())
    await once(socket.bind(0, address), 'listening')
    const received = on(socket, 'message')
    return {
      socket,
      address: socket.address(),
      tell: (text: string) =>
        new Promise<void>((resolve, reject) =>
          socket.send(text, where.port, where.address, error => (error ? reject(error) : resolve())),
        ),
      hear: async () => {
        const [message, { address, port }] = (await received.next()).value as [Buffer, SocketAddress]
        assert.deepEqual({ address, port }, where)
        return String(message)
      },
    }
  })
  return { fd, where, peers: await Promise.all(peers) }
}

for (const { address, family, type } of families) {
  test(`a connection over ${address} from socket(2) to close(2)`, async t => {
    const listener = owned(t, libc.socket(family, SOCK_STREAM | SOCK_CLOEXEC))
    assert.equal(libc.bind(listener, encodeAddress({ address, port: 0 })), 0)
    assert.equal(option(listener, SOL_SOCKET, headers.SO_ACCEPTCONN), 0)
    assert.equal(libc.listen(listener, 5), 0)
    assert.equal(option(listener, SOL_SOCKET, headers.SO_ACCEPTCONN), 1)
    const named = Buffer.alloc(64)
    const length = Uint32Array.of(named.length)
    assert.equal(libc.getsockname(listener, named, length), 0)
    const port = portOfEncoded(named)
    assert.ok(port > 0)
    assert.deepEqual(named.subarray(0, length[0]), encodeAddress({ address, port }))

    const client = connect({ port, host: address, allowHalfOpen: true })
    t.after(() => client.destroy())
    await once(client, 'connect')
    const fd = libc.accept4(listener, SOCK_CLOEXEC)
    prepareConnection(fd, LIMIT_MS)
    const buffer = Buffer.alloc(16)
    client.write('hello')
    assert.equal(libc.recv(fd, buffer, 0), 5)
    assert.equal(buffer.toString('utf8', 0, 5), 'hello')
    assert.equal(libc.send(fd, Buffer.from('reply, of which a part'), 5, 0), 5)
    assert.equal(String((await once(client, 'data'))[0]), 'reply')
    assert.equal(libc.recv(fd, buffer, MSG_DONTWAIT), errno('EAGAIN'))
    assert.equal(libc.shutdown(fd, headers.SHUT_WR), 0)
    await once(client, 'end')
    await once(client.end('bye'), 'finish')
    assert.equal(libc.recv(fd, buffer, 0), 3)
    assert.equal(libc.recv(fd, buffer, 0), 0)
    assert.equal(libc.close(fd), 0)
  })

  test(`datagrams over ${address}: their lengths, the empty one too, and their peers`, async t => {
    const { fd, peers } = await datagrams(t, address, type)
    const { tell, hear, address: from } = peers[0]!
    const buffer = Buffer.alloc(65_536)
    const peer = Buffer.alloc(layouts.sockaddr_in6.size)
    for (const text of ['hello', '', 'x'.repeat(60_000)]) {
      await tell(text)
      const length = Uint32Array.of(peer.length)
      assert.equal(libc.recvfrom(fd, buffer, 0, peer, length), text.length)
      assert.equal(buffer.toString('utf8', 0, text.length), text)
      assert.deepEqual(peer.subarray(0, length[0]), encodeAddress(from))
      assert.equal(libc.sendto(fd, buffer, text.length, 0, peer, length[0]!), text.length)
      assert.equal(await hear(), text)
    }
    const none = libc.recvfrom(fd, buffer, MSG_DONTWAIT, peer, Uint32Array.of(peer.length))
    assert.equal(none, errno('EAGAIN'))
  })

  test(`batches of datagrams over ${address} for several peers`, async t => {
    const { fd, peers } = await datagrams(t, address, type, 2)
    const room = 2000
    const sent = ['one', '', 'x'.repeat(1400), 'y'.repeat(room), 'z'.repeat(room + 7)]
    for (const [i, text] of sent.entries()) await peers[i % 2]!.tell(text)

    const { messages, slots } = makeBatch(8, room)
    const { size, at } = layouts.mmsghdr
    assert.equal(libc.recvmmsg(fd, messages, 2, 0), 2)
    assert.equal(libc.recvmmsg(fd, messages.subarray(2 * size), 6, MSG_DONTWAIT), 3)
    assert.equal(libc.recvmmsg(fd, messages.subarray(5 * size), 3, MSG_DONTWAIT), errno('EAGAIN'))
    const MSG_TRUNC = 0x20
    for (const [i, text] of sent.entries()) {
      const { data, peer, header, vector } = slots[i]!
      const length = header.readUInt32LE(at.msg_len)
      assert.equal(data.toString('utf8', 0, length), text.slice(0, room))
      assert.equal(header.readInt32LE(at['msg_hdr.msg_flags']), text.length > room ? MSG_TRUNC : 0)
      const from = peer.subarray(0, header.readUInt32LE(at['msg_hdr.msg_namelen']))
      assert.deepEqual(from, encodeAddress(peers[i % 2]!.address))
      vector.writeBigUInt64LE(BigInt(length), layouts.iovec.at.iov_len)
    }

    assert.equal(libc.sendmmsg(fd, messages, sent.length, 0), sent.length)
    for (const [i, text] of sent.entries()) assert.equal(await peers[i % 2]!.hear(), text.slice(0, room))
  })
}

/** `count` struct mmsghdr, each with room for a datagram and its peer's address. */
function makeBatch(count: number, room: number) {
  const { mmsghdr, iovec, sockaddr_in6 } = layouts
  const messages = Buffer.alloc(count * mmsghdr.size)
  const slots = Array.from({ length: count }, (_, i) => {
    const data = Buffer.alloc(room)
    const peer = Buffer.alloc(sockaddr_in6.size)
    const vector = Buffer.alloc(iovec.size)
    const header = messages.subarray(i * mmsghdr.size, (i + 1) * mmsghdr.size)
    vector.writeBigUInt64LE(koffi.address(data), iovec.at.iov_base)
    vector.writeBigUInt64LE(BigInt(room), iovec.at.iov_len)
    header.writeBigUInt64LE(koffi.address(peer), mmsghdr.at['msg_hdr.msg_name'])
    header.writeUInt32LE(peer.length, mmsghdr.at['msg_hdr.msg_namelen'])
    header.writeBigUInt64LE(koffi.address(vector), mmsghdr.at['msg_hdr.msg_iov'])
    header.writeBigUInt64LE(1n, mmsghdr.at['msg_hdr.msg_iovlen'])
    return { data, peer, vector, header }
  })
  return { messages, slots }
}

test('options are set and read back', t => {
  const fd = owned(t, libc.socket(headers.AF_INET, SOCK_STREAM | SOCK_CLOEXEC))
  assert.equal(option(fd, SOL_SOCKET, headers.SO_TYPE), SOCK_STREAM)
  for (const wanted of [1, 0]) {
    assert.equal(libc.setsockopt(fd, IPPROTO_TCP, headers.TCP_NODELAY, Int32Array.of(wanted)), 0)
    assert.equal(option(fd, IPPROTO_TCP, headers.TCP_NODELAY), wanted)
  }
  const length = Uint32Array.of(2)
  assert.equal(libc.getsockopt(fd, SOL_SOCKET, headers.SO_TYPE, Buffer.alloc(8), length), 0)
  assert.equal(length[0], 2, 'no more than there is room for')
})

test('dup gives another descriptor of the same open file', async t => {
  const { fd, client } = await connection(t)
  const other = libc.dup(fd)
  assert.notEqual(other, fd)
  assert.equal(libc.send(other, Buffer.from('hello'), 5, 0), 5)
  assert.equal(libc.close(other), 0)
  assert.equal(String((await once(client, 'data'))[0]), 'hello')
  assert.equal(libc.send(fd, Buffer.from('still there'), 11, 0), 11)
  assert.equal(String((await once(client, 'data'))[0]), 'still there')
})

test('an eventfd counts what node:fs writes, until it is read', t => {
  const fd = owned(t, libc.eventfd(3, headers.EFD_NONBLOCK | headers.EFD_CLOEXEC))
  assert.equal(writeSync(fd, BigUint64Array.of(4n)), 8)
  const count = new BigUint64Array(1)
  assert.equal(readSync(fd, count), 8)
  assert.equal(count[0], 7n)
  assert.throws(() => readSync(fd, count), { code: 'EAGAIN' })
})

test('poll says which of several descriptors are ready, and why', async t => {
  const { fd, client } = await connection(t)
  const event = owned(t, libc.eventfd(0, headers.EFD_CLOEXEC))
  const asked = pollFor(event, fd)
  const { size, at } = layouts.pollfd
  const answers = () => [0, 1].map(i => asked.readInt16LE(i * size + at.revents))
  const { POLLIN, POLLERR, POLLHUP } = headers
  assert.equal(libc.poll(asked, 2, 0), 0)
  writeSync(event, BigUint64Array.of(1n))
  assert.equal(libc.poll(asked, 2, LIMIT_MS), 1)
  assert.deepEqual(answers(), [POLLIN, 0])
  client.resetAndDestroy()
  assert.equal(libc.poll(asked.subarray(size), 1, LIMIT_MS), 1)
  assert.equal(libc.poll(asked, 1, LIMIT_MS), 1, 'only the first is asked for')
  assert.deepEqual(answers(), [POLLIN, POLLIN | POLLERR | POLLHUP])
})

test('epoll keeps a set of descriptors and says which are ready', t => {
  const { EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLLIN, EPOLL_CLOEXEC } = headers
  const { size, at } = epollEvent(process.arch)
  const epoll = owned(t, libc.epollCreate(EPOLL_CLOEXEC))
  const [one, two] = [1, 1].map(count => owned(t, libc.eventfd(count, headers.EFD_CLOEXEC)))
  const event = (data: bigint, events: number = EPOLLIN) => {
    const encoded = Buffer.alloc(size)
    encoded.writeUInt32LE(events, at.events)
    encoded.writeBigUInt64LE(data, at.data)
    return encoded
  }
  const ready = (room = 4) => {
    const events = Buffer.alloc(4 * size)
    const count = libc.epollWait(epoll, events, room, 0)
    return Array.from({ length: count }, (_, i) => {
      assert.equal(events.readUInt32LE(i * size + at.events!), EPOLLIN)
      return events.readBigUInt64LE(i * size + at.data!)
    }).sort()
  }
  const big = 0xfedc_ba98_7654_3210n
  assert.deepEqual(ready(), [])
  assert.equal(libc.epollCtl(epoll, EPOLL_CTL_ADD, one!, event(1n)), 0)
  assert.equal(libc.epollCtl(epoll, EPOLL_CTL_ADD, two!, event(big)), 0)
  assert.equal(libc.epollCtl(epoll, EPOLL_CTL_ADD, two!, event(2n)), errno('EEXIST'))
  assert.deepEqual(ready(), [1n, big])
  assert.equal(ready(1).length, 1)
  assert.equal(libc.epollCtl(epoll, EPOLL_CTL_MOD, two!, event(2n, 0)), 0)
  assert.deepEqual(ready(), [1n])
  assert.equal(libc.epollCtl(epoll, EPOLL_CTL_DEL, one!, null), 0)
  assert.equal(libc.epollCtl(epoll, EPOLL_CTL_DEL, one!, null), errno('ENOENT'))
  assert.deepEqual(ready(), [])
})

test('each call that fails gives the negative errno', () => {
  const some = Buffer.alloc(64)
  const room = Uint32Array.of(64)
  const failures: Record<
    Exclude<keyof typeof libc, 'check' | 'interfaceIndex' | 'bindCalls' | 'lazily'>,
    readonly [number, Parameters<typeof errno>[0]]
  > = {
    socket: [libc.socket(999, SOCK_DGRAM), 'EAFNOSUPPORT'],
    bind: [libc.bind(-1, some), 'EBADF'],
    listen: [libc.listen(-1, 1), 'EBADF'],
    accept4: [libc.accept4(-1, 0), 'EBADF'],
    getsockname: [libc.getsockname(-1, some, room), 'EBADF'],
    setsockopt: [libc.setsockopt(-1, 1, 1, some), 'EBADF'],
    getsockopt: [libc.getsockopt(-1, 1, 1, some, room), 'EBADF'],
    recv: [libc.recv(-1, some, 0), 'EBADF'],
    send: [libc.send(-1, some, 1, 0), 'EBADF'],
    recvfrom: [libc.recvfrom(-1, some, 0, some, room), 'EBADF'],
    sendto: [libc.sendto(-1, some, 1, 0, some, 16), 'EBADF'],
    recvmmsg: [libc.recvmmsg(-1, some, 1, 0), 'EBADF'],
    sendmmsg: [libc.sendmmsg(-1, some, 1, 0), 'EBADF'],
    poll: [libc.poll(some, 2 ** 31, 0), 'EINVAL'],
    epollCreate: [libc.epollCreate(1), 'EINVAL'],
    epollCtl: [libc.epollCtl(-1, headers.EPOLL_CTL_ADD, 0, some), 'EBADF'],
    epollWait: [libc.epollWait(-1, some, 1, 0), 'EBADF'],
    eventfd: [libc.eventfd(0, 0o777), 'EINVAL'],
    shutdown: [libc.shutdown(-1, headers.SHUT_RDWR), 'EBADF'],
    close: [libc.close(-1), 'EBADF'],
    dup: [libc.dup(-1), 'EBADF'],
    setBlocking: [libc.setBlocking(-1), 'EBADF'],
    closeOnExec: [libc.closeOnExec(-1), 'EBADF'],
  }
  assert.equal(libc.interfaceIndex('nosuch'), 0)
  for (const [name, [outcome, code]] of Object.entries(failures)) assert.equal(outcome, errno(code), name)
  assert.deepEqual(
    Object.keys(failures).sort(),
    Object.keys(libc)
      .filter(name => !['check', 'interfaceIndex', 'bindCalls', 'lazily'].includes(name))
      .sort(),
  )
})

test('the errno is that of the call, whatever the engine does meanwhile', t => {
  const { fd } = ownedBound(t, bindUdp({ address: '127.0.0.1', port: 0 }, 100_000))
  const kept: unknown[] = []
  for (let i = 0; i < 100_000; i++) {
    if (libc.recv(fd, Buffer.allocUnsafeSlow(64), MSG_DONTWAIT) !== errno('EAGAIN')) assert.fail(`call ${i}`)
    if (i % 1000 === 0) kept.push(new ArrayBuffer(100_000))
  }
  assert.equal(kept.length, 100)
})

const portOf = (server: Server) => (server.address() as AddressInfo).port

/** All of an error but its message and stack. */
const anatomy = (error: Error) => ({
  prototype: Object.getPrototypeOf(error),
  own: Object.getOwnPropertyNames(error).sort(),
  ...error,
})

function thrown(
  outcome: number,
  ...rest: [syscall: string, where?: { address: string; port: number }]
): Error {
  try {
    libc.check(outcome, ...rest)
  } catch (error) {
    return error as Error
  }
  throw assert.fail('did not throw')
}

test('check gives what is no error as it is', () => {
  for (const outcome of [0, 1, 2 ** 40]) assert.equal(libc.check(outcome, 'recv'), outcome)
})

for (const { address, type } of families)
  test(`check throws what node:dgram and node:net throw for the same failure on ${address}`, async t => {
    const taken = ownedBound(t, bindUdp({ address, port: 0 }, 100_000)).address
    const socket = createSocket(type)
    t.after(() => socket.close())
    socket.bind({ ...taken, exclusive: true })
    const [dgrams] = (await once(socket, 'error')) as [Error]
    const ours = thrown(errno('EADDRINUSE'), 'bind', taken)
    assert.equal(ours.message, dgrams.message)
    assert.deepEqual(anatomy(ours), anatomy(dgrams))

    const server = createServer().listen(0, address)
    await once(server, 'listening')
    t.after(() => server.close())
    const port = portOf(server)
    const [nets] = (await once(createServer().listen(port, address), 'error')) as [Error]
    assert.deepEqual(anatomy(thrown(errno('EADDRINUSE'), 'listen', { address, port })), anatomy(nets))
  })

test('check throws what node:net throws of a connection that was reset, without an address', async t => {
  const server = createServer(socket => socket.once('data', () => socket.resetAndDestroy()))
  t.after(() => server.close())
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const client = connect(portOf(server), '127.0.0.1')
  client.write('reset me')
  const [nodes] = (await once(client, 'error')) as [Error]
  const ours = thrown(errno('ECONNRESET'), 'read')
  assert.equal(ours.message, nodes.message)
  assert.deepEqual(anatomy(ours), anatomy(nodes))
})

test('calls on a prepared connection give up after their slice', async t => {
  const { fd } = await connection(t)
  const sliceMs = 60
  prepareConnection(fd, sliceMs)
  const buffer = Buffer.alloc(1 << 20)
  const givesUp = (limit: number, call: () => number) => {
    const slice = Buffer.alloc(layouts.timeval.size)
    libc.getsockopt(fd, SOL_SOCKET, limit, slice, Uint32Array.of(slice.length))
    assert.notDeepEqual(slice, Buffer.alloc(slice.length), 'or it would wait for ever')
    const begin = performance.now()
    while (call() > 0);
    assert.equal(call(), errno('EAGAIN'))
    // In jiffies, which may be a little short.
    assert.ok(performance.now() - begin > sliceMs * 0.8)
  }
  givesUp(headers.SO_RCVTIMEO, () => libc.recv(fd, buffer, 0))
  givesUp(headers.SO_SNDTIMEO, () => libc.send(fd, buffer, buffer.length, 0))
})

test('a peer that is gone gives ECONNRESET, then EPIPE', async t => {
  const { fd, client } = await connection(t)
  prepareConnection(fd, LIMIT_MS)
  client.resetAndDestroy()
  assert.equal(libc.recv(fd, Buffer.alloc(8), 0), errno('ECONNRESET'))
  assert.equal(libc.send(fd, Buffer.alloc(8), 8, 0), errno('EPIPE'))
})

test('a send that fails never ends the process with SIGPIPE', () => {
  // Node ignores SIGPIPE; with its default action, a plain send(2) shows that the failure is one that would.
  const attempt = (send: string) =>
    spawnSync(
      process.execPath,
      [
        '--input-type=module',
        '-e',
        `import koffi from ${JSON.stringify(import.meta.resolve('koffi'))}
        import * as libc from ${JSON.stringify(import.meta.resolve('../../src/sys/libc.ts'))}
        const library = koffi.load(null)
        library.func('void *signal(int number, void *action)')(${constants.signals.SIGPIPE}, null)
        const plain = library.func('int64_t send(int fd, const void *buffer, size_t length, int flags)')
        const unconnected = libc.socket(${headers.AF_INET}, ${SOCK_STREAM})
        console.log(Number(${send}(unconnected, Buffer.alloc(8), 8, 0)))`,
      ],
      { encoding: 'utf8' },
    )
  assert.equal(attempt('plain').signal, 'SIGPIPE')
  const { signal, status, stdout, stderr } = attempt('libc.send')
  assert.deepEqual([signal, status, stdout], [null, 0, `${errno('EPIPE')}\n`], stderr)
})

test('a thread blocked in recvfrom is woken by shutdown(2), by a message from nobody', async t => {
  if (!existsSync('/proc/self/syscall')) return t.skip('no /proc/PID/syscall')
  const { fd } = await datagrams(t, '127.0.0.1', 'udp4')
  const peer = new Uint8Array(layouts.sockaddr_in6.size)
  const call = await startThread(t).enter('recvfrom', fd, new Uint8Array(64), 0, peer, Uint32Array.of(28))
  // The kernel does as it is told, and says that there was no connection.
  assert.equal(libc.shutdown(fd, headers.SHUT_RD), errno('ENOTCONN'))
  const { outcome, args } = await call.returned
  assert.equal(outcome, 0)
  assert.equal(args[4][0], 0)
})

test('after shutdown(2) what waits is still received, an empty datagram too', async t => {
  if (!existsSync('/proc/self/syscall')) return t.skip('no /proc/PID/syscall')
  const bound = () => ownedBound(t, bindUdp({ address: '127.0.0.1', port: 0 }, 100_000))
  const [{ fd, address }, peer] = [bound(), bound()]
  const from = Buffer.alloc(layouts.sockaddr_in6.size)
  const call = await startThread(t).enter('recvfrom', fd, Buffer.alloc(64), 0, from, Uint32Array.of(28))
  const to = encodeAddress(address)
  for (const text of ['one', '', 'three'])
    assert.equal(libc.sendto(peer!.fd, Buffer.from(text), text.length, 0, to, to.length), text.length)
  libc.shutdown(fd, headers.SHUT_RD)
  const { outcome, args } = await call.returned
  const received = [[outcome, args[4][0]]]
  for (let i = 0; i < 3; i++) {
    const length = Uint32Array.of(from.length)
    received.push([libc.recvfrom(fd, Buffer.alloc(64), 0, from, length), length[0]])
  }
  const fromPeer = layouts.sockaddr_in.size
  assert.deepEqual(received, [
    [3, fromPeer],
    [0, fromPeer],
    [5, fromPeer],
    [0, 0],
  ])
})

test('a thread blocked in poll or epoll_wait is woken through an eventfd', async t => {
  if (!existsSync('/proc/self/syscall')) return t.skip('no /proc/PID/syscall')
  const thread = startThread(t)
  const event = owned(t, libc.eventfd(0, headers.EFD_CLOEXEC))
  const epoll = owned(t, libc.epollCreate(headers.EPOLL_CLOEXEC))
  const { size, at } = epollEvent(process.arch)
  const interest = Buffer.alloc(size)
  interest.writeUInt32LE(headers.EPOLLIN, at.events)
  assert.equal(libc.epollCtl(epoll, headers.EPOLL_CTL_ADD, event, interest), 0)
  for (const enter of [
    () => thread.enter('poll', pollFor(event), 1, LIMIT_MS),
    () => thread.enter('epollWait', epoll, Buffer.alloc(size), 1, LIMIT_MS),
  ]) {
    const { returned } = await enter()
    writeSync(event, BigUint64Array.of(1n))
    assert.equal((await returned).outcome, 1)
    readSync(event, new BigUint64Array(1))
  }
})

test('a signal handler interrupts what blocks: EINTR', async t => {
  const handler = () => {}
  process.on('SIGWINCH', handler)
  // Again and again, since nobody can tell when the main thread is in the call.
  const code = `setInterval(() => process.kill(process.pid, 'SIGWINCH'), 10)`
  const signaller = new Worker(code, { eval: true })
  t.after(async () => {
    await signaller.terminate()
    process.off('SIGWINCH', handler)
  })
  await once(signaller, 'online')
  const { fd } = await connection(t)
  // With a time limit recv(2) is not restarted, signal(7).
  prepareConnection(fd, LIMIT_MS)
  assert.equal(libc.poll(pollFor(fd), 1, LIMIT_MS), errno('EINTR'))
  assert.equal(libc.recv(fd, Buffer.alloc(8), 0), errno('EINTR'))
})
