/** `roundelay dns`: the authoritative server with its pools. `up` runs the same server in its own process. */
import { hostname, networkInterfaces } from 'node:os'
import { formatAddress, type SocketAddress } from '../address.ts'
import { probe } from '../client/probe.ts'
import { systemClock } from '../clock.ts'
import { type Answerer, Authority } from '../dns/authority.ts'
import { reachableAddresses } from '../dns/glue.ts'
import { policies } from '../dns/rotation.ts'
import { type Pool, type PoolEvents, startPool } from '../endpoints/pool.ts'
import { listenDns } from '../net/dns-server.ts'
import type { Crowded } from '../net/dns-tcp.ts'
import { EventHub } from '../ops/events.ts'
import { serveHttp } from '../ops/http.ts'
import { createLog, type Logger, logSubscriber } from '../ops/log.ts'
import { Metrics, metricsSubscriber } from '../ops/metrics.ts'
import { endOnSignals, Shutdown } from '../ops/shutdown.ts'
import { sparingly } from '../say.ts'
import { type DnsOptions, dnsOptions } from './dns-options.ts'
import { samples, state } from './dns-state.ts'
import type { Context, Run } from './options.ts'

export const run: Run<'dns'> = async (options, _args, context) => {
  const checked = dnsOptions(options)
  const log = await createLog({ level: options.logLevel, name: 'dns' })
  const hub = new EventHub(systemClock)
  hub.subscribe(logSubscriber(log))
  await startDns(checked, hub, log, context)
}

/**
 * Resolves, with the addresses of the DNS server, when it and the admin server listen. The services become
 * ready after their first round of checks. What happens then is published to `hub`.
 */
export async function startDns(
  options: DnsOptions,
  hub: EventHub,
  log: Logger,
  { version, exit, takeSignals }: Context,
): Promise<readonly SocketAddress[]> {
  const metrics = new Metrics('dns', version)
  hub.subscribe(metricsSubscriber(metrics))
  const policy = policies.find(({ name }) => name === options.policy) ?? policies[0]!
  const authority = new Authority(
    {
      apex: options.zone,
      ttlSeconds: options.ttl,
      nsAddresses:
        options.nsAddress ??
        options.listen.flatMap(({ address }) => reachableAddresses(address, interfaces())),
      port: options.port,
      policy,
      services: options.services.map(({ name }) => name),
      maxAnswers: options.answers ?? Number.POSITIVE_INFINITY,
      serverId: options.serverId ?? (process.env.POD_NAME || hostname()),
      version,
      clock: systemClock,
      random: Math.random,
    },
    {
      failed(error) {
        metrics.inc('roundelay_dns_failed_total')
        log.error({ err: error }, 'internal error: a query was left without a reply')
      },
      tooMany: (service, records) =>
        log.warn(
          { service, records },
          'an answer has more than 100 records, which BIND refuses: limit it with --answers',
        ),
    },
  )
  hub.tallyWith(() => ({ answers: answered(authority), firsts: authority.firsts() }))
  const answer: Answerer = (message, proto) => {
    const startedMs = systemClock.now()
    const reply = authority.answer(message, proto)
    const seconds = (systemClock.now() - startedMs) / 1000
    if (reply) metrics.observe('roundelay_dns_request_duration_seconds', { proto }, seconds)
    return reply
  }
  const unsent = () => metrics.inc('roundelay_dns_failed_total')
  const warnCrowded = sparingly(details =>
    log.warn(details, 'DNS over TCP has reached its cap of connections: idle ones are closed for new ones'),
  )
  const crowded = (result: Crowded) => {
    metrics.inc('roundelay_dns_tcp_capped_total', { result })
    warnCrowded({ result })
  }
  const listener = await listenDns(answer, { listen: options.listen, unsent, crowded })
  const pools: Pool[] = []
  const shutdown = new Shutdown({
    log,
    async close(deadline) {
      await Promise.all([listener.close(deadline), ...pools.map(pool => pool.close()), options.onClose?.()])
    },
    drainMs: options.drainMs,
    graceMs: options.graceMs,
    exit,
  })
  const site = {
    draining: () => shutdown.draining,
    notReady: () => (authority.snapshots.every(({ ready }) => ready) ? undefined : 'starting'),
    connections: () => 0,
    metrics: () => metrics.expose(samples(authority, hub.state)),
    documents: { '/state': () => state(authority, options, hub.state) },
  }
  const admin = await serveHttp(options.admin, site, log).catch(async error => {
    await listener.close(AbortSignal.abort())
    throw error
  })
  endOnSignals(admin.server, shutdown, log, takeSignals)
  const listen = listener.addresses.map(formatAddress)
  log.info(
    { listen, admin: formatAddress(admin.address), zone: options.zone, version },
    'DNS server is listening',
  )
  const { check: checks, checkInterval: intervalMs, checkTimeout: timeoutMs, rise, fall, fail } = options
  for (const { name, source, text } of options.services) {
    const pool = {
      ...{ service: name, source, checks, intervalMs, timeoutMs, rise, fall, fail },
      handoverMs: options.handover,
      watchLoad: policy.readsLoad,
      ...{ clock: systemClock, random: Math.random, probe },
    }
    pools.push(startPool(pool, publisher(name, text, authority, hub)))
  }
  return listener.addresses
}

/** Passes what happens in the pool of a service on to the authority and to the hub. */
const publisher = (service: string, source: string, authority: Authority, hub: EventHub): PoolEvents => ({
  snapshot(snapshot) {
    authority.update(snapshot)
    hub.publish({ type: 'snapshot', snapshot })
  },
  state: (address, from, to, detail) => hub.publish({ type: 'endpoint', service, address, from, to, detail }),
  checked: (_address, ok, seconds) => hub.publish({ type: 'check', service, ok, seconds }),
  notChecked: (address, detail) => hub.publish({ type: 'not-checked', service, address, error: detail }),
  note: note => hub.publish({ ...note, service, source }),
  source(error) {
    authority.sourceFailed(service, error !== undefined)
    hub.publish({ type: 'source', service, source, ...(error && { error: error.message }) })
  },
})

/** How many queries got a reply. */
const answered = (authority: Authority): number =>
  authority
    .tallies()
    .flatMap(({ types }) => [...types.values()])
    .reduce((sum, count) => sum + count, 0)

const interfaces = () => Object.values(networkInterfaces()).flatMap(list => list ?? [])
