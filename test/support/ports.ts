/** Ports for servers that share a number, that cannot say which one they got, or that are restarted on it. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer, isIPv6 } from 'node:net'

/** Tests of a file may run at the same time: no port is given to two of them. */
const given = new Set<number>()

/**
 * A port that is free on each of these addresses, over TCP and UDP. It is not from the range that the kernel
 * gives to clients: a client could take it before the server is restarted, and a replica drops what comes
 * from its own port.
 */
export async function freePort(...addresses: readonly string[]): Promise<number> {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 20_000)
    if (given.has(port)) continue
    const free = await Promise.all(
      addresses.flatMap(address => [tcpFree(address, port), udpFree(address, port)]),
    )
    if (!free.every(Boolean) || given.has(port)) continue
    given.add(port)
    return port
  }
}

/** Several such ports, each different. Without addresses they are free on 127.0.0.1 and [::1]. */
export async function freePorts(count: number, ...addresses: readonly string[]): Promise<number[]> {
  const wanted = addresses.length > 0 ? addresses : ['127.0.0.1', '::1']
  const found: number[] = []
  while (found.length < count) found.push(await freePort(...wanted))
  return found
}

async function tcpFree(host: string, port: number): Promise<boolean> {
  const server = createServer().listen({ host, port })
  const free = await listens(server)
  if (free) await once(server.close(), 'close')
  return free
}

async function udpFree(address: string, port: number): Promise<boolean> {
  const socket = createSocket(isIPv6(address) ? 'udp6' : 'udp4').bind({ address, port, exclusive: true })
  const free = await listens(socket)
  await once(socket.close(), 'close')
  return free
}

const listens = (server: NodeJS.EventEmitter): Promise<boolean> =>
  once(server, 'listening').then(
    () => true,
    () => false,
  )
