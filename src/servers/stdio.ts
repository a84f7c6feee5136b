/**
 * The server behind inetd (TLPI 60.5, is_echo_inetd_sv): it neither binds nor listens, but finds its socket
 * as descriptor 0. If that is a connection (`nowait`), it serves this one and ends. If it is a listening or a
 * UDP socket (`wait`), it serves one client after the other until none has come for a while, and leaves the
 * socket to inetd again. Compare with child.ts.
 */
import { systemClock } from '../clock.ts'
import { loopGuard } from '../loop-guard.ts'
import type { Protocol } from '../protocols.ts'
import { headers } from '../sys/layouts.ts'
import { accept4, check, close, setBlocking } from '../sys/libc.ts'
import { errno, giveUpAfter, inherited, portOf, prepareConnection } from '../sys/sockets.ts'
import { connectionBuffer, serveConnection, sliceMs } from './child.ts'
import { RESULTS, serveDatagrams } from './iterative-thread.ts'

const STDIN = 0

/**
 * Returns when there is nothing left to serve for `idleMs`. Throws ENOTSOCK where descriptor 0 is not a
 * socket.
 */
export function serveStdio(protocol: Protocol, idleMs: number, guardBelow: number): void {
  const kind = inherited(STDIN)
  // Node has made its standard streams non-blocking, and they may all be this socket.
  check(setBlocking(STDIN), 'fcntl')
  if (kind === 'connection') {
    serveOne(STDIN, protocol, idleMs, connectionBuffer())
    return
  }
  giveUpAfter(STDIN, idleMs)
  if (kind === 'listener') serveListener(protocol, idleMs)
  else serveSocket(protocol, guardBelow)
  // The next program must find the socket as it was.
  giveUpAfter(STDIN, 0)
}

function serveSocket(protocol: Protocol, guardBelow: number): void {
  const ownPorts = new Set([portOf(STDIN)])
  const counts = new Float64Array(Object.keys(RESULTS).length)
  const guard = loopGuard(guardBelow, systemClock, Math.random)
  serveDatagrams(protocol, { fd: STDIN, ownPorts, counts, guard }, instead => instead === errno('EAGAIN'))
}

function serveListener(protocol: Protocol, idleMs: number): void {
  const buffer = connectionBuffer()
  for (;;) {
    // On a listening socket SO_RCVTIMEO limits accept(2): socket(7).
    const client = accept4(STDIN, headers.SOCK_CLOEXEC)
    if (client === errno('EAGAIN')) return
    if (client === errno('EINTR') || client === errno('ECONNABORTED')) continue
    check(client, 'accept4')
    serveOne(client, protocol, idleMs, buffer)
    close(client)
  }
}

function serveOne(fd: number, protocol: Protocol, idleMs: number, buffer: Uint8Array): void {
  prepareConnection(fd, sliceMs(idleMs))
  // Nobody waits for us to end: a program behind inetd outlives it.
  const abandoned = () => false
  serveConnection(fd, protocol.session(), buffer, { idleMs, abandoned, clock: systemClock })
}
