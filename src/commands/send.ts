/** `roundelay send`: the book's echo client (TLPI 60.2, id_echo_cl), over TCP too. */
import { lookup, Resolver } from 'node:dns/promises'
import { isIP } from 'node:net'
import { type EchoSession, openEcho, type Transport } from '../client/echo.ts'
import { formatAddress, type SocketAddress, UsageError } from '../parse.ts'
import type { Options, Run } from './options.ts'

export const run: Run<'send'> = async (options, args, { exit }) => {
  const [host, ...messages] = args
  const transport = chooseTransport(options)
  const server = { address: await resolve(host, options), port: options.port }
  let session: EchoSession | undefined
  let failed = false
  for (const text of messages) {
    const message = Buffer.from(text)
    const limit = AbortSignal.timeout(options.timeout)
    const started = performance.now()
    try {
      session ??= await openEcho(transport, server, limit)
      const reply = await session.exchange(message, limit)
      const took = `${(performance.now() - started).toFixed(3)} ms`
      const details = options.verbose ? `  from ${formatAddress(server)} ${transport} in ${took}` : ''
      process.stdout.write(`[${reply.length} bytes] ${reply}${details}\n`)
      if (reply.equals(message)) continue
      failed = true
      complain(`the reply differs from "${text}"`)
    } catch (error) {
      failed = true
      const reason = limit.aborted ? `no reply within ${options.timeout} ms` : (error as Error).message
      complain(`no echo of "${text}" from ${formatAddress(server)} ${transport}: ${reason}`)
      // A late reply must not be taken for the next message's.
      session?.close()
      session = undefined
    }
  }
  session?.close()
  if (failed) exit(1)
}

function chooseTransport({ udp, tcp, given }: Options<'send'>): Transport {
  if (!udp || !tcp) return tcp ? 'tcp' : 'udp'
  // A flag goes before the environment, also before that of its opposite.
  if (given.get('udp') === given.get('tcp'))
    throw new UsageError('Cannot send over both: give --udp or --tcp')
  return given.get('tcp') === 'flag' ? 'tcp' : 'udp'
}

const complain = (text: string) => void process.stderr.write(`roundelay: ${text}\n`)

/** The first address, in the order that the resolver gives: what a simple client uses. */
async function resolve(host: string, { dns, timeout }: Options<'send'>): Promise<string> {
  if (isIP(host)) return host
  if (!dns) return (await lookup(host)).address
  return (await ask(host, dns, timeout))[0]
}

async function ask(host: string, server: SocketAddress, timeoutMs: number): Promise<string[]> {
  const resolver = new Resolver({ timeout: timeoutMs, tries: 1 })
  resolver.setServers([formatAddress(server)])
  try {
    return await resolver.resolve4(host)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENODATA') throw error
    return resolver.resolve6(host)
  }
}
