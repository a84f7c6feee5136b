/** A connection of `load`, the same over UDP and TCP. It calls back, so that no message costs a promise. */
import { createSocket } from 'node:dgram'
import { connect } from 'node:net'
import { isIpv6, type SocketAddress, type Transport } from '../address.ts'

export interface Wire {
  send(payload: Buffer): void
  close(): void
}

/** They are called in a later turn of the event loop than `openWire`, and perhaps after `close`. */
export interface WireEvents {
  readonly opened: () => void
  /** A datagram, or the next piece of the stream. */
  readonly received: (octets: Buffer) => void
  /** It could not be opened, or the peer refused it (both with an `error`), or the peer closed it. */
  readonly broken: (error?: Error) => void
}

export const openWire = (transport: Transport, server: SocketAddress, events: WireEvents): Wire =>
  transport === 'udp' ? udpWire(server, events) : tcpWire(server, events)

/** The replies to many requests in flight must not be dropped on this side. The kernel may allow less. */
const RECEIVE_BUFFER_OCTETS = 4 * 1024 * 1024

function udpWire({ address, port }: SocketAddress, { opened, received, broken }: WireEvents): Wire {
  const family = isIpv6(address) ? 6 : 4
  const socket = createSocket({
    type: `udp${family}`,
    recvBufferSize: RECEIVE_BUFFER_OCTETS,
    // The host is always an IP address; Node's default would cost a deferred call of dns.lookup.
    lookup: (host, _options, callback) => callback(null, host, family),
  })
  socket.on('message', received).on('error', broken)
  socket.connect(port, address, opened)
  // Without a callback `send` drops its errors: a port that refused before.
  const onSent = (error: Error | null) => error && broken(error)
  return {
    send: payload => socket.send(payload, onSent),
    close: () => void socket.close(),
  }
}

function tcpWire({ address, port }: SocketAddress, { opened, received, broken }: WireEvents): Wire {
  const socket = connect({ host: address, port, noDelay: true })
  // `close` also follows an error; the second call is then ignored by the caller.
  socket
    .on('connect', opened)
    .on('data', received)
    .on('error', broken)
    .on('close', () => broken())
  const flush = () => socket.uncork()
  return {
    send(payload) {
      // What is sent in one turn of the event loop goes out in one system call.
      if (socket.writableCorked === 0) {
        socket.cork()
        process.nextTick(flush)
      }
      socket.write(payload)
    },
    close: () => void socket.destroy(),
  }
}
