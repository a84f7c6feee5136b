/** A connection of `load`, over UDP or TCP alike: events instead of promises, nothing made for each message. */
import { createSocket } from 'node:dgram'
import { connect } from 'node:net'
import type { Transport } from '../address.ts'
import { isIpv6, type SocketAddress } from '../address.ts'

export interface Wire {
  send(payload: Buffer): void
  close(): void
}

/** Called in a later turn of the event loop than `openWire`, and maybe still after `close`. */
export interface WireEvents {
  readonly opened: () => void
  /** A datagram, or whatever piece of the stream has come. */
  readonly received: (octets: Buffer) => void
  /** It could not be opened, or the peer refused (`error` says so), or ended it. */
  readonly broken: (error?: Error) => void
}

export const openWire = (transport: Transport, server: SocketAddress, events: WireEvents): Wire =>
  transport === 'udp' ? openUdp(server, events) : openTcp(server, events)

/** Replies to many requests in flight must not be lost on this side; the kernel may allow less. */
const RECEIVE_BUFFER_OCTETS = 4 * 1024 * 1024

function openUdp({ address, port }: SocketAddress, { opened, received, broken }: WireEvents): Wire {
  const family = isIpv6(address) ? 6 : 4
  const socket = createSocket({
    type: `udp${family}`,
    recvBufferSize: RECEIVE_BUFFER_OCTETS,
    // Always an IP address: Node's default would defer it to dns.lookup.
    lookup: (host, _options, callback) => callback(null, host, family),
  })
  socket.on('message', received).on('error', broken)
  socket.connect(port, address, opened)
  // Without a callback an error of `send` (refused before) is swallowed.
  const sent = (error: Error | null) => error && broken(error)
  return {
    send: payload => socket.send(payload, sent),
    close: () => void socket.close(),
  }
}

function openTcp({ address, port }: SocketAddress, { opened, received, broken }: WireEvents): Wire {
  const socket = connect({ host: address, port, noDelay: true })
  // `close` follows an error, and is then one too many.
  socket
    .on('connect', opened)
    .on('data', received)
    .on('error', broken)
    .on('close', () => broken())
  const flush = () => socket.uncork()
  return {
    send(payload) {
      // What is sent in one turn goes out in one system call.
      if (socket.writableCorked === 0) {
        socket.cork()
        process.nextTick(flush)
      }
      socket.write(payload)
    },
    close: () => void socket.destroy(),
  }
}
