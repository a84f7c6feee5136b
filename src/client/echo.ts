/** One echo at a time over UDP or TCP, with a timeout: what `send`, `check` and the health checks share. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { connect } from 'node:net'
import { isIpv6, type SocketAddress, type Transport } from '../address.ts'

export interface EchoSession {
  /**
   * Sends `payload` and resolves with what came back: the next datagram, or as many octets of the stream
   * as were sent. Rejects when nothing (or too little) comes in time, the peer refuses, or `signal` aborts.
   * After a rejection the session is of no more use.
   */
  exchange(payload: Buffer, signal: AbortSignal): Promise<Buffer>
  close(): void
}

export const openEcho = (
  transport: Transport,
  server: SocketAddress,
  signal: AbortSignal,
): Promise<EchoSession> => (transport === 'udp' ? openUdp(server, signal) : openTcp(server, signal))

async function openUdp({ address, port }: SocketAddress, signal: AbortSignal): Promise<EchoSession> {
  const socket = createSocket(isIpv6(address) ? 'udp6' : 'udp4')
  // An ICMP error may come when nobody waits any more.
  socket.on('error', () => {})
  try {
    // Connected, so that only this server's datagrams arrive and a closed port is an error, not a silence.
    socket.connect(port, address)
    await once(socket, 'connect', { signal })
  } catch (error) {
    socket.close()
    throw error
  }
  return {
    async exchange(payload, signal) {
      const reply = once(socket, 'message', { signal })
      // Without a callback an error of `send` (too long, refused before) is swallowed.
      socket.send(payload, error => error && socket.emit('error', error))
      return (await reply)[0] as Buffer
    },
    close: () => void socket.close(),
  }
}

async function openTcp({ address, port }: SocketAddress, signal: AbortSignal): Promise<EchoSession> {
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
          // What comes beyond that belongs to the next exchange, however TCP cuts it.
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
