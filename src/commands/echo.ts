/** `roundelay echo`: one replica, which runs one of the server models and speaks one of the protocols. */
import { hostname } from 'node:os'
import { formatAddress, type SocketAddress, type Transport } from '../address.ts'
import { systemClock } from '../clock.ts'
import { UsageError } from '../errors.ts'
import { ephemeralFrom, retryWithoutIpv6 } from '../net/bind.ts'
import { serveHttp } from '../ops/http.ts'
import { createLog } from '../ops/log.ts'
import { Metrics, type Sample } from '../ops/metrics.ts'
import { endOnSignals, Shutdown } from '../ops/shutdown.ts'
import { protocol } from '../protocols.ts'
import { type ModelFlag, models, modelsForTransport, modelsWithFlag } from '../servers/models.ts'
import type { EchoService } from '../servers/service.ts'
import { whyUnavailable } from '../sys/available.ts'
import { flagText, type Options, type Run } from './options.ts'

export const run: Run<'echo'> = async (options, _args, { version, exit, takeSignals }) => {
  const { model } = options
  const spoken = protocol(options.protocol, systemClock)
  const guardBelow = options.loopGuard === 'off' ? 0 : ephemeralFrom()
  if (options.stdio) {
    const why = await whyUnavailable()
    if (why) throw new UsageError(`Cannot serve descriptor 0 here: it needs Linux' socket API, and ${why}`)
    // While a call blocks no handler runs. Without handlers the system ends the process.
    takeSignals()
    const { serveStdio } = await import('../servers/stdio.ts')
    try {
      return serveStdio(spoken, options.idleTimeout, guardBelow)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOTSOCK') throw error
      throw new UsageError('Cannot serve descriptor 0: it is not a socket, as it would be behind inetd')
    }
  }
  const transports = chooseTransports(options)
  refuseOthersFlags(options)
  const why = models[model].needsLinux ? await whyUnavailable() : undefined
  if (why) throw new UsageError(`Cannot run --model ${model} here: it needs Linux' socket API, and ${why}`)
  const log = await createLog({ level: options.logLevel, name: 'echo' })
  if (options.tied) {
    // The process that started this replica holds the other end; the kernel closes it even after SIGKILL.
    process.stdin
      .on('end', () => exit(0))
      .on('error', () => exit(0))
      .resume()
  }
  const serve = await models[model].load()
  const listen = (addresses: readonly SocketAddress[]) =>
    serve(spoken, {
      ...options,
      transports,
      listen: addresses,
      idleMs: options.idleTimeout,
      guardBelow,
      clock: systemClock,
      random: Math.random,
      say: (level, message, details) => log[level](details, message),
    })
  // A user who names addresses gets all of them or an error.
  const service = await (options.given.has('listen')
    ? listen(options.listen)
    : retryWithoutIpv6(options.listen, listen))
  const { counters } = service
  const whoami = () => ({
    name: options.name ?? (process.env.POD_NAME || hostname()),
    version,
    model,
    protocol: spoken.name,
    addresses: service.addresses.map(formatAddress),
    pod: process.env.POD_NAME,
    podIp: process.env.POD_IP,
    node: process.env.NODE_NAME,
    pid: process.pid,
    uptimeSeconds: Math.round(process.uptime()),
    counters,
  })
  const state = () => ({ model, protocol: spoken.name, transports, counters, ...service.children?.() })
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
    {
      model,
      protocol: spoken.name,
      transports,
      listen: listening,
      admin: formatAddress(admin.address),
      version,
    },
    'echo replica ready',
  )
}

/** All that the model is made for, unless --udp or --tcp choose. */
function chooseTransports({ model, udp, tcp }: Options<'echo'>): readonly Transport[] {
  const offered = models[model].transports
  const wanted = (['udp', 'tcp'] as const).filter(transport => ({ udp, tcp })[transport])
  for (const transport of wanted) {
    if (offered.includes(transport)) continue
    const name = transport.toUpperCase()
    const able = modelsForTransport(transport).join(', ')
    throw new UsageError(`Cannot serve ${name} with --model ${model}: the models for ${name} are ${able}`)
  }
  return wanted.length > 0 ? wanted : offered
}

/** A flag that would do nothing is a mistake. A variable is not: it may be meant for other replicas. */
function refuseOthersFlags({ model, given, start, minSpare, maxSpare, maxChildren }: Options<'echo'>): void {
  for (const [flag, source] of given) {
    if (source !== 'flag' || !isModelFlag(flag) || models[model].flags.includes(flag)) continue
    const owners = modelsWithFlag(flag).join(', ')
    throw new UsageError(`Cannot use ${flagText(flag)} with --model ${model}: it is for ${owners}`)
  }
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

const isModelFlag = (flag: string): flag is ModelFlag => modelsWithFlag(flag as ModelFlag).length > 0

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
