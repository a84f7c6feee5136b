/**
 * The event-loop model (TLPI 60.4 and 63): one process serves many clients, over TCP and UDP, with
 * Node's own sockets. This is the portable transport; nothing here knows that replicas are balanced.
 */
import type { RemoteInfo, Socket as UdpSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer, type Server, type Socket } from 'node:net'
import { bindAll, MAX_QUEUED_OCTETS, udpSocket, untilDeadline } from '../bind.ts'
import type { SocketAddress } from '../parse.ts'
import { NO_REPLY, type Protocol, SMALL_SERVICE_PORTS } from '../protocols.ts'

/** A running server. */
export interface Service {
  readonly name: string
  /** Stops listening, finishes what is open, cuts it off when `deadline` aborts; resolves when all is closed. */
  close(deadline: AbortSignal): Promise<void>
}

/** Monotonic since start, but for `active` and `waiting`. */
export interface EchoCounters {
  datagrams: number
  datagramsLoopDropped: number
  datagramsOverloadDropped: number
  datagramsFailed: number
  connections: number
  active: number
  waiting: number
}

export interface EchoService extends Service {
  /** Where it listens, with the ports that the system chose. */
  readonly addresses: readonly SocketAddress[]
  readonly counters: Readonly<EchoCounters>
}

export interface EventLoopOptions {
  readonly listen: readonly SocketAddress[]
  /** Over this number, clients wait as if the kernel had not accepted them yet. */
  readonly maxConnections: number
  /** A connection on which nothing moved for this long is closed. */
  readonly idleMs: number
  /** Called once each time the cap is reached. */
  readonly onFull: (maxConnections: number) => void
}

const KEEP_ALIVE_MS = 60_000
/** As many as the kernel would hold for us: Node's default backlog. */
const MAX_WAITING = 511

/** Resolves when every address listens; rejects with Node's error (`code`, `address`, `port`) if one cannot. */
export async function eventLoop(protocol: Protocol, options: EventLoopOptions): Promise<EchoService> {
  const counters: EchoCounters = {
    datagrams: 0,
    datagramsLoopDropped: 0,
    datagramsOverloadDropped: 0,
    datagramsFailed: 0,
    connections: 0,
    active: 0,
    waiting: 0,
  }
  const streams = new StreamSide(protocol, options, counters)
  const listeners = await bindAll(options.listen, () => tcpServer(streams), udpSocket)
  const blocked = new Set([...SMALL_SERVICE_PORTS, ...listeners.map(l => l.address.port)])
  for (const { udp } of listeners) serveDatagrams(udp, protocol, blocked, counters)

  return {
    name: protocol.name,
    addresses: listeners.map(l => l.address),
    counters,
    async close(deadline) {
      const closed = listeners.flatMap(({ tcp, udp }) => {
        udp.close()
        tcp.close()
        return [once(udp, 'close'), once(tcp, 'close')]
      })
      await Promise.all([...closed, streams.close(deadline)])
    },
  }
}

const tcpServer = (streams: StreamSide): Server =>
  createServer(
    {
      allowHalfOpen: true,
      keepAlive: true,
      keepAliveInitialDelay: KEEP_ALIVE_MS,
      noDelay: true,
      pauseOnConnect: true,
    },
    socket => streams.accept(socket),
  )

/** The connections of all listeners: one cap, one queue, one drain. */
class StreamSide {
  readonly #protocol: Protocol
  readonly #options: EventLoopOptions
  readonly #counters: EchoCounters
  readonly #active = new Set<Socket>()
  readonly #waiting = new Set<Socket>()
  #fullSaid = false
  #idle: (() => void) | undefined

  constructor(protocol: Protocol, options: EventLoopOptions, counters: EchoCounters) {
    this.#protocol = protocol
    this.#options = options
    this.#counters = counters
  }

  /**
   * Node cannot stop accepting without also refusing, so over the cap a connection waits here unread
   * (`pauseOnConnect`), which to its client is the same as waiting in the kernel's queue.
   */
  accept(socket: Socket): void {
    // A reset by the peer ends this connection and nothing else.
    socket.on('error', () => socket.destroy())
    socket.once('close', () => this.#ended(socket))
    if (this.#active.size < this.#options.maxConnections) {
      this.#serve(socket)
      return
    }
    if (!this.#fullSaid) this.#options.onFull(this.#options.maxConnections)
    this.#fullSaid = true
    if (this.#waiting.size >= MAX_WAITING) socket.destroy()
    else this.#waiting.add(socket)
    this.#count()
  }

  #serve(socket: Socket): void {
    this.#active.add(socket)
    socket.setTimeout(this.#options.idleMs, () => socket.destroy())
    this.#counters.connections++
    this.#count()
    this.#protocol.stream(socket, socket)
  }

  #ended(socket: Socket): void {
    this.#waiting.delete(socket)
    if (this.#active.delete(socket)) {
      const [next] = this.#waiting
      if (next) {
        this.#waiting.delete(next)
        this.#serve(next)
      }
    }
    if (this.#active.size <= this.#options.maxConnections * 0.9) this.#fullSaid = false
    this.#count()
    if (this.#active.size === 0) this.#idle?.()
  }

  #count(): void {
    this.#counters.active = this.#active.size
    this.#counters.waiting = this.#waiting.size
  }

  async close(deadline: AbortSignal): Promise<void> {
    for (const socket of this.#waiting) socket.destroy()
    this.#waiting.clear()
    if (this.#active.size === 0) return
    const cut = () => {
      for (const socket of this.#active) socket.destroy()
    }
    const idle = new Promise<void>(resolve => {
      this.#idle = resolve
    })
    await untilDeadline(idle, deadline, cut)
  }
}

function serveDatagrams(
  socket: UdpSocket,
  protocol: Protocol,
  blocked: ReadonlySet<number>,
  counters: EchoCounters,
): void {
  // Counted when the kernel has it, so that each datagram has one result.
  const sent = (error: Error | null) => {
    if (error) counters.datagramsFailed++
    else counters.datagrams++
  }
  socket.on('message', (buffer: Buffer, peer: RemoteInfo) => {
    if (blocked.has(peer.port)) {
      counters.datagramsLoopDropped++
      return
    }
    const length = protocol.datagram(buffer, buffer.length)
    if (length === NO_REPLY) return
    if (socket.getSendQueueSize() > MAX_QUEUED_OCTETS) {
      counters.datagramsOverloadDropped++
      return
    }
    socket.send(buffer, 0, length, peer.port, peer.address, sent)
  })
  socket.on('error', () => {
    counters.datagramsFailed++
  })
}
