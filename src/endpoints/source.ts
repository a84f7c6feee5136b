/** Where the endpoints of a service come from: a list, a name that is polled, or a Kubernetes Service. */
import { Resolver } from 'node:dns/promises'
import { isIP } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { domainName, Expected, formatAddress, period, type SocketAddress, socketAddress } from '../parse.ts'
import { byAddress, type Endpoint, endpoint, type Source } from './endpoint.ts'

const MAX_WEIGHT = 100
const DEFAULT_POLL = '1s'
/** RFC 1123 label, as Kubernetes has it. */
const KUBERNETES_NAME = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/

/** `static:ADDR[*WEIGHT],…`, `dns:NAME[@SERVER][/INTERVAL]` or `kubernetes:[NAMESPACE/]SERVICE`. */
export function parseSource(text: string): Source {
  const [kind, rest] = split(text, ':')
  if (kind === 'static' && rest) return staticSource(distinct(rest.split(',').map(parseStatic)))
  if (kind === 'dns' && rest) return parseDns(rest)
  if (kind === 'kubernetes' && rest) return parseKubernetes(rest)
  throw new Expected('static:ADDR[*WEIGHT],…, dns:NAME[@SERVER][/INTERVAL] or kubernetes:[NAMESPACE/]SERVICE')
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
  if (isIP(name)) throw new Expected(`dns:NAME[@SERVER][/INTERVAL] with a name, not the address ${name}`)
  return dnsSource(domainName(name), at === undefined ? undefined : socketAddress(at, 53), period(interval))
}

function parseKubernetes(text: string): Source {
  const [, namespace, service] = /^(?:([^/]*)\/)?([^/]*)$/.exec(text) ?? []
  if (![namespace ?? 'default', service].every(name => name && KUBERNETES_NAME.test(name)))
    throw new Expected(`kubernetes:[NAMESPACE/]SERVICE with names of Kubernetes, not "${text}"`)
  return async (sink, signal) => {
    // Loaded where it is used: every other process does without it.
    const { kubernetesSource } = await import('./kubernetes.ts')
    await kubernetesSource(namespace, service)(sink, signal)
  }
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
        const found = families.flat().map(address => endpoint(address))
        if (!signal.aborted) publish(found.sort(byAddress))
      } catch (error) {
        if (!signal.aborted) fail(error as Error)
      }
      const rest = Math.max(0, started + intervalMs - performance.now())
      await sleep(rest, undefined, { signal }).catch(() => {})
    }
  }
}
