/**
 * The thread of the iterative model: TLPI 60.2's id_echo_sv, line by line, in blocking calls. It receives one
 * datagram, answers it, and only then looks for the next. Compare with child.ts, which does the same for the
 * pieces of a stream.
 */
import { isMainThread, parentPort, workerData } from 'node:worker_threads'
import { systemClock } from '../clock.ts'
import { type LoopGuard, loopGuard } from '../loop-guard.ts'
import { mayAnswer, NO_REPLY, type Protocol, protocol } from '../protocols.ts'
import { layouts } from '../sys/layouts.ts'
import { bindCalls, check, recvfrom, sendto } from '../sys/libc.ts'
import { errno, portOfEncoded } from '../sys/sockets.ts'

/**
 * Results of datagrams, as indices into the shared counts. There is one writer, and an aligned number is
 * written whole.
 */
export const RESULTS = { echoed: 0, droppedLoop: 1, failed: 2 } as const

export interface ThreadOrders extends Omit<DatagramOrders, 'guard'> {
  /** Peers with lower ports than this are guarded against loops. */
  readonly guardBelow: number
  /** The name of a protocol. */
  readonly protocol: string
  readonly counts: Float64Array<SharedArrayBuffer>
  /** 1: end when nothing is left in the queue; shutdown(2) then has to wake the thread. 2: end at once. */
  readonly stop: Int32Array<SharedArrayBuffer>
}

const MAX_DATAGRAM_OCTETS = 65_536

interface DatagramOrders {
  /** A bound, blocking UDP socket. */
  readonly fd: number
  /** The ports of this server. */
  readonly ownPorts: ReadonlySet<number>
  readonly counts: Float64Array
  readonly guard: LoopGuard
}

/**
 * Serves until `over` returns true. It is asked after each call, and receives what came instead of a
 * datagram: a negative errno, or 0 for an empty message without a sender.
 */
export function serveDatagrams(
  spoken: Protocol,
  { fd, ownPorts, counts, guard }: DatagramOrders,
  over: (instead: number | undefined) => boolean,
): void {
  const buffer = new Uint8Array(MAX_DATAGRAM_OCTETS)
  const peer = new Uint8Array(layouts.sockaddr_in6.size)
  const peerLength = new Uint32Array([peer.length])
  for (;;) {
    peerLength[0] = peer.length
    const length = recvfrom(fd, buffer, 0, peer, peerLength)
    const peerOctets = peerLength[0]
    const nothing = length < 0 || peerOctets === 0
    if (over(nothing ? length : undefined)) return
    if (nothing) {
      if (length !== errno('EINTR')) check(length, 'recvfrom')
      continue
    }
    const port = portOfEncoded(peer)
    if (!mayAnswer(port, ownPorts) || guard.dropsEncoded(peer, peerOctets, port)) {
      counts[RESULTS.droppedLoop]!++
      continue
    }
    const reply = spoken.datagram(buffer, length, buffer.length)
    if (reply === NO_REPLY) continue
    const sent = sendto(fd, buffer, reply, 0, peer, peerOctets)
    counts[sent < 0 ? RESULTS.failed : RESULTS.echoed]!++
  }
}

if (!isMainThread && workerData?.protocol) {
  const orders: ThreadOrders = workerData
  const spoken = protocol(orders.protocol, systemClock)
  bindCalls()
  parentPort?.postMessage('ready')
  const guard = loopGuard(orders.guardBelow, systemClock, Math.random)
  serveDatagrams(spoken, { ...orders, guard }, instead => {
    const now = Atomics.load(orders.stop, 0)
    // After shutdown(2) the queue is still received, and then empty messages without a sender.
    return now === 2 || (now === 1 && instead !== undefined)
  })
}
