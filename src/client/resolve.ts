/** The addresses of a server that is named on the command line: what `send` and `load` share. */
import { lookup, Resolver } from 'node:dns/promises'
import { isIP } from 'node:net'
import { formatAddress, type SocketAddress } from '../address.ts'
import { UsageError } from '../errors.ts'

/** `each`: every call asks; `once`: the first answer is kept for ever; `ttl`: an answer is kept for its TTL. */
export const resolveModes = ['each', 'once', 'ttl'] as const
export type ResolveMode = (typeof resolveModes)[number]

export interface Answer {
  /** In the order of the answer, never empty. A simple client takes the first. */
  readonly addresses: readonly string[]
  /** The least of its records; 0 where it is not known. */
  readonly ttlSeconds: number
}

type Resolve = () => Promise<Answer>

/**
 * How to look up `host`, a name or an address: with getaddrinfo, or, where a DNS server is given or TTLs are wanted,
 * by DNS, AAAA where there is no A. A look-up rejects with Node's error.
 */
export function resolver(
  host: string,
  dns: SocketAddress | undefined,
  timeoutMs: number,
  mode: ResolveMode,
): Resolve {
  if (/^[^:]+:\d+$|^\[/.test(host))
    throw new UsageError(`Cannot look up "${host}": give a name or an address here, the port with --port`)
  if (isIP(host)) return async () => ({ addresses: [host], ttlSeconds: 0 })
  return keep(dns || mode === 'ttl' ? askDns(host, dns, timeoutMs) : askSystem(host), mode)
}

/** As a cache: those who ask while an answer is under way get that one; a failure is not kept. `now` is in ms. */
export function keep(ask: Resolve, mode: ResolveMode, now = () => performance.now()): Resolve {
  if (mode === 'each') return ask
  let kept: Promise<Answer> | undefined
  let expires = Number.POSITIVE_INFINITY
  return () => {
    if (kept && now() < expires) return kept
    expires = Number.POSITIVE_INFINITY
    kept = ask()
    kept.then(
      ({ ttlSeconds }) => {
        if (mode === 'ttl') expires = now() + ttlSeconds * 1000
      },
      () => {
        kept = undefined
      },
    )
    return kept
  }
}

function askSystem(host: string): Resolve {
  return async () => {
    const found = await lookup(host, { all: true })
    return { addresses: found.map(({ address }) => address), ttlSeconds: 0 }
  }
}

function askDns(host: string, server: SocketAddress | undefined, timeoutMs: number): Resolve {
  const resolver = new Resolver({ timeout: timeoutMs, tries: 1 })
  if (server) resolver.setServers([formatAddress(server)])
  return async () => {
    const found = await resolver.resolve4(host, { ttl: true }).catch(error => {
      if (error.code !== 'ENODATA') throw error
      return resolver.resolve6(host, { ttl: true })
    })
    const ttlSeconds = Math.min(...found.map(({ ttl }) => ttl))
    return { addresses: found.map(({ address }) => address), ttlSeconds }
  }
}
