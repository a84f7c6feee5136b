/**
 * The thread of the iterative model: TLPI 60.2's id_echo_sv, line by line, in blocking calls. It receives one datagram, answers
 * it, and only then looks for the next. Compare with child.ts, which does the same for the pieces of a stream.
 */
import { isMainThread, parentPort, workerData } from 'node:worker_threads'
import { NO_REPLY, type Protocol } from '../protocols.ts'
import { layouts } from '../sys/layouts.ts'
import { bindCalls, check, recvfrom, sendto } from '../sys/libc.ts'
import { errno, portOfEncoded } from '../sys/sockets.ts'

/** Results of datagrams, as indices into the shared counts. One writer: an aligned number is written whole. */
export const RESULTS = { echoed: 0, droppedLoop: 1, failed: 2 } as const

export interface ThreadOrders extends DatagramOrders {
  readonly protocol: Pick<Protocol, 'module' | 'name'>
  readonly counts: Float64Array<SharedArrayBuffer>
  /** 1: end when nothing waits any more; it must then be woken by shutdown(2). 2: end at once. */
  readonly stop: Int32Array<SharedArrayBuffer>
}

const MAX_DATAGRAM_OCTETS = 65_536

interface DatagramOrders {
  /** A bound, blocking UDP socket. */
  readonly fd: number
  /** Datagrams from these ports are dropped. */
  readonly blocked: ReadonlySet<number>
  readonly counts: Float64Array
}

/**
 * Until `over` says that it is enough. It is asked after each datagram, and given what came instead of one: a negative
 * errno, or 0 for an empty message from nobody.
 */
export function serveDatagrams(
  protocol: Protocol,
  { fd, blocked, counts }: DatagramOrders,
  over: (instead: number | undefined) => boolean,
): void {
  const buffer = new Uint8Array(MAX_DATAGRAM_OCTETS)
  const peer = new Uint8Array(layouts.sockaddr_in6.size)
  const peerLength = new Uint32Array(1)
  for (;;) {
    peerLength[0] = peer.length
    const length = recvfrom(fd, buffer, 0, peer, peerLength)
    const nothing = length < 0 || peerLength[0] === 0
    if (over(nothing ? length : undefined)) return
    if (nothing) {
      if (length !== errno('EINTR')) check(length, 'recvfrom')
      continue
    }
    if (blocked.has(portOfEncoded(peer))) {
      counts[RESULTS.droppedLoop]!++
      continue
    }
    const reply = protocol.datagram(buffer, length)
    if (reply === NO_REPLY) continue
    const sent = sendto(fd, buffer, reply, 0, peer, peerLength[0])
    counts[sent < 0 ? RESULTS.failed : RESULTS.echoed]!++
  }
}

if (!isMainThread && workerData?.protocol) {
  const { protocol, stop } = workerData as ThreadOrders
  const { [protocol.name]: loaded } = await import(protocol.module)
  bindCalls()
  parentPort?.postMessage('ready')
  serveDatagrams(loaded, workerData, instead => {
    const now = Atomics.load(stop, 0)
    // After shutdown(2) what waits is still received, then come empty messages from nobody.
    return now === 2 || (now === 1 && instead !== undefined)
  })
}
