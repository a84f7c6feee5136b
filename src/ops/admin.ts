/**
 * The admin HTTP server of a process, and through terminus its end: probes, metrics, state; on SIGTERM not
 * ready at once, still serving for the lame-duck time, then closed in good order. The traps of terminus that
 * this goes round are listed in ARCHITECTURE, "terminus".
 */
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import terminus from '@godaddy/terminus'
import type { SocketAddress } from '../address.ts'
import type { Logger } from './log.ts'
import type { Metrics, Sample } from './metrics.ts'

interface AdminOptions {
  readonly listen: SocketAddress
  readonly log: Logger
  readonly metrics: Metrics
  readonly samples: () => readonly Sample[]
  /** JSON documents by path, as in `/state`. */
  readonly documents: Readonly<Record<string, () => unknown>>
  /** Undefined while the process serves, else what it waits for. */
  readonly notReady: () => string | undefined
  /** Stands in a ready `/readyz`: the load that `least-loaded` goes by. */
  readonly connections: () => number
  /** Ends the data plane: stop listening, finish what is open, cut it off when `deadline` aborts. */
  readonly close: (deadline: AbortSignal) => Promise<void>
  /** After SIGTERM: not ready, but still serving. */
  readonly drainMs: number
  /** Then: for what is open to finish. */
  readonly graceMs: number
  readonly exit: (code: number) => void
  /** Called when SIGTERM and SIGINT are ours. */
  readonly takeSignals: () => void
}

/** After Ctrl-C nobody waits for caches to forget us. */
const INTERRUPT_GRACE_MS = 500
/** npm and a terminal both pass Ctrl-C on: two of one kind within this time are one. */
const SAME_SIGNAL_MS = 300
const SIGNAL_NUMBERS = { SIGINT: 2, SIGTERM: 15 }

/** Resolves, with where it listens, when it does. From then on SIGTERM and SIGINT are its own. */
export async function startAdmin(options: AdminOptions): Promise<SocketAddress> {
  const { log, listen } = options
  const ending: { signal?: 'SIGINT' | 'SIGTERM'; since: number } = { since: 0 }
  const server = createServer((request, response) => {
    serve(request, response, options).catch(error => {
      log.error({ err: error, url: request.url }, 'cannot answer')
      response.writeHead(500).end()
    })
  })

  const onSignal = (signal: 'SIGINT' | 'SIGTERM') => {
    if (ending.signal === undefined) {
      Object.assign(ending, { signal, since: performance.now() })
    } else if (ending.signal !== signal || performance.now() - ending.since > SAME_SIGNAL_MS) {
      log.warn({ signal }, 'second signal: ending at once')
      options.exit(128 + SIGNAL_NUMBERS[signal])
    }
  }
  // Before terminus', so that `ending` is set when it calls `beforeShutdown`.
  process.on('SIGTERM', onSignal).on('SIGINT', onSignal)
  options.takeSignals()
  const interrupted = () => ending.signal === 'SIGINT'

  terminus.createTerminus(server, {
    signals: ['SIGTERM', 'SIGINT'],
    useExit0: true,
    timeout: 100,
    sendFailuresDuringShutdown: false,
    healthChecks: {
      // What a check returns stays in terminus' status object for all of them: only one may return anything,
      // and always the same fields.
      '/livez': async () => {},
      '/readyz': async () => {
        const reason = ending.signal ? 'draining' : options.notReady()
        if (reason === undefined) return { status: 'ok', connections: options.connections() }
        const body = { statusCode: 503, statusResponse: { status: reason } }
        throw Object.assign(new Error(reason), body)
      },
      verbatim: true,
    },
    beforeShutdown: async () => {
      const drainMs = interrupted() ? 0 : options.drainMs
      log.info({ signal: ending.signal, drainMs }, 'draining: not ready any more, still serving')
      await sleep(drainMs)
    },
    onSignal: async () => {
      const graceMs = interrupted() ? Math.min(options.graceMs, INTERRUPT_GRACE_MS) : options.graceMs
      log.info({ graceMs }, 'closing: no new clients, open connections may finish')
      // terminus would wait for ever for a close that hangs.
      await Promise.race([options.close(AbortSignal.timeout(graceMs)), sleep(graceMs + 500)])
    },
    onShutdown: async () => log.info('ended'),
    logger: (message, error) => log.debug({ reason: error.message }, message),
  })
  // terminus matches `request.url` to the letter: "/readyz?verbose" must be "/readyz" by then. It does not look
  // at the method: what only `serve` refuses must not be one of its paths.
  server.prependListener('request', (request: IncomingMessage) => {
    request.url = isRead(request) ? request.url?.split('?', 1)[0] : '*'
  })

  server.listen({ host: listen.address, port: listen.port })
  await once(server, 'listening')
  return { address: listen.address, port: (server.address() as { port: number }).port }
}

const isRead = ({ method }: IncomingMessage) => method === 'GET' || method === 'HEAD'

async function serve(
  request: IncomingMessage,
  response: ServerResponse,
  options: AdminOptions,
): Promise<void> {
  const { metrics, samples, documents } = options
  const send = (status: number, contentType: string, body: string) =>
    response.writeHead(status, { 'content-type': contentType, 'cache-control': 'no-store' }).end(body)
  const path = request.url ?? '/'
  const document = Object.hasOwn(documents, path) ? documents[path] : undefined
  if (!isRead(request)) {
    response.setHeader('allow', 'GET, HEAD')
    send(405, 'text/plain', 'only GET and HEAD\n')
  } else if (path === '/metrics') {
    const { contentType, text } = await metrics.expose(samples())
    send(200, contentType, text)
  } else if (document) {
    send(200, 'application/json', `${JSON.stringify(document(), null, 2)}\n`)
  } else {
    const known = ['/livez', '/readyz', '/metrics', ...Object.keys(documents)]
    send(404, 'text/plain', `no ${path} here; there are ${known.join(' ')}\n`)
  }
}
