/** Endpoints from a name that is polled in DNS. */
import { Resolver } from 'node:dns/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { formatAddress, type SocketAddress } from '../address.ts'
import { byAddress, endpoint, type Source } from './endpoint.ts'

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
