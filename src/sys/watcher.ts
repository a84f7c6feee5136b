/**
 * Reports when descriptors become readable, without reading from them: Node's own loop cannot do that for a
 * socket whose data is for another process. One epoll instance serves all descriptors, and a thread waits for
 * it (epoll(7)).
 */
import { once } from 'node:events'
import { writeSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { programUrl } from '../program.ts'
import { epollEvent, headers } from './layouts.ts'
import { check, close, epollCreate, epollCtl, eventfd } from './libc.ts'
import { WAKE, type WatcherOrders } from './watcher-thread.ts'

const { EPOLLIN, EPOLLONESHOT, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CLOEXEC, EFD_CLOEXEC } = headers

export interface Watcher {
  /**
   * Calls `readable` once, when there is something to read or to accept. A call for the same descriptor
   * replaces the earlier one.
   */
  watch(fd: number, readable: () => void): void
  /** Must be called before the descriptor is closed, unless `readable` was called. */
  forget(fd: number): void
  close(): Promise<void>
}

/** Resolves when the thread waits: Node aborts if it has to end a thread that is still binding its calls. */
export async function startWatcher(): Promise<Watcher> {
  const epoll = check(epollCreate(EPOLL_CLOEXEC), 'epoll_create1')
  const wakeFd = check(eventfd(0, EFD_CLOEXEC), 'eventfd')
  check(epollCtl(epoll, EPOLL_CTL_ADD, wakeFd, event(EPOLLIN, WAKE)), 'epoll_ctl')
  const workerData: WatcherOrders = { epoll }
  const thread = new Worker(programUrl('watcher-thread', import.meta.url), { workerData, execArgv: [] })
  const wake = () => void writeSync(wakeFd, Buffer.from(BigUint64Array.of(1n).buffer))
  // Node joins its threads before it ends, and a thread that is blocked in a system call does not notice
  // that.
  process.once('exit', wake)
  await once(thread, 'message')
  // Without the thread nothing is noticed any more: it is better to end, and to be restarted.
  thread.on('error', error => {
    throw error
  })

  const watched = new Map<number, { readonly fd: number; readonly readable: () => void }>()
  const tokens = new Map<number, number>()
  let lastToken = WAKE
  const forget = (fd: number) => {
    const token = tokens.get(fd)
    if (token === undefined) return
    tokens.delete(fd)
    watched.delete(token)
    epollCtl(epoll, EPOLL_CTL_DEL, fd, null)
  }
  thread.on('message', (token: number) => {
    // Undefined if it was forgotten while the message was on its way.
    const found = watched.get(token)
    if (!found) return
    forget(found.fd)
    found.readable()
  })

  return {
    watch(fd, readable) {
      forget(fd)
      const token = ++lastToken
      check(epollCtl(epoll, EPOLL_CTL_ADD, fd, event(EPOLLIN | EPOLLONESHOT, token)), 'epoll_ctl')
      watched.set(token, { fd, readable })
      tokens.set(fd, token)
    },
    forget,
    async close() {
      process.off('exit', wake)
      const ended = once(thread, 'exit')
      wake()
      await ended
      close(epoll)
      close(wakeFd)
    },
  }
}

function event(events: number, token: number): Buffer {
  const { size, at } = epollEvent(process.arch)
  const encoded = Buffer.alloc(size)
  encoded.writeUInt32LE(events, at.events)
  encoded.writeUInt32LE(token, at.data)
  return encoded
}
