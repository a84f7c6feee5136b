/** `roundelay send`: the book's echo client (TLPI 60.2, id_echo_cl), also over TCP. */
import { formatAddress, type Transport } from '../address.ts'
import { type EchoSession, openEcho } from '../client/echo.ts'
import { resolver } from '../client/resolve.ts'
import { systemClock } from '../clock.ts'
import { UsageError } from '../errors.ts'
import type { Options, Run } from './options.ts'

export const run: Run<'send'> = async (options, args, { exit }) => {
  const [host, ...messages] = args
  const transport = chooseTransport(options)
  // The first address in the resolver's order, as a simple client uses it.
  const { addresses } = await resolver(host!, options.dns, options.timeout, 'each', systemClock)()
  const server = { address: addresses[0]!, port: options.port }
  let session: EchoSession | undefined
  let failed = false
  for (const text of messages) {
    const message = Buffer.from(text)
    const limit = AbortSignal.timeout(options.timeout)
    const started = systemClock.now()
    try {
      session ??= await openEcho(transport, server, limit)
      const reply = await session.exchange(message, limit)
      const took = `${(systemClock.now() - started).toFixed(3)} ms`
      const details = options.verbose ? `  from ${formatAddress(server)} ${transport} in ${took}` : ''
      process.stdout.write(`[${reply.length} bytes] ${reply}${details}\n`)
      if (reply.equals(message)) continue
      failed = true
      complain(`the reply differs from "${text}"`)
    } catch (error) {
      failed = true
      const reason = limit.aborted ? `no reply within ${options.timeout} ms` : (error as Error).message
      complain(`no echo of "${text}" from ${formatAddress(server)} ${transport}: ${reason}`)
      // A late reply must not be taken for the reply to the next message.
      session?.close()
      session = undefined
    }
  }
  session?.close()
  if (failed) exit(1)
}

export function chooseTransport({
  udp,
  tcp,
  given,
}: Pick<Options<'send'>, 'udp' | 'tcp' | 'given'>): Transport {
  if (!udp || !tcp) return tcp ? 'tcp' : 'udp'
  // A flag takes precedence over the environment, also over the variable of the opposite flag.
  if (given.get('udp') === given.get('tcp'))
    throw new UsageError('Cannot send over both transports: expected --udp or --tcp')
  return given.get('tcp') === 'flag' ? 'tcp' : 'udp'
}

const complain = (text: string) => void process.stderr.write(`roundelay: ${text}\n`)
