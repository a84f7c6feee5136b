/** What tests of src/sys share. */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { test as nodeTest, type TestContext } from 'node:test'
import { whyUnavailable } from '../../src/sys/available.ts'
import { headers, layouts } from '../../src/sys/layouts.ts'
import { accept4, check, close, getsockopt, poll } from '../../src/sys/libc.ts'
import { type BoundSocket, listenTcp } from '../../src/sys/sockets.ts'

const why = await whyUnavailable()

/** node:test's, skipped where Linux' socket API cannot be called. */
export const test = (name: string, body: (t: TestContext) => void | Promise<void>) =>
  nodeTest(name, { skip: why ?? false, timeout: 30_000 }, body)

export const families = [
  { address: '127.0.0.1', family: headers.AF_INET, type: 'udp4' },
  { address: '::1', family: headers.AF_INET6, type: 'udp6' },
] as const

/** The descriptor that a call gave, closed when the test ends. */
export function owned(t: TestContext, outcome: number): number {
  const fd = check(outcome, 'a call that makes a descriptor')
  t.after(() => close(fd))
  return fd
}

/** `listenTcp` or `bindUdp`, closed when the test ends. */
export function ownedBound(t: TestContext, bound: BoundSocket): BoundSocket {
  owned(t, bound.fd)
  return bound
}

/** A `struct pollfd` for each descriptor. */
export function pollFor(...fds: readonly number[]): Buffer {
  const { size, at } = layouts.pollfd
  const asked = Buffer.alloc(size * fds.length)
  fds.forEach((fd, i) => {
    asked.writeInt32LE(fd, i * size + at.fd)
    asked.writeInt16LE(headers.POLLIN, i * size + at.events)
  })
  return asked
}

export const option = (fd: number, level: number, name: number): number => {
  const value = new Int32Array(1)
  check(getsockopt(fd, level, name, value, Uint32Array.of(4)), 'getsockopt')
  return value[0]!
}

/** A client of node:net. It is half open, as it ends when the test says so. */
export async function clientOf(t: TestContext, { address }: Pick<BoundSocket, 'address'>): Promise<Socket> {
  const client = connect({ port: address.port, host: address.address, allowHalfOpen: true })
  t.after(() => client.destroy())
  await once(client, 'connect')
  return client
}

/** A connection: our blocking end, and a client of node:net. */
export async function connection(t: TestContext, address = '127.0.0.1') {
  const listener = ownedBound(t, listenTcp({ address, port: 0 }))
  const client = await clientOf(t, listener)
  poll(pollFor(listener.fd), 1, 10_000)
  return { fd: owned(t, accept4(listener.fd, headers.SOCK_CLOEXEC)), client, listener }
}
