/**
 * Tells when descriptors become readable, without reading from them: Node's own loop cannot do that for a socket whose
 * data somebody else shall find. One epoll instance for all, and a thread that waits for it (epoll(7)).
 */
import { once } from 'node:events'
import { writeSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { programUrl } from '../program.ts'
import { epollEvent, headers } from './layouts.ts'
import { check, close, epollCreate, epollCtl, eventfd } from './libc.ts'
import { WAKE, type WatcherOrders } from './watcher-thread.ts'

const { EPOLLIN, EPOLLONESHOT, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CLOEXEC, EFD_CLOEXEC } = headers

export class Watcher {
  readonly #epoll = check(epollCreate(EPOLL_CLOEXEC), 'epoll_create1')
  readonly #eventfd = check(eventfd(0, EFD_CLOEXEC), 'eventfd')
  readonly #thread: Worker
  readonly #wanted = new Map<number, { fd: number; readable: () => void }>()
  readonly #tokenOf = new Map<number, number>()
  #lastToken = WAKE
  /** Node aborts when it has to end a thread in the middle of binding its calls. */
  readonly ready: Promise<unknown>

  constructor() {
    check(epollCtl(this.#epoll, EPOLL_CTL_ADD, this.#eventfd, event(EPOLLIN, WAKE)), 'epoll_ctl')
    const workerData: WatcherOrders = { epoll: this.#epoll }
    this.#thread = new Worker(programUrl('watcher-thread', import.meta.url), { workerData, execArgv: [] })
    this.ready = once(this.#thread, 'message')
    this.#thread.on('message', (token: number) => this.#readable(token))
    // Without it nothing is noticed any more: better to end, and be started again.
    this.#thread.on('error', error => {
      throw error
    })
    // Node joins its threads before it ends, and one that is blocked in a system call does not hear it.
    process.once('exit', this.#wake)
  }

  /** Calls `readable` once, when there is something to read or to accept. What was asked for this descriptor before is forgotten. */
  watch(fd: number, readable: () => void): void {
    this.forget(fd)
    const token = ++this.#lastToken
    check(epollCtl(this.#epoll, EPOLL_CTL_ADD, fd, event(EPOLLIN | EPOLLONESHOT, token)), 'epoll_ctl')
    this.#wanted.set(token, { fd, readable })
    this.#tokenOf.set(fd, token)
  }

  /** To be called before the descriptor is closed, if it may still be watched. */
  forget(fd: number): void {
    const token = this.#tokenOf.get(fd)
    if (token === undefined) return
    this.#tokenOf.delete(fd)
    this.#wanted.delete(token)
    epollCtl(this.#epoll, EPOLL_CTL_DEL, fd, null)
  }

  #readable(token: number): void {
    const watched = this.#wanted.get(token)
    // Forgotten while the message was under way.
    if (!watched) return
    this.forget(watched.fd)
    watched.readable()
  }

  readonly #wake = () => void writeSync(this.#eventfd, Buffer.from(BigUint64Array.of(1n).buffer))

  async close(): Promise<void> {
    process.off('exit', this.#wake)
    await this.ready
    const ended = once(this.#thread, 'exit')
    this.#wake()
    await ended
    close(this.#epoll)
    close(this.#eventfd)
  }
}

function event(events: number, token: number): Buffer {
  const { size, at } = epollEvent(process.arch)
  const encoded = Buffer.alloc(size)
  encoded.writeUInt32LE(events, at.events)
  encoded.writeUInt32LE(token, at.data)
  return encoded
}
