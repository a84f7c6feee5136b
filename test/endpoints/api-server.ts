/**
 * The part of a Kubernetes API server that serves EndpointSlices: list in pages and watch, as "Kubernetes API
 * concepts" describes them. `answer` replaces its answers where a test needs a fault.
 */
import { EventEmitter, once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { createServer as createSecureServer, type ServerOptions } from 'node:https'
import { isIPv6, type Socket } from 'node:net'
import type { TestContext } from 'node:test'
import type { TLSSocket } from 'node:tls'
import type { Endpoint, Sink, Source, SourceNote } from '../../src/endpoints/endpoint.ts'
import type { EndpointSlice } from '../../src/endpoints/kubernetes.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

export interface Asked {
  readonly method: string
  readonly url: string
  readonly query: URLSearchParams
  readonly kind: 'list' | 'watch' | 'other'
  readonly token: string | undefined
  /** The name in the client's certificate. */
  readonly client: string | undefined
}

/** True when the request has been answered here. */
type Answer = (asked: Asked, response: ServerResponse) => boolean

const PATH = /^\/apis\/discovery\.k8s\.io\/v1\/namespaces\/[a-z0-9-]+\/endpointslices$/

export const status = (code: number, message: string) =>
  JSON.stringify({ kind: 'Status', apiVersion: 'v1', status: 'Failure', code, message })

export const refuse = (response: ServerResponse, code: number, message: string): true => {
  response.writeHead(code, { 'content-type': 'application/json' }).end(status(code, message))
  return true
}

/**
 * A slice as the controller writes it: each endpoint is an address and its conditions, or just an address.
 */
export function slice(
  name: string,
  endpoints: readonly (string | readonly [string, object])[] | null,
  addressType: EndpointSlice['addressType'] = 'IPv4',
): EndpointSlice {
  const metadata = { name, annotations: { 'test/text': 'übergroß – 木 – 🎶' } }
  const entries = endpoints?.map(entry =>
    typeof entry === 'string'
      ? { addresses: [entry], conditions: { ready: true, serving: true, terminating: false } }
      : { addresses: [entry[0]], conditions: entry[1] },
  )
  return { metadata, addressType, endpoints: entries ?? null }
}

export async function startApi(
  t: TestContext,
  { host = '127.0.0.1', tls = undefined as ServerOptions | undefined } = {},
) {
  const asked: Asked[] = []
  const news = new EventEmitter().setMaxListeners(0)
  const slices = new Map<string, EndpointSlice>()
  const history: { version: number; type: string; object: EndpointSlice }[] = []
  const watches = new Set<ServerResponse>()
  const sockets = new Set<Socket>()
  let version = 100
  let oldest = 0

  const api = {
    asked,
    watches,
    url: '',
    /** The most slices that a page holds, whatever the client's limit. */
    page: Number.POSITIVE_INFINITY,
    answer: (() => false) as Answer,
    put(...given: EndpointSlice[]) {
      for (const each of given) change(slices.has(each.metadata.name) ? 'MODIFIED' : 'ADDED', each)
    },
    remove(name: string) {
      const slice = slices.get(name)
      if (slice) change('DELETED', slice)
    },
    /** A change in the rest of the cluster. */
    elsewhere: () => String(++version),
    /** As etcd does every five minutes. */
    compact: () => {
      oldest = ++version
    },
    write(text: string | Buffer) {
      for (const watch of watches) watch.write(text)
    },
    bookmark: () => api.write(event('BOOKMARK', { metadata: { resourceVersion: api.elsewhere() } })),
    /** As the server does when their time is over. */
    endWatches() {
      for (const watch of watches) watch.end()
    },
    cut() {
      for (const socket of sockets) socket.destroy()
    },
    connections: () => sockets.size,
    lists: () => asked.filter(({ kind }) => kind === 'list'),
    watched: () => asked.filter(({ kind }) => kind === 'watch'),
    async until(fits: () => boolean) {
      while (!fits()) await once(news, 'change')
    },
    async down() {
      const closed = once(server.close(), 'close')
      api.cut()
      await closed
    },
    async up() {
      server.listen({ host, port: Number(new URL(api.url).port) })
      await once(server, 'listening')
    },
  }

  const event = (type: string, object: object) => `${JSON.stringify({ type, object })}\n`

  function change(type: string, given: EndpointSlice) {
    const object = { ...given, metadata: { ...given.metadata, resourceVersion: String(++version) } }
    if (type === 'DELETED') slices.delete(object.metadata.name)
    else slices.set(object.metadata.name, object)
    history.push({ version, type, object })
    api.write(event(type, object))
  }

  function list({ query }: Asked, response: ServerResponse) {
    const [from, at] = query.has('continue')
      ? JSON.parse(Buffer.from(query.get('continue') ?? '', 'base64').toString())
      : [0, version]
    if (at < oldest) {
      refuse(response, 410, 'The provided continue parameter is too old')
      return
    }
    const size = Math.min(api.page, Number(query.get('limit') ?? Number.POSITIVE_INFINITY))
    const all = [...slices.values()]
    const more = from + size < all.length
    // The padding makes a token whose "=" and "+" must be encoded.
    const next = `${Buffer.from(JSON.stringify([from + size, at, '~~>>??'])).toString('base64')}`
    const metadata = { resourceVersion: String(at), ...(more && { continue: next }) }
    const items = all.slice(from, from + size)
    response.writeHead(200, { 'content-type': 'application/json' })
    response.end(JSON.stringify({ kind: 'EndpointSliceList', metadata, items }))
  }

  function watch({ query }: Asked, response: ServerResponse) {
    const from = Number(query.get('resourceVersion'))
    response.writeHead(200, { 'content-type': 'application/json' }).flushHeaders()
    // A real server reports this in an event, after a 200.
    if (from < oldest) {
      response.end(event('ERROR', JSON.parse(status(410, `too old resource version: ${from} (${oldest})`))))
      return
    }
    for (const past of history) if (past.version > from) response.write(event(past.type, past.object))
    watches.add(response)
    response.on('close', () => {
      watches.delete(response)
      news.emit('change')
    })
  }

  const handle = (request: IncomingMessage, response: ServerResponse) => {
    const { pathname, searchParams: query } = new URL(request.url ?? '', 'http://api')
    const known = request.method === 'GET' && PATH.test(pathname)
    const seen: Asked = {
      method: request.method ?? '',
      url: request.url ?? '',
      query,
      kind: !known ? 'other' : query.has('watch') ? 'watch' : 'list',
      token: request.headers.authorization?.replace(/^Bearer /, ''),
      client: (request.socket as TLSSocket).getPeerCertificate?.()?.subject?.CN as string | undefined,
    }
    asked.push(seen)
    if (!api.answer(seen, response)) {
      if (seen.kind === 'list') list(seen, response)
      else if (seen.kind === 'watch') watch(seen, response)
      else refuse(response, 404, 'the server could not find the requested resource')
    }
    news.emit('change')
  }

  const server = tls ? createSecureServer(tls, handle) : createServer(handle)
  server.on(tls ? 'secureConnection' : 'connection', (socket: Socket) => {
    sockets.add(socket)
    socket
      .on('error', () => {})
      .on('close', () => {
        sockets.delete(socket)
        news.emit('change')
      })
  })
  server.listen({ host, port: 0 })
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  api.url = `${tls ? 'https' : 'http'}://${isIPv6(host) ? `[${host}]` : host}:${port}`
  t.after(async () => {
    server.close()
    api.cut()
  })
  return api
}

/** The limits of a list, of an exec plugin and of a watch. */
const LIMITS_MS = [10_000, 30_000, 40_000]

/**
 * Virtual time in which the source's own waits pass at once: those after a failure, and those in which events
 * are gathered. Limits are reached only when a test moves the time.
 */
export class SourceClock extends VirtualClock {
  /** The waits so far, in milliseconds. */
  readonly waits: number[] = []

  override after(ms: number, task: () => void): () => void {
    const cancel = super.after(ms, task)
    if (!LIMITS_MS.includes(ms)) {
      this.waits.push(ms)
      setImmediate(() => this.advance(ms))
    }
    return cancel
  }
}

/**
 * Starts a source and keeps what it reports, in order: its endpoints as `10.0.0.1 rst` for those conditions,
 * or its error.
 */
export function follow<C extends VirtualClock = SourceClock>(
  t: TestContext,
  source: Source,
  clock = new SourceClock() as VirtualClock as C,
  random = () => 0.5,
) {
  const stop = new AbortController()
  const reported: (string[] | string)[] = []
  const notes: SourceNote[] = []
  const news = new EventEmitter()
  const add = (report: string[] | string) => {
    reported.push(report)
    news.emit('report')
  }
  const letters = (e: Endpoint) => `${e.ready ? 'r' : ''}${e.serving ? 's' : ''}${e.terminating ? 't' : ''}`
  const sink: Sink = {
    publish: endpoints => add(endpoints.map(e => `${e.address} ${letters(e)}`.trim())),
    fail: error => add(error.message),
    note: note => notes.push(note),
  }
  const running = source(sink, stop.signal, clock, random)
  running.finally(() => news.emit('report'))
  t.after(async () => {
    stop.abort()
    await running
  })
  const until = async (fits: () => boolean) => {
    while (!fits()) await once(news, 'report')
  }
  return {
    ...{ clock, reported, notes, running, stop, until },
    failures: () => reported.filter(report => typeof report === 'string'),
    /** Until a watch that has just been seen is not a short one. */
    longWatch: () => clock.advance(1000),
    /** Until the last endpoints are these. */
    has: (...wanted: string[]) =>
      until(() => reported.findLast(report => Array.isArray(report))?.join() === wanted.join()),
  }
}
