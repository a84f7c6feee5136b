/**
 * The admin HTTP server of a process: probes, metrics and JSON documents. The routes are a plain function.
 */
import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import { type AddressInfo, isIP } from 'node:net'
import type { SocketAddress } from '../address.ts'
import type { Logger } from './log.ts'

export interface Site {
  /** The process is ending but still serves. */
  readonly draining: () => boolean
  /** Undefined while the process is ready, otherwise the reason why it is not. */
  readonly notReady: () => string | undefined
  /** The load that the policy `least-loaded` compares; part of a ready `/readyz`. */
  readonly connections: () => number
  readonly metrics: () => Promise<{ readonly contentType: string; readonly text: string }>
  /** JSON documents by path, such as `/state`. */
  readonly documents: Readonly<Record<string, () => unknown>>
}

export interface Reply {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

const routes: Readonly<Record<string, (site: Site) => Reply | Promise<Reply>>> = {
  '/livez': () => reply(200, 'application/json', '{"status":"ok"}\n'),
  '/readyz': ({ draining, notReady, connections }) => {
    const status = draining() ? 'draining' : notReady()
    const body = status === undefined ? { status: 'ok', connections: connections() } : { status }
    return reply(status === undefined ? 200 : 503, 'application/json', `${JSON.stringify(body)}\n`)
  },
  '/metrics': async ({ metrics }) => {
    const { contentType, text } = await metrics()
    return reply(200, contentType, text)
  },
}

/** A browser must neither guess another type for a reply, nor load anything for it, nor show it in a frame. */
const browserHeaders = {
  'x-content-type-options': 'nosniff',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
}

/** Of an address as `ipAddress` writes it, or its IPv4-mapped form. */
const isLoopback = (address: string): boolean => /^(127\.|::1$|::ffff:7f)/.test(address)

/** The host in a Host header or in an absolute request target, without its port. */
const hostOf = (authority: string): string => authority.replace(/:\d*$/, '').replace(/^\[(.*)\]$/, '$1')

/** A request target in its absolute form (RFC 9112, 3.2.2): its authority replaces the Host header. */
const absoluteForm = /^https?:\/\/([^/?#]*)(.*)$/i

/**
 * Whether a request may be answered by an admin port on loopback. A web page whose name suddenly leads to
 * 127.0.0.1 (DNS rebinding) could read it through the browser of somebody here; its name is then in `Host`.
 */
export function isLocalHost(host: string | undefined, url: string): boolean {
  // HTTP/1.0 has no Host, and no browser speaks it.
  const authority = absoluteForm.exec(url)?.[1] ?? host
  if (authority === undefined) return true
  const name = hostOf(authority)
  return isIP(name) !== 0 || name.toLowerCase() === 'localhost'
}

/** The reply to one request. HEAD gets the reply to GET; `node:http` leaves its body out. */
export async function answer(method: string, url: string, site: Site): Promise<Reply> {
  const [, , rest = url] = absoluteForm.exec(url) ?? []
  const path = rest.split('?', 1)[0] || '/'
  if (method !== 'GET' && method !== 'HEAD')
    return reply(405, 'text/plain', 'only GET and HEAD\n', { allow: 'GET, HEAD' })
  const route = Object.hasOwn(routes, path) ? routes[path] : undefined
  if (route) return route(site)
  const document = Object.hasOwn(site.documents, path) ? site.documents[path] : undefined
  if (document) return reply(200, 'application/json', `${JSON.stringify(document(), null, 2)}\n`)
  const known = [...Object.keys(routes), ...Object.keys(site.documents)]
  return reply(404, 'text/plain', `no ${path} here; there are ${known.join(' ')}\n`)
}

const reply = (status: number, contentType: string, body: string, more: Reply['headers'] = {}): Reply => ({
  status,
  headers: { 'content-type': contentType, 'cache-control': 'no-store', ...browserHeaders, ...more },
  body,
})

/** Resolves when the server listens. */
export async function serveHttp(
  { address, port }: SocketAddress,
  site: Site,
  log: Pick<Logger, 'error'>,
): Promise<{ readonly server: Server; readonly address: SocketAddress }> {
  const isPublic = !isLoopback(address)
  const server = createServer(async (request, response) => {
    const { method = '', url = '/' } = request
    try {
      const { status, headers, body } =
        isPublic || isLocalHost(request.headers.host, url)
          ? await answer(method, url, site)
          : reply(403, 'text/plain', 'the host must be an IP address or localhost\n')
      response.writeHead(status, headers).end(body)
    } catch (error) {
      log.error({ err: error, url }, 'cannot answer an HTTP request')
      response.writeHead(500, browserHeaders).end()
    }
  })
  server.listen({ host: address, port })
  await once(server, 'listening')
  return { server, address: { address, port: (server.address() as AddressInfo).port } }
}
