/** One UDP client for all tests. */
import { createSocket, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { isIPv6 } from 'node:net'
import type { TestContext } from 'node:test'

export interface UdpClient extends Socket {
  /** The datagrams received so far, in order. */
  readonly got: Buffer[]
  /** Sends a datagram to a port of 127.0.0.1, of [::1] if the client is bound to it, or of `to`; gives the reply. */
  ask(payload: Buffer | string, port: number, to?: string): Promise<Buffer>
}

/**
 * A UDP socket that is bound to a loopback address and closed when the test ends. It never sets SO_REUSEADDR:
 * among sockets that set it, Linux gives two of them the same port, and one receives the replies to the other.
 */
export async function udpClient(t: TestContext, address = '127.0.0.1', port = 0): Promise<UdpClient> {
  const socket = createSocket(isIPv6(address) ? 'udp6' : 'udp4')
  t.after(() => new Promise<void>(resolve => void socket.close(resolve)))
  const got: Buffer[] = []
  socket.on('message', message => got.push(message))
  socket.bind({ port, address, exclusive: true })
  await once(socket, 'listening')
  const peer = isIPv6(address) ? address : '127.0.0.1'
  const ask = async (payload: Buffer | string, port: number, to = peer): Promise<Buffer> => {
    const reply = once(socket, 'message')
    socket.send(payload, port, to)
    return (await reply)[0]
  }
  return Object.assign(socket, { got, ask })
}
