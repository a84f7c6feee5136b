/**
 * The program of a child process, in blocking calls that a reader of the book recognises line by line: it serves the
 * one connection that it was given (TLPI 60.3, is_echo_sv's handleRequest; made by concurrent.ts), or takes one client
 * after the other from listening sockets that it shares with its siblings (60.4; made by prefork.ts). Compare with
 * iterative-thread.ts.
 */
import type { Protocol } from '../protocols.ts'
import { headers, layouts } from '../sys/layouts.ts'
import { accept4, check, close, poll, recv, send } from '../sys/libc.ts'
import { errno, prepareConnection } from '../sys/sockets.ts'
import { BUSY, type ChildOrders, CONNECTION, CONTROL, FIRST_LISTENER, IDLE } from './orders.ts'

const BUFFER_OCTETS = 64 * 1024
/** A blocking call comes up for air this often, to see whether the parent is still there. */
const SLICE_MS = 1000
/** After which a child without descriptors tries again. */
const PAUSE_MS = 100

const { POLLIN, POLLHUP, SOCK_CLOEXEC } = headers
const pollfd = layouts.pollfd
const EAGAIN = errno('EAGAIN')
const EINTR = errno('EINTR')

/**
 * Answers one client until it ends, nothing moves for `idleMs`, or `abandoned`, which is asked about once a second.
 * The socket blocks; closing it is left to the caller.
 */
export function serveConnection(
  fd: number,
  protocol: Protocol,
  idleMs: number,
  abandoned: () => boolean,
): void {
  prepareConnection(fd, Math.min(SLICE_MS, idleMs))
  const buffer = new Uint8Array(BUFFER_OCTETS)
  let movedAt = performance.now()
  let askedAt = movedAt
  const patiently = (call: () => number): number => {
    for (;;) {
      const outcome = call()
      const now = performance.now()
      const moved = outcome !== EAGAIN && outcome !== EINTR
      if (moved) movedAt = now
      if (now - askedAt >= SLICE_MS) {
        askedAt = now
        if (abandoned()) return EAGAIN
      }
      if (moved) return outcome
      if (now - movedAt >= idleMs) return EAGAIN
    }
  }
  for (;;) {
    const received = patiently(() => recv(fd, buffer, 0))
    if (received <= 0) return
    const reply = protocol.piece(buffer, received)
    for (let sent = 0; sent < reply; ) {
      const rest = buffer.subarray(sent, reply)
      const taken = patiently(() => send(fd, rest, rest.length, 0))
      if (taken < 0) return
      sent += taken
    }
  }
}

/** False when the parent is gone. */
const tell = (state: string) => send(CONTROL, Buffer.from(state), state.length, 0) > 0

/** Takes clients from the listening sockets until the parent says that it is enough, or `maxRequests` were served. */
function serveListeners(protocol: Protocol, { listeners, idleMs, maxRequests }: ChildOrders): void {
  const watched = [CONTROL, ...Array.from({ length: listeners }, (_, i) => FIRST_LISTENER + i)]
  const { fds, ready } = pollSet(watched)
  let idle = false
  for (let served = 0; maxRequests === 0 || served < maxRequests; ) {
    // Once: all that are idle wake up for a client, and only one gets it.
    if (!idle && !tell(IDLE)) return
    idle = true
    const outcome = poll(fds, watched.length, -1)
    if (outcome !== EINTR) check(outcome, 'poll')
    if (ready(0)) return
    // Each in its turn, or a busy address would starve the others.
    const client = acceptFirst(watched, ready, 1 + (served % listeners))
    if (client === undefined) continue
    tell(BUSY)
    idle = false
    serveConnection(client, protocol, idleMs, parentGone)
    close(client)
    served++
  }
}

/** A client of one of the sockets that are ready, looking at `first` first; undefined if siblings were faster. */
function acceptFirst(
  watched: readonly number[],
  ready: (i: number) => boolean,
  first: number,
): number | undefined {
  for (let step = 0; step < watched.length - 1; step++) {
    const i = 1 + ((first - 1 + step) % (watched.length - 1))
    if (!ready(i)) continue
    const client = accept4(watched[i]!, SOCK_CLOEXEC)
    if (client >= 0) return client
    // No descriptors left, or shut down by the parent, which is about to say so: not again at once.
    if (client !== EAGAIN && client !== EINTR) pause(PAUSE_MS)
  }
  return undefined
}

const pause = (ms: number) => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)

function pollSet(watched: readonly number[]): { fds: Uint8Array; ready: (i: number) => boolean } {
  const fds = Buffer.alloc(pollfd.size * watched.length)
  watched.forEach((fd, i) => {
    fds.writeInt32LE(fd, i * pollfd.size + pollfd.at.fd)
    fds.writeInt16LE(POLLIN, i * pollfd.size + pollfd.at.events)
  })
  return { fds, ready: i => fds.readInt16LE(i * pollfd.size + pollfd.at.revents) !== 0 }
}

function parentGone(): boolean {
  const { fds } = pollSet([CONTROL])
  return poll(fds, 1, 0) > 0 && (fds[pollfd.at.revents]! & POLLHUP) !== 0
}

if (import.meta.main) {
  const orders: ChildOrders = JSON.parse(process.argv[2]!)
  const protocol: Protocol = (await import(orders.protocol.module))[orders.protocol.name]
  if (orders.listeners === 0) {
    tell(BUSY)
    serveConnection(CONNECTION, protocol, orders.idleMs, parentGone)
  } else serveListeners(protocol, orders)
}
