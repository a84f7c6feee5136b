/** `roundelay echo`: one replica, as one of the server models. */
import { hostname } from 'node:os'
import { formatAddress, type SocketAddress, type Transport } from '../address.ts'
import { UsageError } from '../errors.ts'
import { retryWithoutIpv6 } from '../net/bind.ts'
import { serveHttp } from '../ops/http.ts'
import { createLog } from '../ops/log.ts'
import { Metrics, type Sample } from '../ops/metrics.ts'
import { endOnSignals, Shutdown } from '../ops/shutdown.ts'
import { echo } from '../protocols.ts'
import { type EchoService, type ModelName, models, type ServerModel } from '../servers/service.ts'
import { whyUnavailable } from '../sys/available.ts'
import { type FlagName, flagText, type Options, type Run } from './options.ts'

/** Loaded when asked for: all but the event loop need Linux. */
const load: { readonly [M in ModelName]: () => Promise<ServerModel> } = {
  iterative: async () => (await import('../servers/iterative.ts')).iterative,
  concurrent: async () => (await import('../servers/concurrent.ts')).concurrent,
  prefork: async () => (await import('../servers/prefork.ts')).prefork,
  'event-loop': async () => (await import('../servers/event-loop.ts')).eventLoop,
}

export const run: Run<'echo'> = async (options, _args, { version, exit, takeSignals }) => {
  const { model } = options
  if (options.stdio) {
    const why = await whyUnavailable()
    if (why) throw new UsageError(`Cannot serve descriptor 0 here: it needs Linux' socket API, and ${why}`)
    // Blocking calls hold up every handler: without ours the system ends us.
    takeSignals()
    const { serveStdio } = await import('../servers/stdio.ts')
    try {
      return serveStdio(echo, options.idleTimeout)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOTSOCK') throw error
      throw new UsageError('Cannot serve descriptor 0: it is no socket, as it would be behind inetd')
    }
  }
  const transports = chooseTransports(options)
  refuseOthersFlags(options)
  const why = model === 'event-loop' ? undefined : await whyUnavailable()
  if (why) throw new UsageError(`Cannot run --model ${model} here: it needs Linux' socket API, and ${why}`)
  const log = await createLog({ level: options.logLevel, name: 'echo' })
  if (options.tied) {
    // Whoever started this replica holds the other end; the kernel closes it even after SIGKILL.
    process.stdin
      .on('end', () => exit(0))
      .on('error', () => exit(0))
      .resume()
  }
  const serve = await load[model]()
  const listen = (addresses: readonly SocketAddress[]) =>
    serve(echo, {
      ...options,
      transports,
      listen: addresses,
      idleMs: options.idleTimeout,
      say: (level, message, details) => log[level](details, message),
    })
  // Who asks for addresses gets all of them or an error.
  const service = await (options.given.has('listen')
    ? listen(options.listen)
    : retryWithoutIpv6(options.listen, listen))
  const { counters } = service
  const whoami = () => ({
    name: options.name ?? (process.env.POD_NAME || hostname()),
    version,
    model,
    addresses: service.addresses.map(formatAddress),
    pod: process.env.POD_NAME,
    podIp: process.env.POD_IP,
    node: process.env.NODE_NAME,
    pid: process.pid,
    uptimeSeconds: Math.round(process.uptime()),
    counters,
  })
  const state = () => ({ model, transports, counters, ...service.children?.() })
  const shutdown = new Shutdown({
    log,
    close: deadline => service.close(deadline),
    drainMs: options.drain,
    graceMs: options.grace,
    exit,
  })
  const metrics = new Metrics('echo', version)
  const site = {
    draining: () => shutdown.draining,
    notReady: () => service.notReady?.(),
    connections: () => counters.active,
    metrics: () => metrics.expose(samples(service)),
    documents: { '/whoami': whoami, '/state': state },
  }
  const admin = await serveHttp(options.admin, site, log).catch(async error => {
    await service.close(AbortSignal.abort())
    throw error
  })
  endOnSignals(admin.server, shutdown, log, takeSignals)
  const listening = service.addresses.map(formatAddress)
  log.info(
    { model, transports, listen: listening, admin: formatAddress(admin.address), version },
    'echo replica ready',
  )
}

/** All that the model is made for, unless --udp or --tcp say which. */
function chooseTransports({ model, udp, tcp }: Options<'echo'>): readonly Transport[] {
  const offered: readonly Transport[] = models[model]
  const wanted = (['udp', 'tcp'] as const).filter(transport => ({ udp, tcp })[transport])
  for (const transport of wanted) {
    if (offered.includes(transport)) continue
    const able = (Object.keys(models) as ModelName[]).filter(name =>
      (models[name] as readonly Transport[]).includes(transport),
    )
    const name = transport.toUpperCase()
    throw new UsageError(
      `Cannot serve ${name} with --model ${model}: the models for ${name} are ${able.join(', ')}`,
    )
  }
  return wanted.length > 0 ? wanted : offered
}

const flagsOf: Partial<Record<FlagName, readonly ModelName[]>> = {
  maxConnections: ['event-loop'],
  maxChildren: ['concurrent', 'prefork'],
  idleTimeout: ['concurrent', 'prefork', 'event-loop'],
  start: ['prefork'],
  minSpare: ['prefork'],
  maxSpare: ['prefork'],
  maxRequests: ['prefork'],
}

/** A flag that would do nothing is a mistake; a variable may stand for other replicas too. */
function refuseOthersFlags({ model, given, start, minSpare, maxSpare, maxChildren }: Options<'echo'>): void {
  for (const [flag, owners] of Object.entries(flagsOf) as [FlagName, readonly ModelName[]][])
    if (given.get(flag) === 'flag' && !owners.includes(model))
      throw new UsageError(
        `Cannot use ${flagText(flag)} with --model ${model}: it is for ${owners.join(', ')}`,
      )
  if (model !== 'prefork') return
  if (minSpare > maxSpare)
    throw new UsageError(
      `Cannot keep --min-spare ${minSpare} with --max-spare ${maxSpare}: it must not be more`,
    )
  if (start > maxChildren && given.has('start'))
    throw new UsageError(`Cannot --start ${start} with --max-children ${maxChildren}: it must not be more`)
  if (minSpare > maxChildren)
    throw new UsageError(
      `Cannot keep --min-spare ${minSpare} with --max-children ${maxChildren}: it must not be more`,
    )
}

const childStates = ['starting', 'idle', 'busy', 'stopping'] as const

const samples = ({ counters, children }: EchoService): Sample[] => {
  const { scoreboard = [], forks = 0, failures = 0 } = children?.() ?? {}
  return [
    ['roundelay_echo_datagrams_total', { result: 'echoed' }, counters.datagrams],
    ['roundelay_echo_datagrams_total', { result: 'dropped_loop' }, counters.datagramsLoopDropped],
    ['roundelay_echo_datagrams_total', { result: 'dropped_overload' }, counters.datagramsOverloadDropped],
    ['roundelay_echo_datagrams_total', { result: 'failed' }, counters.datagramsFailed],
    ['roundelay_echo_connections_total', {}, counters.connections],
    ['roundelay_echo_connections_active', {}, counters.active],
    ['roundelay_echo_connections_waiting', {}, counters.waiting],
    ...childStates.map((state): Sample => {
      const count = scoreboard.filter(child => child.state === state).length
      return ['roundelay_echo_children', { state }, count]
    }),
    ['roundelay_echo_forks_total', {}, forks],
    ['roundelay_echo_child_failures_total', {}, failures],
  ]
}
