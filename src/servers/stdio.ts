/**
 * The server behind inetd (TLPI 60.5, is_echo_inetd_sv): it neither binds nor listens, but finds its socket as descriptor 0. A
 * connection (`nowait`) is served and that is all; of a listening or a UDP socket (`wait`) it serves one client after the
 * other until none has come for a while, and leaves the socket to inetd again. Compare with child.ts.
 */
import { type Protocol, SMALL_SERVICE_PORTS } from '../protocols.ts'
import { headers } from '../sys/layouts.ts'
import { accept4, check, close, setBlocking } from '../sys/libc.ts'
import { errno, giveUpAfter, inherited, portOf } from '../sys/sockets.ts'
import { serveConnection } from './child.ts'
import { RESULTS, serveDatagrams } from './iterative-thread.ts'

const STDIN = 0

/** Returns when there is nothing left to serve for `idleMs`. Throws ENOTSOCK where descriptor 0 is no socket. */
export function serveStdio(protocol: Protocol, idleMs: number): void {
  const kind = inherited(STDIN)
  // Node has made its standard streams non-blocking, and these are one socket.
  check(setBlocking(STDIN), 'fcntl')
  if (kind === 'connection') serveConnection(STDIN, protocol, idleMs, () => false)
  else {
    giveUpAfter(STDIN, idleMs)
    if (kind === 'listener') serveListener(protocol, idleMs)
    else serveSocket(protocol)
    // The next program finds the socket as it was.
    giveUpAfter(STDIN, 0)
  }
}

function serveSocket(protocol: Protocol): void {
  const blocked = new Set([...SMALL_SERVICE_PORTS, portOf(STDIN)])
  const counts = new Float64Array(Object.keys(RESULTS).length)
  serveDatagrams(protocol, { fd: STDIN, blocked, counts }, instead => instead === errno('EAGAIN'))
}

function serveListener(protocol: Protocol, idleMs: number): void {
  for (;;) {
    // For a listening socket SO_RCVTIMEO limits accept(2): socket(7).
    const client = accept4(STDIN, headers.SOCK_CLOEXEC)
    if (client === errno('EAGAIN')) return
    if (client === errno('EINTR') || client === errno('ECONNABORTED')) continue
    check(client, 'accept4')
    serveConnection(client, protocol, idleMs, () => false)
    close(client)
  }
}
