/** Ports for servers that share a number, or are restarted on it. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer, isIPv6 } from 'node:net'

/**
 * A port that is free on each of these addresses, over TCP and UDP. Not from the range that the kernel gives
 * to clients: one of them could take it before a restart, and a replica drops what comes from its own port.
 */
export async function commonPort(...addresses: readonly string[]): Promise<number> {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 20_000)
    const free = await Promise.all(
      addresses.flatMap(address => [tcpFree(address, port), udpFree(address, port)]),
    )
    if (free.every(Boolean)) return port
  }
}

async function tcpFree(host: string, port: number): Promise<boolean> {
  const server = createServer().listen({ host, port })
  const free = await once(server, 'listening').then(
    () => true,
    () => false,
  )
  if (free) await once(server.close(), 'close')
  return free
}

async function udpFree(address: string, port: number): Promise<boolean> {
  const socket = createSocket(isIPv6(address) ? 'udp6' : 'udp4').bind({ address, port, exclusive: true })
  const free = await once(socket, 'listening').then(
    () => true,
    () => false,
  )
  await once(socket.close(), 'close')
  return free
}
