/**
 * The iterative model (TLPI 60.2, id_echo_sv): one thread for each address answers one datagram after the
 * other, in blocking calls (iterative-thread.ts). They are not made in the main thread because they would
 * hold up signals, timers and the admin server. Compare with event-loop.ts.
 */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { untilDeadline } from '../lifecycle.ts'
import { ephemeralFrom, RECEIVE_BUFFER_OCTETS } from '../net/bind.ts'
import { programUrl } from '../program.ts'
import type { Protocol } from '../protocols.ts'
import { headers } from '../sys/layouts.ts'
import { close, shutdown } from '../sys/libc.ts'
import { type BoundSocket, bindUdp } from '../sys/sockets.ts'
import { RESULTS, type ThreadOrders } from './iterative-thread.ts'
import { type EchoService, noCounts, type ServerOptions } from './service.ts'

type Options = Pick<ServerOptions, 'listen'> & Partial<Pick<ServerOptions, 'guardBelow'>>

export async function iterative({ name }: Protocol, options: Options): Promise<EchoService> {
  const { listen, guardBelow = ephemeralFrom() } = options
  const sockets: BoundSocket[] = []
  const closeAll = () => {
    for (const { fd } of sockets) close(fd)
  }
  try {
    for (const address of listen) sockets.push(bindUdp(address, RECEIVE_BUFFER_OCTETS))
  } catch (error) {
    closeAll()
    throw error
  }
  const stop = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT))
  const ownPorts = new Set(sockets.map(({ address }) => address.port))
  const octets = Object.keys(RESULTS).length * Float64Array.BYTES_PER_ELEMENT
  const threads = sockets.map(({ fd }) => {
    const counts = new Float64Array(new SharedArrayBuffer(octets))
    const workerData: ThreadOrders = { protocol: name, fd, ownPorts, counts, guardBelow, stop }
    const program = programUrl('iterative-thread', import.meta.url)
    const worker = new Worker(program, { workerData, execArgv: [] })
    // Without its thread the server would hear nothing: it is better to end and be started again.
    worker.on('error', error => {
      throw error
    })
    return { counts, ready: once(worker, 'message'), ended: once(worker, 'exit') }
  })
  const wake = () => {
    Atomics.store(stop, 0, 1)
    // It returns ENOTCONN, and wakes a thread that is blocked in recvfrom all the same.
    for (const { fd } of sockets) shutdown(fd, headers.SHUT_RD)
  }
  // Node joins its threads before it ends, and a thread that is blocked in a system call does not notice.
  process.once('exit', wake)
  // Node aborts when it has to end a thread that is just binding its calls.
  await Promise.all(threads.map(({ ready }) => ready))

  const total = (result: number) => threads.reduce((sum, { counts }) => sum + counts[result]!, 0)
  return {
    name,
    addresses: sockets.map(({ address }) => address),
    counters: {
      ...noCounts(),
      get datagrams() {
        return total(RESULTS.echoed)
      },
      get datagramsLoopDropped() {
        return total(RESULTS.droppedLoop)
      },
      get datagramsFailed() {
        return total(RESULTS.failed)
      },
    },
    async close(deadline) {
      process.off('exit', wake)
      wake()
      const ended = Promise.all(threads.map(({ ended }) => ended))
      // In a flood of datagrams the queue is never empty.
      await untilDeadline(ended, deadline, () => Atomics.store(stop, 0, 2))
      closeAll()
    },
  }
}
