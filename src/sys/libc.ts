/**
 * The Linux socket API, called through koffi: typed, and nothing added. Each call returns what the kernel
 * returns: a number of 0 or more, or the negative errno, from which `check` makes an Error. The other files
 * of this folder call FFI through this one. While a call blocks, no timer and no signal handler runs in its
 * thread.
 */
import { getSystemErrorName } from 'node:util'
import koffi from 'koffi'
import type { SocketAddress } from '../address.ts'
import { headers } from './layouts.ts'

/**
 * In C. `ssize_t` is int64_t on both architectures. A pointer is a Buffer, a typed array, or null for NULL.
 */
const prototypes = {
  socket: 'int socket(int domain, int type, int protocol)',
  bind: 'int bind(int fd, const void *address, uint32_t length)',
  listen: 'int listen(int fd, int backlog)',
  accept4: 'int accept4(int fd, void *address, void *length, int flags)',
  getsockname: 'int getsockname(int fd, void *address, void *length)',
  setsockopt: 'int setsockopt(int fd, int level, int name, const void *value, uint32_t length)',
  getsockopt: 'int getsockopt(int fd, int level, int name, void *value, void *length)',
  recv: 'int64_t recv(int fd, void *buffer, size_t length, int flags)',
  send: 'int64_t send(int fd, const void *buffer, size_t length, int flags)',
  recvfrom: 'int64_t recvfrom(int fd, void *buffer, size_t length, int flags, void *peer, void *peerLength)',
  sendto:
    'int64_t sendto(int fd, const void *buffer, size_t length, int flags, const void *peer, uint32_t peerLength)',
  recvmmsg: 'int recvmmsg(int fd, void *messages, uint32_t count, int flags, void *timeout)',
  sendmmsg: 'int sendmmsg(int fd, void *messages, uint32_t count, int flags)',
  poll: 'int poll(void *fds, unsigned long count, int timeoutMs)',
  epoll_create1: 'int epoll_create1(int flags)',
  epoll_ctl: 'int epoll_ctl(int epoll, int operation, int fd, void *event)',
  epoll_wait: 'int epoll_wait(int epoll, void *events, int count, int timeoutMs)',
  eventfd: 'int eventfd(uint32_t initial, int flags)',
  shutdown: 'int shutdown(int fd, int how)',
  if_nametoindex: 'uint32_t if_nametoindex(const char *name)',
  close: 'int close(int fd)',
  fcntl: 'int fcntl(int fd, int command, ...)',
} as const

type Octets = NodeJS.ArrayBufferView
type Argument = number | Octets | string | null | readonly (string | null)[]
type Calls<N extends string> = Readonly<Record<N, (...args: readonly Argument[]) => number>>

/**
 * C functions by their prototypes. They are bound at the first call, so that importing a file binds nothing.
 */
export function lazily<const N extends string>(prototypes: Readonly<Record<N, string>>): () => Calls<N> {
  let bound: Calls<N> | undefined
  return () => {
    if (bound) return bound
    const library = koffi.load(null)
    const table = Object.entries<string>(prototypes).map(([name, prototype]) => [
      name,
      library.func(prototype),
    ])
    bound = Object.fromEntries(table) as Calls<N>
    return bound
  }
}

const calls = lazily(prototypes)

/** Binds the functions now. Otherwise the first call does. */
export const bindCalls = (): void => void calls()

const result = (returned: number): number => (returned === -1 ? -koffi.errno() : returned)

/** socket(2): a new descriptor. */
export const socket = (domain: number, type: number): number => result(calls().socket(domain, type, 0))
/** bind(2). */
export const bind = (fd: number, address: Octets): number =>
  result(calls().bind(fd, address, address.byteLength))
/** listen(2). */
export const listen = (fd: number, backlog: number): number => result(calls().listen(fd, backlog))
/** accept4(2), without the peer's address: a new descriptor. */
export const accept4 = (fd: number, flags: number): number => result(calls().accept4(fd, null, null, flags))
/** getsockname(2): `length` holds the size of `address`, then the octets used. */
export const getsockname = (fd: number, address: Octets, length: Uint32Array): number =>
  result(calls().getsockname(fd, address, length))
/** setsockopt(2). */
export const setsockopt = (fd: number, level: number, name: number, value: Octets): number =>
  result(calls().setsockopt(fd, level, name, value, value.byteLength))
/** getsockopt(2): `length` holds the size of `value`, then the octets used. */
export const getsockopt = (
  fd: number,
  level: number,
  name: number,
  value: Octets,
  length: Uint32Array,
): number => result(calls().getsockopt(fd, level, name, value, length))
/** recv(2): octets received, 0 at the end of a stream. */
export const recv = (fd: number, buffer: Octets, flags: number): number =>
  result(calls().recv(fd, buffer, buffer.byteLength, flags))
/** send(2) of the first `length` octets: how many the kernel took. It never raises SIGPIPE. */
export const send = (fd: number, buffer: Octets, length: number, flags: number): number =>
  result(calls().send(fd, buffer, length, flags | headers.MSG_NOSIGNAL))
/** recvfrom(2): octets of one datagram; `peerLength` holds the size of `peer`, then the octets used. */
export const recvfrom = (
  fd: number,
  buffer: Octets,
  flags: number,
  peer: Octets,
  peerLength: Uint32Array,
): number => result(calls().recvfrom(fd, buffer, buffer.byteLength, flags, peer, peerLength))
/** sendto(2) of the first `length` octets to the first `peerLength` octets of `peer`. */
export const sendto = (
  fd: number,
  buffer: Octets,
  length: number,
  flags: number,
  peer: Octets,
  peerLength: number,
): number => result(calls().sendto(fd, buffer, length, flags, peer, peerLength))
/** recvmmsg(2) into up to `count` struct mmsghdr: how many datagrams. */
export const recvmmsg = (fd: number, messages: Octets, count: number, flags: number): number =>
  result(calls().recvmmsg(fd, messages, count, flags, null))
/** sendmmsg(2) of the first `count` struct mmsghdr: how many were sent. */
export const sendmmsg = (fd: number, messages: Octets, count: number, flags: number): number =>
  result(calls().sendmmsg(fd, messages, count, flags))
/** poll(2) on the first `count` struct pollfd: how many are ready; -1 ms waits forever. */
export const poll = (fds: Octets, count: number, timeoutMs: number): number =>
  result(calls().poll(fds, count, timeoutMs))
/** epoll_create1(2): a new descriptor. */
export const epollCreate = (flags: number): number => result(calls().epoll_create1(flags))
/** epoll_ctl(2); `event` is a struct epoll_event. */
export const epollCtl = (epoll: number, operation: number, fd: number, event: Octets | null): number =>
  result(calls().epoll_ctl(epoll, operation, fd, event))
/** epoll_wait(2) into up to `count` struct epoll_event: how many are ready; -1 ms waits forever. */
export const epollWait = (epoll: number, events: Octets, count: number, timeoutMs: number): number =>
  result(calls().epoll_wait(epoll, events, count, timeoutMs))
/** eventfd(2): a new descriptor; read and write it with node:fs. */
export const eventfd = (initial: number, flags: number): number => result(calls().eventfd(initial, flags))
/** shutdown(2). */
export const shutdown = (fd: number, how: number): number => result(calls().shutdown(fd, how))
/** if_nametoindex(3): the index of a network interface, 0 when no interface has that name. */
export const interfaceIndex = (name: string): number => calls().if_nametoindex(name)
/** close(2). */
export const close = (fd: number): number => result(calls().close(fd))
/** fcntl(2) F_DUPFD_CLOEXEC: another descriptor of the same open file. */
export const dup = (fd: number): number => result(calls().fcntl(fd, headers.F_DUPFD_CLOEXEC, 'int', 0))
/** fcntl(2) F_SETFL: clears O_NONBLOCK, also for every process that shares the open file. */
export function setBlocking(fd: number): number {
  const { F_GETFL, F_SETFL, O_NONBLOCK } = headers
  const flags = result(calls().fcntl(fd, F_GETFL, 'int', 0))
  return flags < 0 ? flags : result(calls().fcntl(fd, F_SETFL, 'int', flags & ~O_NONBLOCK))
}
/** fcntl(2) F_SETFD: programs that this process starts do not inherit the descriptor. */
export const closeOnExec = (fd: number): number =>
  result(calls().fcntl(fd, headers.F_SETFD, 'int', headers.FD_CLOEXEC))

/**
 * Returns `outcome`, or throws for a negative one, as Node does: `code`, `errno`, `syscall`, `address` and
 * `port`.
 */
export function check(outcome: number, syscall: string, where?: SocketAddress): number {
  if (outcome >= 0) return outcome
  const code = getSystemErrorName(outcome)
  // A path has no port.
  const place = where ? ` ${where.address}${where.address.startsWith('/') ? '' : `:${where.port}`}` : ''
  throw Object.assign(new Error(`${syscall} ${code}${place}`), { errno: outcome, code, syscall, ...where })
}
