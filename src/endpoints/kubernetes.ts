/**
 * Endpoints from the EndpointSlices of a Kubernetes Service: list, then watch (Kubernetes API concepts,
 * "Efficient detection of changes"; EndpointSlice v1 of discovery.k8s.io). Why not @kubernetes/client-node:
 * see ARCHITECTURE.
 */
import { type ClientRequest, type IncomingMessage, request as requestHttp } from 'node:http'
import { request as requestHttps } from 'node:https'
import { endpointProblem } from '../address.ts'
import { type Clock, gather, pause } from '../clock.ts'
import { byAddress, type Endpoint, endpoint, endpointFilter, type Source } from './endpoint.ts'
import { type Cluster, loadCluster } from './kubernetes-config.ts'

/** The part of an EndpointSlice that is read here. */
export interface EndpointSlice {
  readonly metadata: { readonly name: string; readonly resourceVersion?: string }
  readonly addressType: 'IPv4' | 'IPv6' | 'FQDN'
  /** Null where a slice of the other family is empty. */
  readonly endpoints?: readonly SliceEndpoint[] | null
}

interface SliceEndpoint {
  readonly addresses: readonly string[]
  readonly conditions?: {
    readonly ready?: boolean | null
    readonly serving?: boolean | null
    readonly terminating?: boolean | null
  }
}

interface EndpointSliceList {
  readonly metadata?: { readonly resourceVersion?: string; readonly continue?: string }
  readonly items?: readonly EndpointSlice[] | null
}

interface WatchEvent {
  readonly type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK' | 'ERROR'
  readonly object: EndpointSlice & Status
}

interface Status {
  readonly code?: number
  readonly message?: string
}

/** For how long the server is asked to keep a watch open. */
const WATCH_SECONDS = 30
/**
 * A list that has no answer after this time has failed, and so has a watch that goes on for so long after its
 * time.
 */
const SILENT_MS = 10_000
/**
 * The wait after a failure, doubled with each further one up to the maximum. Each is shortened by up to half.
 */
const BACKOFF_MS = 500
const MAX_BACKOFF_MS = 5000
/**
 * A watch that ends sooner than this was not ended by its time, and does not show that the API has recovered.
 */
const SHORT_WATCH_MS = 1000
/**
 * The events within this time are applied together, since all endpoints of the Service are computed each
 * time.
 */
const GATHER_MS = 10
const MAX_STATUS_OCTETS = 2 ** 20
const API = 'the Kubernetes API'
const PAGE = 500
const KEEP_ALIVE_MS = 10_000
/** A slice has at most 1,000 endpoints (API validation), each well below 2 KiB. */
const MAX_LINE_CHARACTERS = 8 * 1024 * 1024
/** What a Service may have: more is a fault of the API, or more than this server is made for. */
const MAX_LIST_MIB = 64
const MAX_ENDPOINTS = 20_000
/** A server may send fewer slices in a page than it is asked for, but a list has an end. */
const MAX_PAGES = 1000

/**
 * Without `namespace`, the one that the process runs in, or the kubeconfig's. Nothing is read before the
 * source is started.
 */
export function kubernetesSource(
  namespace: string | undefined,
  service: string,
  load: (signal: AbortSignal, clock: Clock) => Promise<Cluster> = loadCluster,
): Source {
  return async ({ publish, fail, note }, signal, clock, random) => {
    const isEndpoint = endpointFilter(note)
    let failures = 0
    while (!signal.aborted) {
      try {
        const cluster = await load(signal, clock)
        await follow(
          { cluster, path: path(namespace ?? cluster.namespace, service), signal, clock },
          {
            onSlices: slices => publish(endpointsOf(slices, isEndpoint)),
            // A list that succeeds does not reset the waits: where each watch after it fails, they must grow.
            onLongWatch: () => {
              failures = 0
            },
          },
        )
      } catch (error) {
        if (signal.aborted) return
        // A version that is too old is not a failure unless the new list does not help.
        const isTooOld = error instanceof ApiError && error.code === 410
        if (!isTooOld || failures > 0) fail(error as Error)
        const waitMs = Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** failures++)
        await pause(clock, waitMs * (1 - random() / 2), signal)
      }
    }
  }
}

function path(namespace: string, service: string): string {
  const selector = encodeURIComponent(`kubernetes.io/service-name=${service}`)
  return `/apis/discovery.k8s.io/v1/namespaces/${namespace}/endpointslices?labelSelector=${selector}`
}

/** An answer of the API itself, other than 200. */
class ApiError extends Error {
  readonly code: number
  constructor(code: number, message: string) {
    super(`${API} answered ${code}: ${message}${HINTS[code] ?? ''}`)
    this.code = code
  }
}

const HINTS: { readonly [code: number]: string } = {
  401: ' (the token is not accepted)',
  403: ' (the ServiceAccount needs the verbs list and watch for endpointslices in discovery.k8s.io)',
}

/** What requests need. */
interface Connection {
  readonly cluster: Cluster
  /** Of the EndpointSlices of the Service. */
  readonly path: string
  readonly signal: AbortSignal
  readonly clock: Clock
}

/** Lists, then watches from there, one watch after the other. Rejects when a new list is needed. */
async function follow(
  connection: Connection,
  events: { onSlices: (slices: Iterable<EndpointSlice>) => void; onLongWatch: () => void },
): Promise<void> {
  const { cluster, signal, clock } = connection
  const { slices, resourceVersion } = await list(connection)
  events.onSlices(slices.all())
  const changes = gather(clock, GATHER_MS, () => events.onSlices(slices.all()))
  let version = resourceVersion
  while (!signal.aborted) {
    const from = encodeURIComponent(version)
    const query = `&watch=1&allowWatchBookmarks=true&timeoutSeconds=${WATCH_SECONDS}&resourceVersion=${from}`
    const startedMs = clock.now()
    let answered = false
    const isShort = () => clock.now() - startedMs < SHORT_WATCH_MS
    try {
      await get(connection, query, WATCH_SECONDS * 1000 + SILENT_MS, async response => {
        answered = true
        for await (const line of lines(response)) {
          const event: WatchEvent | null = JSON.parse(line)
          if (!event?.object) throw new Error('a line of the watch is not an event')
          const { type, object } = event
          if (type === 'ERROR') throw new ApiError(object.code ?? 0, object.message ?? 'watch error')
          version = object.metadata.resourceVersion ?? version
          if (type === 'DELETED') slices.delete(object.metadata.name)
          else if (type === 'ADDED' || type === 'MODIFIED') slices.put(object)
          else continue
          changes.add()
        }
      })
    } finally {
      if (signal.aborted) changes.cancel()
      else changes.flush()
      if (answered && !isShort()) events.onLongWatch()
    }
    if (isShort())
      throw new Error(`${API} at ${cluster.server.host}: the watch ended as soon as it had begun`)
  }
}

/** The slices of a Service by name, as many as are allowed. */
class Slices {
  readonly #byName = new Map<string, EndpointSlice>()
  #endpoints = 0

  all(): Iterable<EndpointSlice> {
    return this.#byName.values()
  }

  /** Throws where this would be too much, and changes nothing then. */
  put(slice: EndpointSlice): void {
    const { name } = slice.metadata
    const before = this.#byName.get(name)
    const endpoints = this.#endpoints - countOf(before) + countOf(slice)
    if (endpoints > MAX_ENDPOINTS) throw new Error(`the Service has more than ${MAX_ENDPOINTS} endpoints`)
    if (!before && this.#byName.size >= MAX_ENDPOINTS)
      throw new Error(`the Service has more than ${MAX_ENDPOINTS} EndpointSlices`)
    this.#endpoints = endpoints
    this.#byName.set(name, slice)
  }

  delete(name: string): void {
    this.#endpoints -= countOf(this.#byName.get(name))
    this.#byName.delete(name)
  }
}

const countOf = (slice: EndpointSlice | undefined): number => slice?.endpoints?.length ?? 0

/** Reads all pages. The resource version is that of the list, from which a watch may start. */
async function list(connection: Connection) {
  const slices = new Slices()
  const room = { octets: MAX_LIST_MIB * 2 ** 20, what: `the list is longer than ${MAX_LIST_MIB} MiB` }
  let resourceVersion = ''
  let next = ''
  let pages = 0
  do {
    const query = `&limit=${PAGE}${next && `&continue=${encodeURIComponent(next)}`}`
    await get(connection, query, SILENT_MS, async response => {
      if (++pages > MAX_PAGES) throw new Error(`the list has more than ${MAX_PAGES} pages`)
      const page: EndpointSliceList | null = JSON.parse(await text(response, room))
      if (!page?.metadata?.resourceVersion) throw new Error('the answer is not a list')
      for (const slice of page.items ?? []) slices.put(slice)
      resourceVersion = page.metadata.resourceVersion
      next = page.metadata.continue ?? ''
    })
  } while (next)
  return { slices, resourceVersion }
}

/** One GET, whose body `read` takes. Rejects with the reason, `limitMs` after its start at the latest. */
async function get(
  { cluster, path, signal, clock }: Connection,
  query: string,
  limitMs: number,
  read: (response: IncomingMessage) => Promise<void>,
): Promise<void> {
  const url = new URL(cluster.server.pathname.replace(/\/$/, '') + path + query, cluster.server)
  const token = await cluster.token()
  const headers = { accept: 'application/json', ...(token && { authorization: `Bearer ${token}` }) }
  const limit = new AbortController()
  const cancelLimit = clock.after(limitMs, () => limit.abort())
  const ends = AbortSignal.any([signal, limit.signal])
  const options = { headers, agent: false, signal: ends, ...cluster.tls }
  const request = url.protocol === 'http:' ? requestHttp(url, options) : requestHttps(url, options)
  try {
    const response = await responseTo(request)
    if (response.statusCode !== 200)
      throw new ApiError(response.statusCode ?? 0, await statusMessage(response))
    await read(response)
  } catch (error) {
    if (error instanceof ApiError) throw error
    const why = limit.signal.aborted ? `the answer did not end within ${limitMs} ms` : reason(error as Error)
    throw new Error(`${API} at ${url.host}: ${why}`, { cause: error })
  } finally {
    cancelLimit()
    request.destroy()
  }
}

function responseTo(request: ClientRequest): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    request.on('response', resolve).on('error', reject)
    // The kernel notices a peer that vanished without closing the connection.
    request.on('socket', socket => socket.setKeepAlive(true, KEEP_ALIVE_MS))
    request.end()
  })
}

function reason({ message, code }: NodeJS.ErrnoException): string {
  // Node's own text is "aborted", which reads as if we had done it.
  if (code === 'ECONNRESET') return 'the connection was cut'
  // Where a name has several addresses and all refuse, the error has only a code.
  return message || (code ?? 'unknown')
}

/** The message of the Status object that the API sends with an error. */
async function statusMessage(response: IncomingMessage): Promise<string> {
  const room = { octets: MAX_STATUS_OCTETS, what: 'the reason for the error is too long' }
  try {
    const body = await text(response, room)
    return JSON.parse(body).message ?? response.statusMessage
  } catch {
    return response.statusMessage ?? ''
  }
}

/** What several bodies together may have; `what` is the error of one that has more. */
interface Room {
  octets: number
  readonly what: string
}

async function text(response: IncomingMessage, room: Room): Promise<string> {
  const parts: Buffer[] = []
  for await (const chunk of response as AsyncIterable<Buffer>) {
    parts.push(chunk)
    room.octets -= chunk.length
    if (room.octets < 0) throw new Error(room.what)
  }
  return Buffer.concat(parts).toString()
}

/** The lines of a stream. One that is cut off at the end is dropped: the next watch repeats its event. */
async function* lines(response: IncomingMessage): AsyncGenerator<string> {
  let parts: string[] = []
  let characters = 0
  for await (const chunk of response.setEncoding('utf8') as AsyncIterable<string>) {
    let start = 0
    for (let end = chunk.indexOf('\n'); end !== -1; end = chunk.indexOf('\n', start)) {
      parts.push(chunk.slice(start, end))
      const line = parts.join('')
      parts = []
      characters = 0
      start = end + 1
      if (line.trim()) yield line
    }
    parts.push(chunk.slice(start))
    characters += chunk.length - start
    if (characters > MAX_LINE_CHARACTERS)
      throw new Error(`a watch event is longer than ${MAX_LINE_CHARACTERS} characters`)
  }
}

/**
 * The endpoints of all slices of a Service. Conditions that are nil mean what the API defines: `ready` true,
 * `serving` the same as `ready`, `terminating` false. Of an endpoint's addresses the first is used, as the
 * API asks of consumers. While an endpoint moves between slices it is in both, and the better entry counts.
 */
export function endpointsOf(
  slices: Iterable<EndpointSlice>,
  isEndpoint = (address: string) => endpointProblem(address) === undefined,
): Endpoint[] {
  const found = new Map<string, Endpoint>()
  for (const { addressType, endpoints } of slices) {
    if (addressType === 'FQDN') continue
    for (const { addresses, conditions } of endpoints ?? []) {
      const [address] = addresses
      // The API accepts texts that are not addresses, such as 010.0.0.1. One bad entry must not hide the
      // others.
      if (address === undefined || !isEndpoint(address)) continue
      const ready = conditions?.ready ?? true
      const serving = conditions?.serving ?? ready
      const terminating = conditions?.terminating ?? false
      const entry = { ...endpoint(address), ready, serving, terminating }
      const known = found.get(entry.address)
      if (!known || rank(entry) > rank(known)) found.set(entry.address, entry)
    }
  }
  return [...found.values()].sort(byAddress)
}

const rank = ({ ready, serving, terminating }: Endpoint): number =>
  Number(ready && !terminating) * 8 + Number(serving) * 4 + Number(!terminating) * 2 + Number(ready)
