/** `roundelay dns`: the authoritative server with its pools. `up` runs the same farm in its own process. */

import { hostname, networkInterfaces } from 'node:os'
import { formatAddress, isIpv6, type SocketAddress } from '../address.ts'
import { probe } from '../client/probe.ts'
import { systemClock } from '../clock.ts'
import { Authority } from '../dns/authority.ts'
import { policies } from '../dns/rotation.ts'
import { nameServer } from '../dns/zone.ts'
import type { Check } from '../endpoints/checks.ts'
import type { Source } from '../endpoints/endpoint.ts'
import { type Pool, type PoolEvents, startPool } from '../endpoints/pool.ts'
import { UsageError } from '../errors.ts'
import { listenDns } from '../net/dns-server.ts'
import { startAdmin } from '../ops/admin.ts'
import { createLog, type Logger } from '../ops/log.ts'
import { Metrics } from '../ops/metrics.ts'
import { samples, state } from './dns-state.ts'
import type { Context, Options, Run } from './options.ts'
import { parseNamed } from './resolve-options.ts'
import { domainName } from './values.ts'

export const run: Run<'dns'> = async (options, _args, context) => {
  const services = (options.service ?? []).map(({ name, source, text }) => ({
    name: wholeName(name, options.zone),
    source,
    text,
  }))
  if (services.length === 0)
    throw new UsageError(
      'dns needs at least one --service NAME=SOURCE, such as echo=static:127.0.1.1,127.0.1.2',
    )
  const dnsOptions = { ...options, services, drainMs: options.drain, graceMs: options.grace }
  validate(dnsOptions)
  const log = await createLog({ level: options.logLevel, name: 'dns' })
  await startDns(dnsOptions, log, context)
}

/** A name as in a zone file: with a final dot it is whole, `@` is the zone, else it is relative to the zone. */
function wholeName(name: string, zone: string): string {
  if (name === '@') return zone
  const whole = parseNamed('--service', name.endsWith('.') ? name : `${name}.${zone}`, domainName)
  if (whole !== zone && !whole.endsWith(`.${zone}`))
    throw new UsageError(`Cannot serve --service "${name}": it is not within the zone ${zone}`)
  if (whole === nameServer(zone))
    throw new UsageError(`Cannot serve --service "${name}": ${whole} is the zone's name server`)
  return whole
}

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
  readonly services: readonly { readonly name: string; readonly source: Source; readonly text: string }[]
  readonly check: readonly Check[]
  readonly nsAddress?: Options<'dns'>['nsAddress']
  readonly serverId?: Options<'dns'>['serverId']
  readonly drainMs: number
  readonly graceMs: number
  /** Ends what else the process runs. */
  readonly onClose?: () => Promise<void>
}

interface RunningDns {
  readonly authority: Authority
  readonly addresses: readonly SocketAddress[]
}

/** Resolves when DNS and admin listen; the services become ready after their first check round. */
export async function startDns(
  options: DnsOptions,
  log: Logger,
  { version, exit, takeSignals }: Context,
): Promise<RunningDns> {
  const metrics = new Metrics('dns', version)
  const authority = new Authority(
    {
      apex: options.zone,
      ttlSeconds: options.ttl,
      nsAddresses: options.nsAddress ?? options.listen.flatMap(concreteAddresses),
      port: options.port,
      policy: policies.find(({ name }) => name === options.policy) ?? policies[0]!,
      services: options.services.map(({ name }) => name),
      maxAnswers: options.answers ?? Number.POSITIVE_INFINITY,
      serverId: options.serverId ?? (process.env.POD_NAME || hostname()),
      version,
    },
    {
      answered(proto, type, rcode, truncated, seconds) {
        metrics.inc('roundelay_dns_requests_total', { proto, type })
        metrics.inc('roundelay_dns_responses_total', { proto, rcode })
        if (truncated) metrics.inc('roundelay_dns_responses_truncated_total', { proto })
        metrics.observe('roundelay_dns_request_duration_seconds', { proto }, seconds)
      },
      dropped: proto => metrics.inc('roundelay_dns_dropped_total', { proto }),
      failed(error) {
        metrics.inc('roundelay_dns_failed_total')
        log.error({ err: error }, 'fault while answering a query')
      },
    },
  )
  const listener = await listenDns((message, transport) => authority.answer(message, transport), {
    listen: options.listen,
  })
  const sourceUp = new Map<string, boolean>()
  const pools: Pool[] = []
  const unready = () => authority.snapshots.filter(({ ready }) => !ready).map(({ service }) => service)
  let admin: SocketAddress
  try {
    admin = await startAdmin({
      listen: options.admin,
      log,
      metrics,
      samples: () => samples(authority, sourceUp),
      documents: { '/state': () => state(authority, options, sourceUp) },
      notReady: () => (unready().length > 0 ? 'starting' : undefined),
      connections: () => 0,
      async close(deadline) {
        await Promise.all([listener.close(deadline), ...pools.map(pool => pool.close()), options.onClose?.()])
      },
      drainMs: options.drainMs,
      graceMs: options.graceMs,
      exit,
      takeSignals,
    })
  } catch (error) {
    await listener.close(AbortSignal.abort())
    throw error
  }
  const listen = listener.addresses.map(formatAddress)
  log.info({ listen, admin: formatAddress(admin), zone: options.zone, version }, 'dns server listens')
  for (const { name, source, text } of options.services) {
    const events = poolEvents(name, text, authority, log, metrics, sourceUp)
    const { check: checks, checkInterval: intervalMs, checkTimeout: timeoutMs, rise, fall, fail } = options
    pools.push(
      startPool(
        {
          ...{ service: name, source, checks, intervalMs, timeoutMs, rise, fall, fail },
          watchLoad: options.policy === 'least-loaded',
          ...{ clock: systemClock, random: Math.random, probe },
        },
        events,
      ),
    )
  }
  return { authority, addresses: listener.addresses }
}

/** `0000-0000-0000-0000-0000-0000-0000-0000.`: no name of an endpoint or SRV record has more. */
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

function poolEvents(
  service: string,
  source: string,
  authority: Authority,
  log: Logger,
  metrics: Metrics,
  sourceUp: Map<string, boolean>,
): PoolEvents {
  let announced = false
  sourceUp.set(service, true)
  return {
    snapshot(snapshot) {
      authority.update(snapshot)
      if (!snapshot.ready || announced) return
      announced = true
      log.info({ service, endpoints: snapshot.endpoints.length }, 'service ready: first check round is over')
    },
    state(address, from, to, detail) {
      // One that was never up has not gone down: it is mostly still starting.
      const worse = (to === 'down' && from === 'up') || to === 'draining'
      const level = worse ? 'warn' : to === 'checking' ? 'debug' : 'info'
      const now = to === 'absent' ? 'gone' : to
      log[level]({ service, endpoint: address, from, to, detail }, `endpoint ${address} is ${now}`)
    },
    checked(_address, ok, seconds) {
      metrics.inc('roundelay_checks_total', { service, result: ok ? 'pass' : 'fail' })
      metrics.observe('roundelay_check_duration_seconds', { service }, seconds)
    },
    source(error) {
      sourceUp.set(service, error === undefined)
      if (!error) return log.info({ service, source }, 'source is well again')
      metrics.inc('roundelay_source_failures_total', { service })
      log.warn({ service, source, reason: error.message }, 'source fails: the last good answer stays in use')
    },
  }
}

/** What a client could reach this listener at. A wildcard has the machine's own addresses of its family. */
function concreteAddresses({ address }: SocketAddress): string[] {
  if (address !== '0.0.0.0' && address !== '::') return [address]
  const family = isIpv6(address) ? 'IPv6' : 'IPv4'
  return Object.values(networkInterfaces())
    .flatMap(list => list ?? [])
    .filter(entry => entry.family === family && !entry.internal && !entry.address.startsWith('fe80:'))
    .map(entry => entry.address)
}
