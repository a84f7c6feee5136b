/**
 * The event-loop model (TLPI 60.4 and 63): one process serves many clients, over TCP and UDP, with Node's own
 * sockets. Nothing here knows that replicas are balanced. Compare with iterative.ts (UDP) and prefork.ts
 * (TCP).
 */
import type { RemoteInfo, Socket as UdpSocket } from 'node:dgram'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { systemClock } from '../clock.ts'
import { untilDeadline } from '../lifecycle.ts'
import { type LoopGuard, loopGuard } from '../loop-guard.ts'
import { bindAll, bindNodeUdp, ephemeralFrom, MAX_QUEUED_OCTETS, openNone, udpSocket } from '../net/bind.ts'
import { Listeners } from '../net/listeners.ts'
import { mayAnswer, NO_REPLY, type Protocol, type Session } from '../protocols.ts'
import { countersOf, type EchoCounters, type EchoService, type ServerOptions } from './service.ts'

/**
 * What a session may give at a time when it speaks by itself. Less than a socket's own buffer, which then
 * never fills.
 */
const SPEECH_OCTETS = 16 * 1024

type Options = Pick<ServerOptions, 'listen' | 'idleMs' | 'maxConnections' | 'say'> &
  Partial<Pick<ServerOptions, 'transports' | 'guardBelow' | 'clock' | 'random'>> & {
    /** Ports of other servers of this process; may change while it serves. */
    readonly alsoBlocked?: ReadonlySet<number>
  }

export async function eventLoop(protocol: Protocol, options: Options): Promise<EchoService> {
  const { transports = ['udp', 'tcp'], alsoBlocked = new Set<number>(), idleMs } = options
  const { guardBelow = ephemeralFrom(), clock = systemClock, random = Math.random } = options
  const connections = new Set<Socket>()
  const speech = new Uint8Array(SPEECH_OCTETS)
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
    converse(socket, protocol.session(), speech)
  }
  let whenIdle = () => {}
  const listeners = new Listeners(options.maxConnections, serve, options.say)
  const counters = countersOf(listeners)
  const bound = await bindAll(
    options.listen,
    transports.includes('tcp') ? listeners.open : openNone,
    transports.includes('udp') ? bindNodeUdp(udpSocket) : openNone,
  )
  const ownPorts = new Set(bound.map(({ address }) => address.port))
  const sockets = bound.flatMap(({ udp }) => udp ?? [])
  // One for all sockets: a loop may go through several of them.
  const guard = loopGuard(guardBelow, clock, random)
  const blocked = (port: number) => !mayAnswer(port, ownPorts) || alsoBlocked.has(port)
  for (const udp of sockets) answerDatagrams(udp, protocol, blocked, guard, counters)

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

/**
 * Lets the session speak over a paused socket. What it holds is bounded: it stops reading while the client
 * does not read. `speech` is shared by all connections, so what is written there is copied before it is sent:
 * Node sends later.
 */
function converse(socket: Socket, session: Session, speech: Uint8Array): void {
  let ended = false
  let speaking = false

  const send = (reply: Uint8Array) => {
    const flows = session.onDrained ? socket.write(reply, drained) : socket.write(reply)
    if (!flows) socket.pause()
  }
  const finish = () => {
    socket.end()
    // What the client still sends is thrown away, so that its end is noticed.
    socket.resume()
  }
  const speak = (octets: number) => {
    if (octets > 0) send(Buffer.from(speech.subarray(0, octets)))
    if (session.over || (ended && octets === 0)) finish()
  }
  const drained = (error?: Error | null) => {
    if (error || speaking) return
    speaking = true
    // A client that reads as fast as we write must leave the others their turn.
    setImmediate(goOn)
  }
  const goOn = () => {
    speaking = false
    // Where something was written meanwhile, `drained` is called once more.
    if (socket.destroyed || socket.writableEnded || socket.writableLength > 0) return
    speak(session.onDrained?.(speech, speech.length) ?? 0)
  }

  socket.on('data', (piece: Buffer) => {
    if (session.over) return
    // Each piece is a buffer of its own, so a reply in place needs no copy.
    const octets = session.onData(piece, piece.length, piece.length)
    if (octets > 0) send(octets === piece.length ? piece : piece.subarray(0, octets))
    if (session.over) finish()
  })
  socket.on('drain', () => socket.resume())
  socket.on('end', () => {
    ended = true
    if (!session.over) speak(session.onEnd(speech, speech.length))
  })
  if (session.onStart) speak(session.onStart(speech, speech.length))
  socket.resume()
}

function answerDatagrams(
  socket: UdpSocket,
  protocol: Protocol,
  blocked: (port: number) => boolean,
  guard: LoopGuard,
  counters: EchoCounters,
): void {
  // A datagram is counted when the kernel has taken the reply, so that each has one result.
  const sent = (error: Error | null) => {
    if (error) counters.datagramsFailed++
    else counters.datagrams++
  }
  socket.on('message', (received: Buffer, peer: RemoteInfo) => {
    if (blocked(peer.port) || guard.drops(peer.address, peer.port)) {
      counters.datagramsLoopDropped++
      return
    }
    // Node gives a buffer of the length that was received.
    const { length } = received
    const buffer = length < protocol.room ? Buffer.concat([received], protocol.room) : received
    const octets = protocol.datagram(buffer, length, buffer.length)
    if (octets === NO_REPLY) return
    if (socket.getSendQueueSize() > MAX_QUEUED_OCTETS) {
      counters.datagramsOverloadDropped++
      return
    }
    socket.send(buffer, 0, octets, peer.port, peer.address, sent)
  })
  socket.on('error', () => {
    counters.datagramsFailed++
  })
}
