/** Parses /etc/resolv.conf (resolv.conf(5)): pure. */
import { formatAddress, socketAddress } from '../address.ts'

export interface ResolvConf {
  /** As `Resolver.setServers` takes them. */
  readonly servers: readonly string[]
  readonly searchDomains: readonly string[]
}

/** The last `search` or `domain` line counts. A server may have a port, as in `127.0.0.1:5353`. */
export function parseResolvConf(text: string): ResolvConf {
  const servers: string[] = []
  let searchDomains: readonly string[] = []
  for (const line of text.split('\n')) {
    const [keyword = '', ...words] = line
      .replace(/[#;].*/, '')
      .trim()
      .split(/\s+/)
    const [first] = words
    if (keyword === 'nameserver' && first !== undefined) servers.push(...serverOf(first))
    else if (keyword === 'search') searchDomains = words
    else if (keyword === 'domain') searchDomains = words.slice(0, 1)
  }
  return { servers, searchDomains }
}

/** None for a text that is not an address: resolvers ignore such a line. */
function serverOf(text: string): readonly string[] {
  try {
    return [formatAddress(socketAddress(text, 53))]
  } catch {
    return []
  }
}
