/**
 * Parsers of the values that people write in flags and environment variables.
 * Each takes the text and returns the value, or throws `Expected` with what was expected.
 */
import { isIP } from 'node:net'
import { endpointProblem, portNumber, socketAddress } from '../address.ts'
import type { Check } from '../endpoints/checks.ts'
import { dnsSource } from '../endpoints/dns.ts'
import { type Endpoint, endpoint, type Source } from '../endpoints/endpoint.ts'
import { staticSource } from '../endpoints/static.ts'
import { Expected } from '../errors.ts'

export function integer(min: number, max: number): (text: string) => number {
  return text => {
    const value = Number(text)
    if (/^\d{1,15}$/.test(text) && value >= min && value <= max) return value
    throw new Expected(`an integer from ${min} to ${max}`)
  }
}

/** A port that clients use, so it is never 0. */
export function port(text: string): number {
  try {
    return portNumber(text)
  } catch (error) {
    // Kubernetes sets NAME_PORT=tcp://… for each Service that it knows when a pod starts.
    if (!/^(tcp|udp|sctp):\/\//.test(text)) throw error
    throw new Expected(
      'an integer from 1 to 65535 (this is a Kubernetes service link: set enableServiceLinks: false in the pod)',
    )
  }
}

const unitsMs = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }

/** The longest Node timer; a longer one would fire at once. */
const MAX_DURATION_MS = 2 ** 31 - 1

/** `500ms`, `7s`, `1.5m`, `1h` or `0` → milliseconds, at most 596 hours. */
export function duration(text: string): number {
  const match = /^(\d{1,10}(?:\.\d{1,3})?)(ms|s|m|h)$/.exec(text)
  const ms = match ? Math.round(Number(match[1]) * unitsMs[match[2] as keyof typeof unitsMs]) : Number.NaN
  if (text === '0' || ms <= MAX_DURATION_MS) return ms || 0
  throw new Expected(ms > MAX_DURATION_MS ? 'at most 596h' : 'a duration such as 500ms, 7s or 1m')
}

/** A duration that is a period or a limit, so it is never 0. */
export function period(text: string): number {
  const ms = duration(text)
  if (ms > 0) return ms
  throw new Expected('a duration above 0 such as 500ms, 7s or 1m')
}

/** A name as people write it: lower-cased, without the final dot. Limits of RFC 1035 2.3.4. */
export function domainName(text: string): string {
  const name = text.endsWith('.') ? text.slice(0, -1) : text
  const labels = name.split('.')
  // On the wire there is an octet before the first label and one after the last.
  if (labels.every(label => /^[a-z0-9_-]{1,63}$/i.test(label)) && name.length + 2 <= 255)
    return name.toLowerCase()
  throw new Expected(
    'a domain name of letters, digits, "-" and "_", labels up to 63, in all up to 255 octets',
  )
}

export function oneOf<const T extends string>(...values: readonly T[]): (text: string) => T {
  return text => {
    if ((values as readonly string[]).includes(text)) return text as T
    throw new Expected(`one of ${values.join(', ')}`)
  }
}

/** `udp:PORT`, `tcp:PORT`, `http:PORT/path` or `none`. */
export function parseCheck(text: string): Check {
  if (text === 'none') return { kind: 'none' }
  const match = /^(udp|tcp|http):(\d{1,5})(\/[\x21-\x7e]*)?$/.exec(text)
  const port = Number(match?.[2])
  if (match && port >= 1 && port <= 65535) {
    if (match[1] === 'http') return { kind: 'http', port, path: match[3] ?? '/' }
    if (match[3] === undefined) return { kind: match[1] as 'udp' | 'tcp', port }
  }
  throw new Expected('udp:PORT, tcp:PORT, http:PORT/path or none')
}

const MAX_WEIGHT = 100
const DEFAULT_POLL = '1s'
/** RFC 1123 label, as Kubernetes has it. */
const KUBERNETES_NAME = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/

/** What other flags say about sources. */
export interface SourceOptions {
  /** A DNS source drops an address that is missing from this many answers in a row. */
  readonly hold: number
}

/** `static:ADDR[*WEIGHT],…`, `dns:NAME[@SERVER][/INTERVAL]` or `kubernetes:[NAMESPACE/]SERVICE`. */
export function parseSource(text: string): (options: SourceOptions) => Source {
  const [kind, rest] = split(text, ':')
  if (kind === 'static' && rest) return always(staticSource(distinct(rest.split(',').map(parseStatic))))
  if (kind === 'dns' && rest) return parseDns(rest)
  if (kind === 'kubernetes' && rest) return always(parseKubernetes(rest))
  throw new Expected('static:ADDR[*WEIGHT],…, dns:NAME[@SERVER][/INTERVAL] or kubernetes:[NAMESPACE/]SERVICE')
}

const always = (source: Source) => () => source

function distinct(endpoints: readonly Endpoint[]): readonly Endpoint[] {
  const addresses = endpoints.map(({ address }) => address)
  const twice = addresses.find((address, i) => addresses.indexOf(address) !== i)
  if (twice === undefined) return endpoints
  throw new Expected(`static:ADDR[*WEIGHT],… with each address once, not ${twice} twice`)
}

function parseStatic(text: string): Endpoint {
  const [address, weight = '1'] = split(text, '*')
  const number = /^\d{1,3}$/.test(weight) ? Number(weight) : 0
  if (!isIP(address) || address.includes('%') || number < 1 || number > MAX_WEIGHT)
    throw new Expected(
      `static:ADDR[*WEIGHT],… with IP addresses and weights from 1 to ${MAX_WEIGHT}, not "${text}"`,
    )
  const problem = endpointProblem(address)
  if (problem !== undefined)
    throw new Expected(`static:ADDR[*WEIGHT],… with addresses of endpoints: "${address}" is ${problem}`)
  return endpoint(address, number)
}

function parseDns(text: string): (options: SourceOptions) => Source {
  const [target, interval = DEFAULT_POLL] = split(text, '/')
  const [name, at] = split(target, '@')
  // A mistake that would make each poll fail is reported at the start.
  if (isIP(name)) throw new Expected(`dns:NAME[@SERVER][/INTERVAL] with a name, not the address ${name}`)
  const server = at === undefined ? undefined : socketAddress(at, 53)
  const query = { name: domainName(name), server, intervalMs: period(interval) }
  return ({ hold }) => dnsSource({ ...query, hold })
}

function parseKubernetes(text: string): Source {
  const [, namespace, service] = /^(?:([^/]*)\/)?([^/]*)$/.exec(text) ?? []
  if (![namespace ?? 'default', service].every(name => name && KUBERNETES_NAME.test(name)))
    throw new Expected(`kubernetes:[NAMESPACE/]SERVICE with names of Kubernetes, not "${text}"`)
  return async (...given) => {
    // The import is here so that no other process loads the file.
    const { kubernetesSource } = await import('../endpoints/kubernetes.ts')
    await kubernetesSource(namespace, service!)(...given)
  }
}

function split(text: string, at: string): [string, string | undefined] {
  const index = text.indexOf(at)
  return index === -1 ? [text, undefined] : [text.slice(0, index), text.slice(index + 1)]
}

/** `NAME=SOURCE`; the name is completed with the zone later. */
export interface ServiceOption {
  readonly name: string
  readonly source: (options: SourceOptions) => Source
  /** As it was written, for logs. */
  readonly text: string
}

export function parseService(text: string): ServiceOption {
  const at = text.indexOf('=')
  const name = text.slice(0, at)
  if (at < 1) throw new Expected('NAME=SOURCE')
  if (name !== '@') domainName(name)
  const source = text.slice(at + 1)
  return { name: name.toLowerCase(), source: parseSource(source), text: source }
}

export function serverId(text: string): string {
  if (/^[\x20-\x7e]{1,255}$/.test(text)) return text
  throw new Expected('1 to 255 printable ASCII characters')
}
