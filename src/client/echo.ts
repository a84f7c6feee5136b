/** One echo at a time over UDP or TCP, with a timeout: `send`, `check` and the health checks use it. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { connect } from 'node:net'
import { isIpv6, type SocketAddress, type Transport } from '../address.ts'

export interface EchoSession {
  /**
   * Sends `payload` and resolves with the reply: the next datagram, or as many octets of the stream as were
   * sent. Rejects when the peer refuses or closes, or when `signal` aborts before the reply is complete.
   * After a rejection the session cannot be used any more.
   */
  exchange(payload: Buffer, signal: AbortSignal): Promise<Buffer>
  close(): void
}

export const openEcho = (
  transport: Transport,
  server: SocketAddress,
  signal: AbortSignal,
): Promise<EchoSession> => (transport === 'udp' ? udpSession(server, signal) : tcpSession(server, signal))

async function udpSession({ address, port }: SocketAddress, signal: AbortSignal): Promise<EchoSession> {
  const socket = createSocket(isIpv6(address) ? 'udp6' : 'udp4')
  // An ICMP error may come after the exchange has ended.
  socket.on('error', () => {})
  try {
    // A connected socket receives only this server's datagrams, and learns that a port is closed.
    socket.connect(port, address)
    await once(socket, 'connect', { signal })
  } catch (error) {
    socket.close()
    throw error
  }
  return {
    async exchange(payload, signal) {
      const reply = once(socket, 'message', { signal })
      // Without a callback `send` drops its errors: a payload that is too long, a port that refused before.
      socket.send(payload, error => error && socket.emit('error', error))
      return (await reply)[0] as Buffer
    },
    close: () => void socket.close(),
  }
}

async function tcpSession({ address, port }: SocketAddress, signal: AbortSignal): Promise<EchoSession> {
  const socket = connect({ host: address, port, noDelay: true })
  try {
    await once(socket, 'connect', { signal })
  } catch (error) {
    socket.destroy()
    throw error
  }
  let failure: Error | undefined
  let wake = () => {}
  socket.on('error', error => {
    failure = error
  })
  for (const event of ['readable', 'end', 'close']) socket.on(event, () => wake())
  return {
    async exchange(payload, signal) {
      const chunks: Buffer[] = []
      let received = 0
      const onAbort = () => wake()
      signal.addEventListener('abort', onAbort)
      socket.write(payload)
      try {
        while (received < payload.length) {
          // TCP may deliver more in one piece: the rest belongs to the next exchange.
          const wanted = Math.min(payload.length - received, socket.readableLength)
          const chunk: Buffer | null = wanted > 0 ? socket.read(wanted) : socket.read()
          if (chunk) {
            chunks.push(chunk)
            received += chunk.length
            continue
          }
          signal.throwIfAborted()
          if (failure) throw failure
          if (socket.readableEnded || socket.destroyed)
            throw new Error(`connection closed after ${received} of ${payload.length} bytes`)
          await new Promise<void>(resolve => {
            wake = resolve
          })
        }
      } finally {
        signal.removeEventListener('abort', onAbort)
      }
      return Buffer.concat(chunks)
    },
    close: () => void socket.destroy(),
  }
}
