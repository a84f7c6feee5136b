/** Looks up the server that is named on the command line of `send` and `load`. */
import { lookup, Resolver } from 'node:dns/promises'
import { isIP } from 'node:net'
import { formatAddress, type SocketAddress } from '../address.ts'
import type { Clock } from '../clock.ts'
import { UsageError } from '../errors.ts'

/**
 * `each`: every call asks. `once`: the first answer is kept forever. `ttl`: an answer is kept for its TTL.
 */
export const resolveModes = ['each', 'once', 'ttl'] as const
export type ResolveMode = (typeof resolveModes)[number]

export interface Answer {
  /** In the order of the answer, never empty. A simple client uses the first. */
  readonly addresses: readonly string[]
  /** The lowest TTL of the records; 0 when it is not known. */
  readonly ttlSeconds: number
}

type LookUp = () => Promise<Answer>

/**
 * Returns the function that looks up `host`, a name or an address. It uses getaddrinfo, or it sends DNS
 * queries where a DNS server is given or TTLs are needed: for A, and for AAAA when there is no A. It rejects
 * with Node's error.
 */
export function resolver(
  host: string,
  dns: SocketAddress | undefined,
  timeoutMs: number,
  mode: ResolveMode,
  clock: Clock,
): LookUp {
  if (/^[^:]+:\d+$|^\[/.test(host))
    throw new UsageError(`Cannot look up "${host}": expected a name or an address; give the port with --port`)
  if (isIP(host)) return async () => ({ addresses: [host], ttlSeconds: 0 })
  return cached(dns || mode === 'ttl' ? askDns(host, dns, timeoutMs) : askSystem(host), mode, clock)
}

/** Caches the answers of `ask`. Calls during a look-up share its answer; a failure is not kept. */
export function cached(ask: LookUp, mode: ResolveMode, clock: Clock): LookUp {
  if (mode === 'each') return ask
  let kept: Promise<Answer> | undefined
  let expiresMs = Number.POSITIVE_INFINITY
  return () => {
    if (kept && clock.now() < expiresMs) return kept
    expiresMs = Number.POSITIVE_INFINITY
    kept = ask()
    kept.then(
      ({ ttlSeconds }) => {
        if (mode === 'ttl') expiresMs = clock.now() + ttlSeconds * 1000
      },
      () => {
        kept = undefined
      },
    )
    return kept
  }
}

function askSystem(host: string): LookUp {
  return async () => {
    const found = await lookup(host, { all: true })
    return { addresses: found.map(({ address }) => address), ttlSeconds: 0 }
  }
}

function askDns(host: string, server: SocketAddress | undefined, timeoutMs: number): LookUp {
  const dns = new Resolver({ timeout: timeoutMs, tries: 1 })
  if (server) dns.setServers([formatAddress(server)])
  return async () => {
    const found = await dns.resolve4(host, { ttl: true }).catch(error => {
      if (error.code !== 'ENODATA') throw error
      return dns.resolve6(host, { ttl: true })
    })
    const ttlSeconds = Math.min(...found.map(({ ttl }) => ttl))
    return { addresses: found.map(({ address }) => address), ttlSeconds }
  }
}
