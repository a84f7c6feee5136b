/** Where the endpoints of a service come from: a list, or a name that is polled. */
import { Resolver } from 'node:dns/promises'
import { isIP } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { Expected, formatAddress, ipAddress, period, type SocketAddress, socketAddress } from '../parse.ts'

/** What a source knows of a replica; the words are those of a Kubernetes EndpointSlice. */
export interface Endpoint {
  readonly address: string
  /** Its share under the `weighted` policy, 1 to 100. */
  readonly weight: number
  /** The platform would send it new clients. */
  readonly ready: boolean
  /** It can still serve, if need be. */
  readonly serving: boolean
  /** It is on its way out. */
  readonly terminating: boolean
}

/** Takes what a source finds: the whole set each time, or the reason why it could not look. */
export interface Sink {
  publish(endpoints: readonly Endpoint[]): void
  fail(error: Error): void
}

/** Resolves when it has no more to tell, at the latest when `signal` aborts. A rejected one may be started again. */
export type Source = (sink: Sink, signal: AbortSignal) => Promise<void>

const MAX_WEIGHT = 100
const DEFAULT_POLL = '1s'
const HOST_NAME = /^[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?$/i
/** Written with dots but the final one (RFC 1035 2.3.4). */
const MAX_NAME_OCTETS = 253

export const endpoint = (address: string, weight = 1): Endpoint => ({
  address: ipAddress(address),
  weight,
  ready: true,
  serving: true,
  terminating: false,
})

/** `static:ADDR[*WEIGHT],…` or `dns:NAME[@SERVER][/INTERVAL]`. */
export function parseSource(text: string): Source {
  const [kind, rest] = split(text, ':')
  if (kind === 'static' && rest) return staticSource(distinct(rest.split(',').map(parseStatic)))
  if (kind === 'dns' && rest) return parseDns(rest)
  throw new Expected('static:ADDR[*WEIGHT],… or dns:NAME[@SERVER][/INTERVAL]')
}

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
  return endpoint(address, number)
}

function parseDns(text: string): Source {
  const [query, interval = DEFAULT_POLL] = split(text, '/')
  const [name, at] = split(query, '@')
  // What a resolver would refuse, or look up in vain, at every poll is a mistake to tell of now.
  if (!HOST_NAME.test(name) || name.replace(/\.$/, '').length > MAX_NAME_OCTETS || isIP(name))
    throw new Expected(`dns:NAME[@SERVER][/INTERVAL] with a host name, not "${name}"`)
  const server = at === undefined ? undefined : socketAddress(at, 53)
  // Node would take port 0 for 53.
  if (server?.port === 0) throw new Expected('dns:NAME[@SERVER][/INTERVAL] with a port from 1 to 65535')
  return dnsSource(name, server, period(interval))
}

function split(text: string, at: string): [string, string | undefined] {
  const index = text.indexOf(at)
  return index === -1 ? [text, undefined] : [text.slice(0, index), text.slice(index + 1)]
}

export function staticSource(endpoints: readonly Endpoint[]): Source {
  return async ({ publish }) => publish(endpoints)
}

/**
 * Polls A and AAAA of `name` every `intervalMs`. The records' own TTL is not heeded: Docker's is 600 s.
 * A name that does not exist has no endpoints; a resolver that fails changes nothing.
 */
export function dnsSource(name: string, server: SocketAddress | undefined, intervalMs: number): Source {
  return async ({ publish, fail }, signal) => {
    const resolver = new Resolver({ timeout: 1000, tries: 2 })
    if (server) resolver.setServers([formatAddress(server)])
    signal.addEventListener('abort', () => resolver.cancel(), { once: true })
    const none = (error: NodeJS.ErrnoException): string[] => {
      if (error.code === 'ENOTFOUND' || error.code === 'ENODATA') return []
      throw error
    }
    while (!signal.aborted) {
      const started = performance.now()
      try {
        const families = await Promise.all([
          resolver.resolve4(name).catch(none),
          resolver.resolve6(name).catch(none),
        ])
        // Sorted, since a rotating or shuffling resolver would otherwise look like a change each time.
        if (!signal.aborted)
          publish(families.flatMap(addresses => addresses.sort(compare).map(a => endpoint(a))))
      } catch (error) {
        if (!signal.aborted) fail(error as Error)
      }
      const rest = Math.max(0, started + intervalMs - performance.now())
      await sleep(rest, undefined, { signal }).catch(() => {})
    }
  }
}

const compare = new Intl.Collator('en', { numeric: true }).compare
