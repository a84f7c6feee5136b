/**
 * The program of a child process, in blocking calls that a reader of the book recognises line by line. It
 * serves the one connection that it received (TLPI 60.3, is_echo_sv's handleRequest; started by
 * concurrent.ts), or takes one client after the other from listening sockets that it shares with its siblings
 * (60.4; started by prefork.ts). Compare with iterative-thread.ts.
 */
import { type Clock, systemClock } from '../clock.ts'
import { type Protocol, protocol, type Session } from '../protocols.ts'
import { headers, layouts } from '../sys/layouts.ts'
import { accept4, check, close, poll, recv, send, shutdown } from '../sys/libc.ts'
import { errno, prepareConnection } from '../sys/sockets.ts'
import { BUSY, type ChildOrders, CONNECTION, CONTROL, FIRST_LISTENER, IDLE } from './orders.ts'

const BUFFER_OCTETS = 64 * 1024
/** A blocking call returns this often, so that the child notices when its parent is gone. */
const SLICE_MS = 1000
/** How long a child without free descriptors waits before it tries again. */
const RETRY_MS = 100

const { POLLIN, POLLHUP, SOCK_CLOEXEC, MSG_DONTWAIT, SHUT_WR } = headers
const pollfd = layouts.pollfd
const EAGAIN = errno('EAGAIN')
const EINTR = errno('EINTR')

/**
 * The buffer of a server that serves one connection at a time: a new one for each would double the cost of
 * short ones.
 */
export const connectionBuffer = (): Uint8Array => new Uint8Array(BUFFER_OCTETS)

/** How long a call on a connection may block. */
export const sliceMs = (idleMs: number): number => Math.min(SLICE_MS, idleMs)

interface ConnectionLimits {
  readonly idleMs: number
  /** Asked once a second: true ends the connection. */
  readonly abandoned: () => boolean
  readonly clock: Clock
}

/**
 * Serves one client until the session is over and the client has ended, nothing moves for `idleMs`, or the
 * connection is abandoned. The socket must block, but not for longer than `sliceMs(idleMs)`. The caller
 * closes it.
 */
export function serveConnection(
  fd: number,
  session: Session,
  buffer: Uint8Array,
  { idleMs, abandoned, clock }: ConnectionLimits,
): void {
  const room = buffer.length
  let movedAt = clock.now()
  let askedAt = movedAt
  /**
   * Repeats a blocking call until it moves octets or fails; EAGAIN means that the connection must be given
   * up.
   */
  const repeat = (call: () => number): number => {
    for (;;) {
      const outcome = call()
      const now = clock.now()
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
  const receiveOnce = () => recv(fd, buffer, 0)
  /** False when the connection must be given up. */
  const sendAll = (octets: number): boolean => {
    for (let sent = 0; sent < octets; ) {
      const rest = sent === 0 ? buffer : buffer.subarray(sent)
      const taken = repeat(() => send(fd, rest, octets - sent, 0))
      if (taken < 0) return false
      sent += taken
    }
    return true
  }

  let ended = false
  for (let reply = session.onStart?.(buffer, room) ?? 0; ; ) {
    if (!sendAll(reply)) return
    if (session.over || (ended && reply === 0)) break
    // A session that goes on by itself must not miss what its client sends, nor wait for it.
    const goesOn = reply > 0 && session.onDrained !== undefined
    reply = 0
    if (!ended) {
      const received = goesOn ? recv(fd, buffer, MSG_DONTWAIT) : repeat(receiveOnce)
      if (received > 0) reply = session.onData(buffer, received, room)
      else if (received === 0) {
        ended = true
        reply = session.onEnd(buffer, room)
      } else if (!goesOn || (received !== EAGAIN && received !== EINTR)) return
    }
    if (goesOn && reply === 0 && !session.over) reply = session.onDrained?.(buffer, room) ?? 0
  }
  if (ended) return
  // To close a socket with unread octets resets the connection, and the client may lose the reply.
  shutdown(fd, SHUT_WR)
  while (repeat(receiveOnce) > 0);
}

/** False when the parent is gone. */
const tell = (state: string) => send(CONTROL, Buffer.from(state), state.length, 0) > 0

/** Takes clients from the listening sockets until the parent says stop, or `maxRequests` were served. */
function serveListeners(spoken: Protocol, orders: ChildOrders, limits: ConnectionLimits): void {
  const { listeners, maxRequests } = orders
  const watched = [CONTROL, ...Array.from({ length: listeners }, (_, i) => FIRST_LISTENER + i)]
  // Accepted connections inherit these options, so that no client costs a call for them.
  for (const listener of watched.slice(1)) prepareConnection(listener, sliceMs(limits.idleMs))
  const { fds, ready } = pollSet(watched)
  const buffer = connectionBuffer()
  let idle = false
  for (let served = 0; maxRequests === 0 || served < maxRequests; ) {
    // Once only: all idle children wake up for a client, and one of them gets it.
    if (!idle && !tell(IDLE)) return
    idle = true
    const outcome = poll(fds, watched.length, -1)
    if (outcome !== EINTR) check(outcome, 'poll')
    if (ready(0)) return
    // The sockets take turns, or a busy address would starve the others.
    const client = acceptFirst(watched, ready, 1 + (served % listeners))
    if (client === undefined) continue
    tell(BUSY)
    idle = false
    serveConnection(client, spoken.session(), buffer, limits)
    close(client)
    served++
  }
}

/**
 * A client of one of the sockets that are ready, beginning with `first`; undefined if siblings were faster.
 */
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
    // There are no descriptors left, or the parent has shut the socket down and is about to say stop.
    if (client !== EAGAIN && client !== EINTR) sleep(RETRY_MS)
  }
  return undefined
}

const sleep = (ms: number) => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)

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
  const spoken = protocol(orders.protocol, systemClock)
  const limits = { idleMs: orders.idleMs, abandoned: parentGone, clock: systemClock }
  if (orders.listeners === 0) {
    tell(BUSY)
    prepareConnection(CONNECTION, sliceMs(orders.idleMs))
    serveConnection(CONNECTION, spoken.session(), connectionBuffer(), limits)
  } else serveListeners(spoken, orders, limits)
}
