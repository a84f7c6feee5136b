/**
 * Endpoints from the EndpointSlices of a Kubernetes Service: list, then watch (Kubernetes API concepts, "Efficient
 * detection of changes"; EndpointSlice v1 of discovery.k8s.io). Why not @kubernetes/client-node: see ARCHITECTURE.
 */
import { type ClientRequest, type IncomingMessage, request as requestHttp } from 'node:http'
import { request as requestHttps } from 'node:https'
import { isIP } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { byAddress, type Endpoint, endpoint, type Source } from './endpoint.ts'
import { type Cluster, loadCluster } from './kubernetes-config.ts'

/** What of an EndpointSlice is read here. */
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

export interface KubernetesTimes {
  /** For how long the server is asked to keep a watch open. */
  readonly watchSeconds: number
  /** A watch that has not ended this long after its time is dead, and so is a list without an answer. */
  readonly silentMs: number
  /** Waits after failures: at first, then doubled up to the most. Each is shortened at random by up to half. */
  readonly backoffMs: number
  readonly maxBackoffMs: number
  /** A watch that ends sooner than this was not ended by its time, and is no sign that all is well. */
  readonly shortWatchMs: number
}

const TIMES: KubernetesTimes = {
  watchSeconds: 30,
  silentMs: 10_000,
  backoffMs: 500,
  maxBackoffMs: 30_000,
  shortWatchMs: 1000,
}
const API = 'the Kubernetes API'
const PAGE = 500
const KEEP_ALIVE_MS = 10_000
/** A slice has at most 1,000 endpoints (API validation), each well below 2 KiB. */
const MAX_LINE_CHARACTERS = 8 * 1024 * 1024
/** A page of 500 of them, at their usual 100 endpoints. */
const MAX_LIST_CHARACTERS = 256 * 1024 * 1024

/** `namespace` undefined: the one that the process runs in, or the kubeconfig's. Nothing is read until it is started. */
export function kubernetesSource(
  namespace: string | undefined,
  service: string,
  load: (signal: AbortSignal) => Promise<Cluster> = loadCluster,
  times: KubernetesTimes = TIMES,
): Source {
  return async ({ publish, fail }, signal) => {
    let failures = 0
    while (!signal.aborted) {
      try {
        const cluster = await load(signal)
        await follow(cluster, path(namespace ?? cluster.namespace, service), times, signal, {
          changed: slices => publish(endpointsOf(slices)),
          // Not when a list succeeds: where each watch fails after it, the waits must grow.
          stood: () => {
            failures = 0
          },
        })
      } catch (error) {
        if (signal.aborted) return
        // A version that is too old is no failure: listing anew is the cure. If it does not cure, it is one.
        const gone = error instanceof ApiError && error.code === 410
        if (!gone || failures > 0) fail(error as Error)
        const most = Math.min(times.maxBackoffMs, times.backoffMs * 2 ** failures++)
        await sleep(most * (1 - Math.random() / 2), undefined, { signal }).catch(() => {})
      }
    }
  }
}

function path(namespace: string, service: string): string {
  const selector = encodeURIComponent(`kubernetes.io/service-name=${service}`)
  return `/apis/discovery.k8s.io/v1/namespaces/${namespace}/endpointslices?labelSelector=${selector}`
}

/** What the API itself answered, other than 200. */
class ApiError extends Error {
  readonly code: number
  constructor(code: number, message: string) {
    super(`${API} says ${code}: ${message}${HINTS[code] ?? ''}`)
    this.code = code
  }
}

const HINTS: { readonly [code: number]: string } = {
  401: ' (the token is not accepted)',
  403: ' (the ServiceAccount needs the verbs list and watch for endpointslices in discovery.k8s.io)',
}

/** Lists, then watches from there, one watch after the other. Rejects when the list must be made anew. */
async function follow(
  cluster: Cluster,
  path: string,
  times: KubernetesTimes,
  signal: AbortSignal,
  { changed, stood }: { changed: (slices: Iterable<EndpointSlice>) => void; stood: () => void },
): Promise<void> {
  const { slices, resourceVersion } = await list(cluster, path, times, signal)
  changed(slices.values())
  let version = resourceVersion
  while (!signal.aborted) {
    const from = encodeURIComponent(version)
    const query = `&watch=1&allowWatchBookmarks=true&timeoutSeconds=${times.watchSeconds}&resourceVersion=${from}`
    const limitMs = times.watchSeconds * 1000 + times.silentMs
    const started = performance.now()
    let stands = false
    const isShort = () => performance.now() - started < times.shortWatchMs
    try {
      await get(cluster, path + query, limitMs, signal, async response => {
        stands = true
        for await (const line of lines(response)) {
          const event: WatchEvent | null = JSON.parse(line)
          if (!event?.object) throw new Error('a line of the watch is no event')
          const { type, object } = event
          if (type === 'ERROR') throw new ApiError(object.code ?? 0, object.message ?? 'watch error')
          version = object.metadata.resourceVersion ?? version
          if (type === 'DELETED') slices.delete(object.metadata.name)
          else if (type === 'ADDED' || type === 'MODIFIED') slices.set(object.metadata.name, object)
          else continue
          changed(slices.values())
        }
      })
    } finally {
      if (stands && !isShort()) stood()
    }
    if (isShort())
      throw new Error(`${API} at ${cluster.server.host}: the watch was ended as soon as it began`)
  }
}

/** All pages. The resource version is that of the list, from which a watch may start. */
async function list(cluster: Cluster, path: string, times: KubernetesTimes, signal: AbortSignal) {
  const slices = new Map<string, EndpointSlice>()
  let resourceVersion = ''
  let next = ''
  do {
    const query = `&limit=${PAGE}${next && `&continue=${encodeURIComponent(next)}`}`
    await get(cluster, path + query, times.silentMs, signal, async response => {
      const page: EndpointSliceList | null = JSON.parse(await text(response, MAX_LIST_CHARACTERS))
      if (!page?.metadata?.resourceVersion) throw new Error('the answer is no list')
      for (const slice of page.items ?? []) slices.set(slice.metadata.name, slice)
      resourceVersion = page.metadata.resourceVersion
      next = page.metadata.continue ?? ''
    })
  } while (next)
  return { slices, resourceVersion }
}

/** One GET, whose body `read` takes. Rejects with what went wrong, `limitMs` after its start at the latest. */
async function get(
  cluster: Cluster,
  path: string,
  limitMs: number,
  signal: AbortSignal,
  read: (response: IncomingMessage) => Promise<void>,
): Promise<void> {
  const url = new URL(cluster.server.pathname.replace(/\/$/, '') + path, cluster.server)
  const token = await cluster.token()
  const headers = { accept: 'application/json', ...(token && { authorization: `Bearer ${token}` }) }
  const limit = AbortSignal.any([signal, AbortSignal.timeout(limitMs)])
  const options = { headers, agent: false, signal: limit, ...cluster.tls }
  const request = url.protocol === 'http:' ? requestHttp(url, options) : requestHttps(url, options)
  try {
    const response = await respond(request)
    if (response.statusCode !== 200)
      throw new ApiError(response.statusCode ?? 0, await statusMessage(response))
    await read(response)
  } catch (error) {
    if (error instanceof ApiError) throw error
    const why = limit.aborted ? `no end of the answer within ${limitMs} ms` : reason(error as Error)
    throw new Error(`${API} at ${url.host}: ${why}`, { cause: error })
  } finally {
    request.destroy()
  }
}

function respond(request: ClientRequest): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    request.on('response', resolve).on('error', reject)
    // A peer that vanished without a word is found out by the kernel.
    request.on('socket', socket => socket.setKeepAlive(true, KEEP_ALIVE_MS))
    request.end()
  })
}

function reason({ message, code }: NodeJS.ErrnoException): string {
  // Node's own word is "aborted", which reads as if we had done it.
  if (code === 'ECONNRESET') return 'the connection was cut'
  // Where a name has several addresses and all refuse, there is only a code.
  return message || (code ?? 'unknown')
}

/** The message of the Status object that an error comes with. */
async function statusMessage(response: IncomingMessage): Promise<string> {
  const body = await text(response, MAX_LINE_CHARACTERS)
  try {
    return JSON.parse(body).message ?? response.statusMessage
  } catch {
    return response.statusMessage ?? ''
  }
}

async function text(response: IncomingMessage, maxCharacters: number): Promise<string> {
  const parts: string[] = []
  let characters = 0
  for await (const chunk of response.setEncoding('utf8')) {
    parts.push(chunk)
    characters += chunk.length
    if (characters > maxCharacters) throw new Error(`the answer is longer than ${maxCharacters} characters`)
  }
  return parts.join('')
}

/** The lines of a stream; one that is cut off at the end is dropped: its event comes again with the next watch. */
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
 * The endpoints of all slices of a Service. Conditions that are nil mean what the API says: `ready` true, `serving`
 * the same as `ready`, `terminating` false. Of an endpoint's addresses the first is used, as the API asks of
 * consumers; while one moves between slices it stands in both, and the better entry counts.
 */
export function endpointsOf(slices: Iterable<EndpointSlice>): Endpoint[] {
  const found = new Map<string, Endpoint>()
  for (const { addressType, endpoints } of slices) {
    if (addressType === 'FQDN') continue
    for (const { addresses, conditions } of endpoints ?? []) {
      // What the API lets through is not always an address: 010.0.0.1. One bad entry must not hide the others.
      if (!isIP(addresses[0] ?? '')) continue
      const ready = conditions?.ready ?? true
      const serving = conditions?.serving ?? ready
      const terminating = conditions?.terminating ?? false
      const made = { ...endpoint(addresses[0]!), ready, serving, terminating }
      const known = found.get(made.address)
      if (!known || rank(made) > rank(known)) found.set(made.address, made)
    }
  }
  return [...found.values()].sort(byAddress)
}

const rank = ({ ready, serving, terminating }: Endpoint): number =>
  Number(ready && !terminating) * 8 + Number(serving) * 4 + Number(!terminating) * 2 + Number(ready)
