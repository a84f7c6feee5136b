/**
 * The event-loop model (TLPI 60.4 and 63): one process serves many clients, over TCP and UDP, with Node's own
 * sockets. Nothing here knows that replicas are balanced. Compare with iterative.ts (UDP) and prefork.ts (TCP).
 */
import type { RemoteInfo, Socket as UdpSocket } from 'node:dgram'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { untilDeadline } from '../lifecycle.ts'
import { bindAll, MAX_QUEUED_OCTETS, openNothing, openUdp, udpSocket } from '../net/bind.ts'
import { Listeners } from '../net/listeners.ts'
import { NO_REPLY, type Protocol, SMALL_SERVICE_PORTS } from '../protocols.ts'
import { countersOf, type EchoCounters, type EchoService, models, type ServerOptions } from './service.ts'

type Options = Pick<ServerOptions, 'listen' | 'idleMs' | 'maxConnections' | 'say'> &
  Partial<Pick<ServerOptions, 'transports'>> & {
    /** More ports whose datagrams are dropped; may change while it serves. */
    readonly alsoBlocked?: ReadonlySet<number>
  }

export async function eventLoop(protocol: Protocol, options: Options): Promise<EchoService> {
  const { transports = models['event-loop'], alsoBlocked = new Set(), idleMs } = options
  const connections = new Set<Socket>()
  const serve = (socket: Socket) => {
    counters.connections++
    connections.add(socket)
    // A reset by the peer ends this connection and nothing else.
    socket.on('error', () => socket.destroy())
    socket.once('close', () => {
      connections.delete(socket)
      listeners.left()
      if (connections.size === 0) whenIdle()
    })
    socket.setTimeout(idleMs, () => socket.destroy())
    protocol.stream(socket, socket)
  }
  let whenIdle = () => {}
  const listeners = new Listeners(options.maxConnections, serve, options.say)
  const counters = countersOf(listeners)
  const bound = await bindAll(
    options.listen,
    transports.includes('tcp') ? listeners.open : openNothing,
    transports.includes('udp') ? openUdp(udpSocket) : openNothing,
  )
  const blocked = new Set([...SMALL_SERVICE_PORTS, ...bound.map(({ address }) => address.port)])
  const sockets = bound.flatMap(({ udp }) => udp ?? [])
  for (const udp of sockets)
    serveDatagrams(udp, protocol, port => blocked.has(port) || alsoBlocked.has(port), counters)

  return {
    name: protocol.name,
    addresses: bound.map(({ address }) => address),
    counters,
    async close(deadline) {
      listeners.close()
      const closed = sockets.map(udp => once(udp.close(), 'close'))
      const idle = new Promise<void>(resolve => {
        whenIdle = resolve
        if (connections.size === 0) resolve()
      })
      const cut = () => {
        for (const socket of connections) socket.destroy()
      }
      await Promise.all([...closed, untilDeadline(idle, deadline, cut)])
    },
  }
}

function serveDatagrams(
  socket: UdpSocket,
  protocol: Protocol,
  isBlocked: (port: number) => boolean,
  counters: EchoCounters,
): void {
  // Counted when the kernel has it, so that each datagram has one result.
  const sent = (error: Error | null) => {
    if (error) counters.datagramsFailed++
    else counters.datagrams++
  }
  socket.on('message', (buffer: Buffer, peer: RemoteInfo) => {
    if (isBlocked(peer.port)) {
      counters.datagramsLoopDropped++
      return
    }
    // Node cuts the buffer to what was received.
    const reply = buffer.length < protocol.room ? Buffer.concat([buffer], protocol.room) : buffer
    const length = protocol.datagram(reply, buffer.length)
    if (length === NO_REPLY) return
    if (socket.getSendQueueSize() > MAX_QUEUED_OCTETS) {
      counters.datagramsOverloadDropped++
      return
    }
    socket.send(reply, 0, length, peer.port, peer.address, sent)
  })
  socket.on('error', () => {
    counters.datagramsFailed++
  })
}
