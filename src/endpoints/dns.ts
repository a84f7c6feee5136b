/** Endpoints from a name that is polled in DNS. */
import { Resolver } from 'node:dns/promises'
import { formatAddress, type SocketAddress } from '../address.ts'
import { pause } from '../clock.ts'
import { byAddress, endpoint, type Source } from './endpoint.ts'

/**
 * Polls A and AAAA of `name` every `intervalMs`. The TTL of the records is ignored: Docker's is 600 s.
 * A name that does not exist has no endpoints; a resolver that fails changes nothing.
 */
export function dnsSource(name: string, server: SocketAddress | undefined, intervalMs: number): Source {
  return async ({ publish, fail }, signal, clock) => {
    const resolver = new Resolver({ timeout: 1000, tries: 2 })
    if (server) resolver.setServers([formatAddress(server)])
    signal.addEventListener('abort', () => resolver.cancel(), { once: true })
    const noAddresses = (error: NodeJS.ErrnoException): string[] => {
      if (error.code === 'ENOTFOUND' || error.code === 'ENODATA') return []
      throw error
    }
    while (!signal.aborted) {
      const startedMs = clock.now()
      try {
        const families = await Promise.all([
          resolver.resolve4(name).catch(noAddresses),
          resolver.resolve6(name).catch(noAddresses),
        ])
        // Sorted, since each answer of a resolver that rotates or shuffles would otherwise look like a
        // change.
        const found = families.flat().map(address => endpoint(address))
        if (!signal.aborted) publish(found.sort(byAddress))
      } catch (error) {
        if (!signal.aborted) fail(error as Error)
      }
      await pause(clock, Math.max(0, startedMs + intervalMs - clock.now()), signal)
    }
  }
}
