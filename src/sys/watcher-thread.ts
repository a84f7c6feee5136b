/** The thread of watcher.ts: blocks in epoll_wait, and reports which descriptors are readable. */
import { isMainThread, parentPort, workerData } from 'node:worker_threads'
import { epollEvent } from './layouts.ts'
import { bindCalls, check, epollWait } from './libc.ts'
import { errno } from './sockets.ts'

export interface WatcherOrders {
  readonly epoll: number
}

/**
 * The token of the descriptor that ends the thread. As a message from the thread it means that the thread has
 * begun.
 */
export const WAKE = 0
const MAX_EVENTS = 64

function watch(epoll: number): void {
  const { size, at } = epollEvent(process.arch)
  const events = Buffer.alloc(size * MAX_EVENTS)
  for (;;) {
    const ready = epollWait(epoll, events, MAX_EVENTS, -1)
    if (ready !== errno('EINTR')) check(ready, 'epoll_wait')
    for (let i = 0; i < ready; i++) {
      const token = events.readUInt32LE(i * size + at.data!)
      if (token === WAKE) return
      parentPort?.postMessage(token)
    }
  }
}

if (!isMainThread && workerData?.epoll !== undefined) {
  bindCalls()
  parentPort?.postMessage(WAKE)
  watch((workerData as WatcherOrders).epoll)
}
