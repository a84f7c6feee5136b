/**
 * The TCP listeners of one server, which share one cap. At the cap they stop accepting, so that clients wait
 * in the kernel's queue: none is refused, none is lost. Node alone cannot do that: to stop accepting it has
 * to close the listening socket, which refuses the clients that wait. So on Linux the socket is opened
 * through `sys`, and Node receives a duplicate of its descriptor for as long as it may accept.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { createServer, type Server, type ServerOpts, type Socket } from 'node:net'
import type { SocketAddress } from '../address.ts'
import { type Say, sparingly } from '../say.ts'
import { whyUnavailable } from '../sys/available.ts'
import { listenNodeTcp, type Open } from './bind.ts'

const KEEP_ALIVE_MS = 60_000
const RESUME_RETRY_MS = 100
/** For the admin server, logs and what Node itself opens. */
const SPARE_DESCRIPTORS = 16

/** One listening socket. */
export interface Listener {
  pause(): void
  resume(): void
  /** Clients that wait in the kernel's queue. */
  queued(): number
  close(): void
}

const serverOptions: ServerOpts = {
  allowHalfOpen: true,
  keepAlive: true,
  keepAliveInitialDelay: KEEP_ALIVE_MS,
  noDelay: true,
  // Only the code or the process that takes the connection over may read from it.
  pauseOnConnect: true,
}

export class Listeners {
  /**
   * Clients that are served at a time: as many as `wanted`, or fewer where the limit of descriptors is lower.
   */
  readonly cap: number
  readonly #serve: (socket: Socket) => void
  readonly #full: (details: object) => void
  readonly #all = new Set<Listener>()
  #active = 0
  #paused = false

  constructor(wanted: number, serve: (socket: Socket) => void, say: Say) {
    this.cap = Math.min(wanted, descriptorRoom())
    this.#serve = serve
    this.#full = sparingly(details => say('warn', 'connection cap reached: further clients wait', details))
  }

  get active(): number {
    return this.#active
  }

  get waiting(): number {
    return [...this.#all].reduce((sum, listener) => sum + listener.queued(), 0)
  }

  /** For `bindAll`. */
  readonly open: Open<Listener> = async wanted => {
    const why = await whyUnavailable()
    const make = () => createServer(serverOptions, socket => this.#accept(socket))
    const { socket, port } = why ? await openPortable(wanted, make) : await openLinux(wanted, make)
    this.#all.add(socket)
    const close = () => {
      this.#all.delete(socket)
      socket.close()
    }
    return { socket: { ...socket, close }, port }
  }

  #accept(socket: Socket): void {
    // This happens only where a listener cannot pause.
    if (this.#active >= this.cap) return void socket.destroy()
    this.#active++
    this.#serve(socket)
    if (this.#active < this.cap) return
    this.#paused = true
    for (const listener of this.#all) listener.pause()
    this.#full({ cap: this.cap })
  }

  /** Must be called when a client that `serve` received has ended. */
  left(): void {
    this.#active--
    if (!this.#paused) return
    this.#paused = false
    for (const listener of this.#all) listener.resume()
  }

  close(): void {
    for (const listener of this.#all) listener.close()
    this.#all.clear()
  }
}

async function openPortable(wanted: SocketAddress, make: () => Server): ReturnType<Open<Listener>> {
  const { socket: server, port } = await listenNodeTcp(make)(wanted)
  const socket = { pause() {}, resume() {}, queued: () => 0, close: () => void server.close() }
  return { socket, port }
}

async function openLinux(wanted: SocketAddress, make: () => Server): ReturnType<Open<Listener>> {
  const { listenTcp } = await import('../sys/sockets.ts')
  const { fd, address } = listenTcp(wanted)
  return { socket: await pausable(fd, make()), port: address.port }
}

/** Lets `server` accept from a listening, non-blocking socket. The listener owns the socket from now on. */
export async function pausable(fd: number, server: Server): Promise<Listener> {
  const { queued, BACKLOG } = await import('../sys/sockets.ts')
  const { close, dup } = await import('../sys/libc.ts')
  let retry: NodeJS.Timeout | undefined
  const resume = () => {
    if (server.listening) return
    const copy = dup(fd)
    if (copy < 0) retry = setTimeout(resume, RESUME_RETRY_MS)
    // It listens at once; the event comes later. With a descriptor, Node ignores `backlog` among the options.
    else server.listen({ fd: copy }, BACKLOG)
  }
  const pause = () => {
    clearTimeout(retry)
    server.close()
  }
  resume()
  return {
    pause,
    resume,
    queued: () => queued(fd),
    close() {
      pause()
      close(fd)
    },
  }
}

/** How many connections this process has descriptors for, with some left for its own work; at least 1. */
export function descriptorRoom(): number {
  try {
    const limit = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1]
    const open = readdirSync('/proc/self/fd').length
    return limit === undefined ? Infinity : Math.max(1, Number(limit) - open - SPARE_DESCRIPTORS)
  } catch {
    // Not Linux.
    return Infinity
  }
}
