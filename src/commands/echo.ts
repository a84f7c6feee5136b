/** `roundelay echo`: one replica. */
import { hostname } from 'node:os'
import { startAdmin } from '../ops/admin.ts'
import { createLog } from '../ops/log.ts'
import { Metrics, type Sample } from '../ops/metrics.ts'
import { formatAddress, type SocketAddress } from '../parse.ts'
import { echo } from '../protocols.ts'
import { type EchoCounters, type EchoService, eventLoop } from '../servers/event-loop.ts'
import type { Run } from './options.ts'

export const run: Run<'echo'> = async (options, _args, { version, exit, takeSignals }) => {
  const log = await createLog({ level: options.logLevel, name: 'echo' })
  if (options.tied) {
    // Whoever started this replica holds the other end; the kernel closes it even after SIGKILL.
    process.stdin
      .on('end', () => exit(0))
      .on('error', () => exit(0))
      .resume()
  }
  const service = await listen(options.listen, options.given.has('listen'), addresses =>
    eventLoop(echo, {
      listen: addresses,
      maxConnections: options.maxConnections,
      idleMs: options.idleTimeout,
      onFull: maxConnections => log.warn({ maxConnections }, 'connection cap reached: more clients wait'),
    }),
  )
  const { counters } = service
  const whoami = () => ({
    name: options.name ?? (process.env.POD_NAME || hostname()),
    version,
    addresses: service.addresses.map(formatAddress),
    pod: process.env.POD_NAME,
    podIp: process.env.POD_IP,
    node: process.env.NODE_NAME,
    pid: process.pid,
    uptimeSeconds: Math.round(process.uptime()),
    counters,
  })
  let admin: SocketAddress
  try {
    admin = await startAdmin({
      listen: options.admin,
      log,
      metrics: new Metrics('echo', version),
      samples: () => samples(counters),
      documents: { '/whoami': whoami },
      notReady: () => undefined,
      connections: () => counters.active,
      close: deadline => service.close(deadline),
      drainMs: options.drain,
      graceMs: options.grace,
      exit,
      takeSignals,
    })
  } catch (error) {
    await service.close(AbortSignal.abort())
    throw error
  }
  const listening = service.addresses.map(formatAddress)
  log.info({ listen: listening, admin: formatAddress(admin), version }, 'echo replica ready')
}

/** Without --listen, a machine that has no IPv6 is served over IPv4 alone. */
async function listen(
  wanted: readonly SocketAddress[],
  asked: boolean,
  start: (addresses: readonly SocketAddress[]) => Promise<EchoService>,
): Promise<EchoService> {
  try {
    return await start(wanted)
  } catch (error) {
    const { code, address } = error as NodeJS.ErrnoException & { address?: string }
    const noIpv6 = (code === 'EAFNOSUPPORT' || code === 'EADDRNOTAVAIL') && address === '::'
    if (asked || !noIpv6) throw error
    return start(wanted.filter(({ address }) => address !== '::'))
  }
}

const samples = (counters: Readonly<EchoCounters>): Sample[] => [
  ['roundelay_echo_datagrams_total', { result: 'echoed' }, counters.datagrams],
  ['roundelay_echo_datagrams_total', { result: 'dropped_loop' }, counters.datagramsLoopDropped],
  ['roundelay_echo_datagrams_total', { result: 'dropped_overload' }, counters.datagramsOverloadDropped],
  ['roundelay_echo_datagrams_total', { result: 'failed' }, counters.datagramsFailed],
  ['roundelay_echo_connections_total', {}, counters.connections],
  ['roundelay_echo_connections_active', {}, counters.active],
  ['roundelay_echo_connections_waiting', {}, counters.waiting],
]
