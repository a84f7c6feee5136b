/** Endpoints from a name that is polled in DNS. */
import { Resolver } from 'node:dns/promises'
import { readFile } from 'node:fs/promises'
import { formatAddress, type SocketAddress } from '../address.ts'
import { gather, pause } from '../clock.ts'
import { byAddress, endpoint, endpointFilter, type Source } from './endpoint.ts'
import { type AddressHold, addressHold } from './hold.ts'
import { parseResolvConf } from './resolv-conf.ts'

export interface DnsSourceOptions {
  readonly name: string
  /** Without it, the servers of `resolvConf` are asked. */
  readonly server: SocketAddress | undefined
  readonly intervalMs: number
  /** An address leaves when this many answers in a row do not have it. */
  readonly hold: number
  /** The path of the file, which is read before each poll. */
  readonly resolvConf?: string
}

interface Family {
  readonly type: 'A' | 'AAAA'
  readonly held: AddressHold
  /** There has been an answer. */
  isKnown: boolean
  /** Why the last poll failed. */
  error: Error | undefined
  /** What was reported last; undefined before the first report. */
  reportedUp: boolean | undefined
}

/** An answer of one family is published without the other when that takes longer. */
const OTHER_FAMILY_MS = 100

/**
 * Polls A and AAAA of the name, independently of each other. The TTL of the records is ignored: Docker's is
 * 600 s. A name that does not exist has no addresses; a family whose poll fails keeps its last answer.
 */
export function dnsSource(options: DnsSourceOptions): Source {
  const { name, intervalMs, hold } = options
  return async ({ publish, fail, note }, signal, clock) => {
    const isEndpoint = endpointFilter(note)
    const currentResolver = resolverFor(options)
    const family = (type: Family['type']): Family => ({
      type,
      held: addressHold(hold),
      isKnown: false,
      error: undefined,
      reportedUp: undefined,
    })
    const families = [family('A'), family('AAAA')]
    let asking = 0
    let hasPublished = false
    let saidTooShort = false
    let saidMissing = false

    const report = () => {
      const errors = families.flatMap(({ error }) => error ?? [])
      if (errors.length === families.length) return fail(errors[0]!)
      const addresses = families.flatMap(({ held }) => held.addresses)
      // No addresses of one family do not show that the name has none, until the other has been answered.
      if (hasPublished || addresses.length > 0 || families.every(({ isKnown }) => isKnown)) {
        hasPublished = true
        // Sorted, since each answer of a resolver that rotates or shuffles would otherwise look like a change.
        const found = addresses.filter(isEndpoint).map(address => endpoint(address))
        publish(found.sort(byAddress))
      } else if (errors[0] && asking === 0) fail(errors[0])
      for (const family of families) {
        const { type, error, isKnown, reportedUp } = family
        const isUp = error === undefined
        if (reportedUp === isUp || (isUp && !isKnown)) continue
        family.reportedUp = isUp
        note({ type: 'source-family', family: type, ...(error && { error: error.message }) })
      }
      if (saidTooShort || !families.some(({ held }) => held.isTooShort)) return
      saidTooShort = true
      const message =
        'the resolver gives only a part of the addresses in each answer: a larger --source-hold is needed'
      note({ type: 'source-warning', message, details: { name, sourceHold: hold } })
    }
    const changes = gather(clock, OTHER_FAMILY_MS, report)

    const sayMissing = async () => {
      if (saidMissing) return
      saidMissing = true
      const { searchDomains } = await readResolvConf(options)
      const notTried = searchDomains.map(domain => `${name}.${domain}`)
      const hint = notTried.length > 0 ? ' (search domains are not tried: give the whole name)' : ''
      const message = `the name ${name} does not exist${hint}`
      if (!signal.aborted) note({ type: 'source-warning', message, details: { name, notTried } })
    }

    /** Rejects where the resolver failed. */
    const ask = async ({ type }: Family, isFirst: boolean): Promise<readonly string[]> => {
      const resolver = await currentResolver()
      if (signal.aborted) return []
      const cancel = () => resolver.cancel()
      signal.addEventListener('abort', cancel, { once: true })
      try {
        return await (type === 'A' ? resolver.resolve4(name) : resolver.resolve6(name))
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException
        if (code !== 'ENOTFOUND' && code !== 'ENODATA') throw error
        if (code === 'ENOTFOUND' && isFirst) await sayMissing()
        return []
      } finally {
        signal.removeEventListener('abort', cancel)
      }
    }

    const follow = async (family: Family) => {
      let dueMs = clock.now()
      for (let isFirst = true; !signal.aborted; isFirst = false) {
        asking++
        try {
          const found = await ask(family, isFirst)
          family.held.answer(found)
          family.isKnown = true
          family.error = undefined
        } catch (error) {
          family.error = error as Error
        }
        asking--
        if (signal.aborted) break
        changes.add()
        if (asking === 0) changes.flush()
        // Both families keep to the same moments, so that they are usually published together.
        dueMs += intervalMs * Math.max(1, Math.ceil((clock.now() - dueMs) / intervalMs))
        await pause(clock, Math.max(0, dueMs - clock.now()), signal)
      }
    }
    await Promise.all(families.map(follow))
    changes.cancel()
  }
}

/** Returns the resolver for the next poll: a new one when resolv.conf names other servers, as glibc does. */
function resolverFor(options: DnsSourceOptions): () => Promise<Resolver> {
  let current: Resolver | undefined
  let currentServers = ''
  return async () => {
    const { server } = options
    const { servers } = server ? { servers: [formatAddress(server)] } : await readResolvConf(options)
    // While the file is being rewritten, or is missing, the servers stay.
    if (current && (servers.length === 0 || servers.join() === currentServers)) return current
    const resolver = new Resolver({ timeout: 1000, tries: 2 })
    if (servers.length > 0) resolver.setServers(servers)
    current = resolver
    currentServers = servers.join()
    return resolver
  }
}

async function readResolvConf({ resolvConf = '/etc/resolv.conf' }: DnsSourceOptions) {
  return parseResolvConf(await readFile(resolvConf, 'utf8').catch(() => ''))
}
