/**
 * A DNS server in a process of its own, for tests that measure its memory or expect it to die. Started by
 * `fork` with `--expose-gc` and one argument of JSON; sends its ports, then its memory whenever it is sent
 * anything.
 */
import { setImmediate } from 'node:timers/promises'
import { createServer, Packet } from 'dns2'
import { systemClock } from '../../src/clock.ts'
import { type Answerer, Authority } from '../../src/dns/authority.ts'
import { listenDns } from '../../src/net/dns-server.ts'
import { addresses, SERVICE, snapshot, zoneOptions } from '../dns/message.ts'

export interface ChildOptions {
  /** `dns2` is that package alone, as its README has it; `dns2-async` the same with an `async` handler. */
  readonly kind?: 'ours' | 'dns2' | 'dns2-async'
  readonly endpoints?: number
  /** Answer with so many octets at once, so that a test meets the sockets and not the codec. */
  readonly replyOctets?: number
  readonly tcpIdleMs?: number
  readonly tcpMaxConnections?: number
}

const { kind = 'ours', endpoints = 3, replyOctets, ...listen }: ChildOptions = JSON.parse(process.argv[2]!)
const filler = replyOctets === undefined ? undefined : Buffer.alloc(replyOctets)

async function listenOurs() {
  const authority = new Authority(
    { ...zoneOptions, services: [SERVICE], maxAnswers: 65535, clock: systemClock, random: Math.random },
    {
      failed(error) {
        throw error
      },
    },
  )
  authority.update(snapshot(addresses(endpoints)))
  const answer: Answerer = filler
    ? () => filler
    : (message, transport) => authority.answer(message, transport)
  const listener = await listenDns(answer, { listen: [{ address: '127.0.0.1', port: 0 }], ...listen })
  const { port } = listener.addresses[0]!
  return { port, tcpPort: port }
}

async function listenDns2(asynchronous: boolean) {
  const handle = (request: Packet, send: (response: Packet | Buffer) => unknown) => {
    const { name } = request.questions[0]!
    const response = Packet.createResponseFromRequest(request)
    if (name.toLowerCase() === SERVICE)
      for (const address of addresses(endpoints)) {
        const record = { name, type: Packet.TYPE.A, class: Packet.CLASS.IN, ttl: 5, address }
        response.answers.push(new Packet.Resource(record))
      }
    send(filler ?? response)
  }
  const server = createServer({
    udp: true,
    tcp: true,
    handle: asynchronous ? async (request, send) => handle(request, send) : handle,
  })
  const anyPort = { port: 0, address: '127.0.0.1' }
  const { udp, tcp } = await server.listen({ udp: anyPort, tcp: anyPort })
  return { port: udp?.port, tcpPort: tcp?.port }
}

process.on('message', async () => {
  for (let i = 0; i < 2; i++) {
    globalThis.gc?.()
    // Buffers are freed a little after what held them.
    await setImmediate()
  }
  const { heapUsed, external } = process.memoryUsage()
  process.send?.({ memory: heapUsed + external })
})
process.on('disconnect', () => process.exit())
process.send?.(await (kind === 'ours' ? listenOurs() : listenDns2(kind === 'dns2-async')))
