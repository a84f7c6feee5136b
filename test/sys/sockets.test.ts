import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { connect } from 'node:net'
import { constants, networkInterfaces } from 'node:os'
import { isIpv6, type SocketAddress } from '../../src/address.ts'
import { headers, layouts } from '../../src/sys/layouts.ts'
import * as libc from '../../src/sys/libc.ts'
import {
  bindUdp,
  encodeAddress,
  errno,
  listenTcp,
  portOfEncoded,
  prepareConnection,
  queued,
} from '../../src/sys/sockets.ts'
import { freePort } from '../support/ports.ts'
import { until } from '../support/until.ts'
import { clientOf, connection, families, option, owned, ownedBound, pollFor, test } from './kernel.ts'

const { SOL_SOCKET, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_STREAM, AF_INET, AF_INET6 } = headers
const familyOf = (address: string) => (isIpv6(address) ? AF_INET6 : AF_INET)

/** Addresses in all their forms, and what Node calls them. */
const texts: Record<string, string> = {
  '127.0.0.1': '127.0.0.1',
  'fe80::1%lo': 'fe80::1%lo',
  '127.255.254.9': '127.255.254.9',
  '203.0.113.200': '203.0.113.200',
  '::1': '::1',
  '0:0:0:0:0:0:0:1': '::1',
  '0000:0000:0000:0000:0000:0000:0000:0001': '::1',
  '::0:1': '::1',
  '2001:db8::': '2001:db8::',
  '2001:db8::1': '2001:db8::1',
  '2001:DB8::ABCD:EF': '2001:db8::abcd:ef',
  '2001:0db8:0000:0000:0000:0000:0000:0001': '2001:db8::1',
  '2001:db8:1:2:3:4:5:6': '2001:db8:1:2:3:4:5:6',
  '2001:db8:1:2:3:4:5::': '2001:db8:1:2:3:4:5:0',
  '2001:db8::3:4:5:6:7': '2001:db8:0:3:4:5:6:7',
  '2001:db8:0:0:1::1': '2001:db8::1:0:0:1',
  '64:ff9b::192.0.2.33': '64:ff9b::c000:221',
  '64:ff9b:0:0:0:0:192.0.2.33': '64:ff9b::c000:221',
  '::ffff:127.0.0.1': '::ffff:127.0.0.1',
  '::ffff:7f00:1': '::ffff:127.0.0.1',
  '::FFFF:7F01:0203': '::ffff:127.1.2.3',
  '0:0:0:0:0:ffff:127.0.0.255': '::ffff:127.0.0.255',
  'fe80::1%1': 'fe80::1%lo',
  'fe80::abcd:1%1': 'fe80::abcd:1%lo',
}

test('an encoded address is to the kernel the one that was meant', async t => {
  for (const [text, expected] of Object.entries(texts)) {
    const family = familyOf(text)
    const fd = libc.check(libc.socket(family, SOCK_DGRAM | SOCK_CLOEXEC), 'socket')
    // IP_FREEBIND and IPV6_FREEBIND: addresses may be bound that this machine does not have.
    const [level, name] = family === AF_INET6 ? [headers.IPPROTO_IPV6, 78] : [0, 15]
    libc.check(libc.setsockopt(fd, level, name, Int32Array.of(1)), 'setsockopt')
    assert.equal(libc.bind(fd, encodeAddress({ address: text, port: 0 })), 0, text)
    const socket = createSocket(family === AF_INET6 ? 'udp6' : 'udp4')
    t.after(() => socket.close())
    const listening = once(socket, 'listening')
    socket.bind({ fd })
    await listening
    assert.equal(socket.address().address, expected, text)
  }
})

test('a datagram reaches the address and port that were encoded', async t => {
  for (const [text, where] of [
    ['127.0.0.1', '127.0.0.1'],
    ['127.9.8.7', '127.9.8.7'],
    ['0.0.0.0', '127.0.0.1'],
    ['::1', '::1'],
    ['::', '::1'],
    ['0:0:0:0:0:0:0:0', '::1'],
    ['::ffff:127.0.0.1', '127.0.0.1'],
  ]) {
    const receiver = createSocket(isIpv6(where!) ? 'udp6' : 'udp4')
    t.after(() => receiver.close())
    await once(receiver.bind(0, where), 'listening')
    const { port } = receiver.address()
    const fd = owned(t, libc.socket(familyOf(text!), SOCK_DGRAM | SOCK_CLOEXEC))
    const to = encodeAddress({ address: text!, port })
    const heard = once(receiver, 'message')
    assert.equal(libc.sendto(fd, Buffer.from(text!), text!.length, 0, to, to.length), text!.length, text!)
    assert.equal(String((await heard)[0]), text)
    assert.equal(portOfEncoded(to), port)
  }
})

test('a zone may be the name of an interface', t => {
  const zones = Object.entries(networkInterfaces()).flatMap(([name, addresses = []]) =>
    addresses.flatMap(address => (address.family === 'IPv6' && address.scopeid ? [[name, address]] : [])),
  ) as [string, { scopeid: number }][]
  if (zones.length === 0) return t.skip('no interface with a link-local address')
  for (const [name, { scopeid }] of zones)
    assert.deepEqual(
      encodeAddress({ address: `fe80::1%${name}`, port: 7 }),
      encodeAddress({ address: `fe80::1%${scopeid}`, port: 7 }),
      name,
    )
})

test('every port is encoded in the order of the network', () => {
  for (const port of [0, 1, 255, 256, 5300, 32_768, 65_535])
    for (const { address } of families) assert.equal(portOfEncoded(encodeAddress({ address, port })), port)
})

const opens = {
  listenTcp,
  bindUdp: (wanted: SocketAddress) => bindUdp(wanted, 100_000),
}

for (const [name, open] of Object.entries(opens)) {
  test(`${name} opens one port on IPv4 and IPv6 side by side, and IPv6 alone`, async t => {
    const port = await freePort('127.0.0.1', '::1')
    for (const { address } of families) {
      const { fd, address: bound } = ownedBound(t, open({ address, port }))
      assert.deepEqual(bound, { address, port })
      if (isIpv6(address)) assert.equal(option(fd, headers.IPPROTO_IPV6, headers.IPV6_V6ONLY), 1)
    }
    // Only a socket that is for both families can have it.
    assert.throws(() => open({ address: '::ffff:127.0.0.1', port: 0 }), { code: 'EINVAL', syscall: 'bind' })
  })

  test(`${name} says which port the system chose`, t => {
    for (const { address } of families) {
      const { fd, address: bound } = ownedBound(t, open({ address, port: 0 }))
      assert.equal(bound.address, address)
      const named = Buffer.alloc(encodeAddress(bound).length)
      assert.equal(libc.getsockname(fd, named, Uint32Array.of(named.length)), 0)
      assert.deepEqual(named, encodeAddress(bound))
    }
  })

  test(`${name} that fails throws Node's kind of error and leaves no descriptor`, t => {
    const { address: taken } = ownedBound(t, open({ address: '127.0.0.1', port: 0 }))
    const { address: taken6 } = ownedBound(t, open({ address: '::1', port: 0 }))
    const failures = [
      [taken, 'EADDRINUSE'],
      [taken6, 'EADDRINUSE'],
      [{ address: '203.0.113.7', port: 0 }, 'EADDRNOTAVAIL'],
      [{ address: '2001:db8::7', port: 4242 }, 'EADDRNOTAVAIL'],
    ] as const
    const before = readdirSync('/proc/self/fd')
    for (const [wanted, code] of failures)
      assert.throws(() => open(wanted), {
        name: 'Error',
        message: `bind ${code} ${wanted.address}:${wanted.port}`,
        code,
        errno: -constants.errno[code],
        syscall: 'bind',
        ...wanted,
      })
    assert.deepEqual(readdirSync('/proc/self/fd'), before)
  })
}

/** Whether a process has this descriptor of ours. */
function has(pid: number, fd: number): boolean {
  try {
    return readlinkSync(`/proc/${pid}/fd/${fd}`) === readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    return false
  }
}

test('no descriptor is inherited by a program that is started', async t => {
  const { fd, listener } = await connection(t)
  const closing = {
    listener: listener.fd,
    accepted: fd,
    udp: ownedBound(t, bindUdp({ address: '::1', port: 0 }, 100_000)).fd,
    dup: owned(t, libc.dup(listener.fd)),
    eventfd: owned(t, libc.eventfd(0, headers.EFD_CLOEXEC)),
    epoll: owned(t, libc.epollCreate(headers.EPOLL_CLOEXEC)),
  }
  const inherited = owned(t, libc.socket(AF_INET, SOCK_STREAM))
  const child = spawn('sleep', ['60'])
  t.after(() => child.kill())
  await once(child, 'spawn')
  const pid = child.pid as number
  assert.ok(has(pid, inherited), 'one without the flag is')
  for (const [name, fd] of Object.entries(closing)) {
    assert.ok(has(process.pid, fd), name)
    assert.ok(!has(pid, fd), name)
  }
})

test('a listener does not block; what it accepts does, and a UDP socket', async t => {
  const O_NONBLOCK = headers.SOCK_NONBLOCK
  const blocks = (fd: number) => {
    const [, flags] = /^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8')) ?? []
    return (Number.parseInt(flags!, 8) & O_NONBLOCK) === 0
  }
  const { fd, listener } = await connection(t)
  assert.ok(!blocks(listener.fd))
  assert.equal(libc.accept4(listener.fd, SOCK_CLOEXEC), errno('EAGAIN'))
  assert.ok(blocks(fd))
  assert.ok(blocks(ownedBound(t, bindUdp({ address: '127.0.0.1', port: 0 }, 100_000)).fd))
})

for (const { address } of families)
  test(`queued counts the connections that wait on ${address}`, async t => {
    const listener = ownedBound(t, listenTcp({ address, port: 0 }))
    assert.equal(queued(listener.fd), 0)
    for (let i = 0; i < 5; i++) await clientOf(t, listener)
    await until('five connections wait', () => queued(listener.fd) === 5)
    for (const left of [4, 3, 2, 1, 0]) {
      owned(t, libc.accept4(listener.fd, SOCK_CLOEXEC))
      assert.equal(queued(listener.fd), left)
    }
  })

test('nothing waits where nothing can', t => {
  assert.equal(queued(-1), 0)
  assert.equal(queued(ownedBound(t, bindUdp({ address: '127.0.0.1', port: 0 }, 100_000)).fd), 0)
})

test('a listener has as long a queue as the system allows', t => {
  const allowed = Number(readFileSync('/proc/sys/net/core/somaxconn', 'utf8'))
  const { fd } = ownedBound(t, listenTcp({ address: '127.0.0.1', port: 0 }))
  const info = Buffer.alloc(layouts.tcp_info.size)
  libc.check(
    libc.getsockopt(fd, headers.IPPROTO_TCP, headers.TCP_INFO, info, Uint32Array.of(info.length)),
    'getsockopt',
  )
  // tcpi_sacked is the limit, where tcpi_unacked is the length.
  assert.equal(info.readUInt32LE(layouts.tcp_info.at.tcpi_unacked + 4), Math.min(allowed, 65_535))
})

test('a receive buffer has the size asked for, as far as the system allows', t => {
  const most = Number(readFileSync('/proc/sys/net/core/rmem_max', 'utf8'))
  for (const octets of [50_000, 200_000, 2 ** 30]) {
    const { fd } = ownedBound(t, bindUdp({ address: '127.0.0.1', port: 0 }, octets))
    // The kernel doubles it, for its own bookkeeping, socket(7).
    assert.equal(option(fd, SOL_SOCKET, headers.SO_RCVBUF), 2 * Math.min(octets, most))
  }
})

test('a listener can be opened again while an old connection is in TIME_WAIT', async t => {
  const wanted = { address: '127.0.0.1', port: await freePort('127.0.0.1') }
  const { fd: listener } = listenTcp(wanted)
  const client = connect(wanted.port, wanted.address)
  await once(client, 'connect')
  libc.poll(pollFor(listener), 1, 10_000)
  const fd = libc.check(libc.accept4(listener, SOCK_CLOEXEC), 'accept4')
  libc.close(fd)
  await once(client.resume(), 'close')
  libc.close(listener)
  const careless = owned(t, libc.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC))
  assert.equal(libc.bind(careless, encodeAddress(wanted)), errno('EADDRINUSE'), 'not without SO_REUSEADDR')
  ownedBound(t, listenTcp(wanted))
})

test('a prepared connection has its time limits, keep-alive and no delay', async t => {
  const { fd } = await connection(t)
  prepareConnection(fd, 1250)
  const { timeval } = layouts
  for (const name of [headers.SO_RCVTIMEO, headers.SO_SNDTIMEO]) {
    const slice = Buffer.alloc(timeval.size)
    assert.equal(libc.getsockopt(fd, SOL_SOCKET, name, slice, Uint32Array.of(timeval.size)), 0)
    assert.equal(slice.readBigInt64LE(timeval.at.tv_sec), 1n)
    // Rounded up to a jiffy.
    assert.ok(Math.abs(Number(slice.readBigInt64LE(timeval.at.tv_usec)) - 250_000) <= 10_000)
  }
  assert.equal(option(fd, SOL_SOCKET, headers.SO_KEEPALIVE), 1)
  assert.equal(option(fd, headers.IPPROTO_TCP, headers.TCP_NODELAY), 1)
})

test('a stream that is not TCP can be prepared, and what is no socket cannot', t => {
  prepareConnection(owned(t, libc.socket(headers.AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)), 100)
  const noSocket = owned(t, libc.eventfd(0, headers.EFD_CLOEXEC))
  assert.throws(() => prepareConnection(noSocket, 100), { code: 'ENOTSOCK', syscall: 'setsockopt' })
})
