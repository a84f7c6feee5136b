/** What `dns` and `up` both give the DNS server, and which options do not go together. */

import { nameServer } from '../dns/zone.ts'
import type { Check } from '../endpoints/checks.ts'
import type { Source } from '../endpoints/endpoint.ts'
import { UsageError } from '../errors.ts'
import type { Options } from './options.ts'
import { parseNamed } from './resolve-options.ts'
import { domainName } from './values.ts'

export interface DnsOptions
  extends Pick<
    Options<'dns'>,
    | 'listen'
    | 'zone'
    | 'policy'
    | 'ttl'
    | 'answers'
    | 'port'
    | 'admin'
    | 'checkInterval'
    | 'checkTimeout'
    | 'rise'
    | 'fall'
    | 'fail'
  > {
  /** `name` is a whole name; `text` is the source as the user wrote it. */
  readonly services: readonly { readonly name: string; readonly source: Source; readonly text: string }[]
  readonly check: readonly Check[]
  readonly nsAddress?: Options<'dns'>['nsAddress']
  readonly serverId?: Options<'dns'>['serverId']
  readonly drainMs: number
  readonly graceMs: number
  /** Ends what else the process runs. */
  readonly onClose?: () => Promise<void>
}

/** Throws a UsageError where the options of `roundelay dns` do not go together. */
export function dnsOptions(options: Options<'dns'>): DnsOptions {
  const services = (options.service ?? []).map(service => ({
    ...service,
    source: service.source({ hold: options.sourceHold }),
    name: wholeName(service.name, options.zone),
  }))
  if (services.length === 0)
    throw new UsageError(
      'dns needs at least one --service NAME=SOURCE, such as echo=static:127.0.1.1,127.0.1.2',
    )
  const whole = { ...options, services, drainMs: options.drain, graceMs: options.grace }
  validate(whole)
  return whole
}

/** As in a zone file: a name with a final dot is whole, `@` is the zone, any other is relative to it. */
function wholeName(name: string, zone: string): string {
  if (name === '@') return zone
  const whole = parseNamed('--service', name.endsWith('.') ? name : `${name}.${zone}`, domainName)
  if (whole !== zone && !whole.endsWith(`.${zone}`))
    throw new UsageError(`Cannot serve --service "${name}": it is not within the zone ${zone}`)
  if (whole === nameServer(zone))
    throw new UsageError(`Cannot serve --service "${name}": ${whole} is the zone's name server`)
  return whole
}

/** `0000-0000-0000-0000-0000-0000-0000-0000.`: no name of an endpoint or SRV record has a longer label. */
const LONGEST_LABEL_OCTETS = 40

/** Throws a UsageError where options do not go together. */
export function validate({ policy, check, services }: DnsOptions): void {
  if (policy === 'least-loaded' && !check.some(({ kind }) => kind === 'http'))
    throw new UsageError(
      'Cannot use --policy least-loaded: it reads the load from the replicas, which needs --check http:8080/readyz',
    )
  const names = services.map(({ name }) => name)
  const twice = names.find((name, i) => names.indexOf(name) !== i)
  if (twice)
    throw new UsageError(`Cannot serve --service ${twice} twice: give all its endpoints in one SOURCE`)
  for (const name of names) {
    const above = names.find(other => name.endsWith(`.${other}`))
    if (above && /^(_|\d+(-\d+){3}$|[0-9a-f]+(-[0-9a-f]+){7}$)/.test(name.slice(0, -above.length - 1)))
      throw new UsageError(
        `Cannot serve --service ${name}: such names below ${above} are its endpoints' and SRV records'`,
      )
  }
  for (const name of names)
    if (name.length + 2 + LONGEST_LABEL_OCTETS > 255)
      throw new UsageError(
        `Cannot serve --service ${name}: names of endpoints below it would be over 255 octets`,
      )
}
