/** `roundelay up`: the whole farm on loopback, with DNS and checks in this process. */
import { once } from 'node:events'
import { createServer } from 'node:net'
import { formatAddress, type SocketAddress } from '../address.ts'
import { httpGet } from '../client/http.ts'
import type { Authority } from '../dns/authority.ts'
import type { Check } from '../endpoints/checks.ts'
import { endpoint } from '../endpoints/endpoint.ts'
import { staticSource } from '../endpoints/static.ts'
import { UsageError } from '../errors.ts'
import { bindAll, openTcp, openUdp, udpSocket } from '../net/bind.ts'
import { createLog, textFormat } from '../ops/log.ts'
import { type DnsOptions, startDns, validate } from './dns.ts'
import { firstCount } from './dns-state.ts'
import type { Options, Run } from './options.ts'
import {
  type Place,
  type Replica,
  selfCommand,
  startCommand,
  startReplicas,
  stopReplica,
} from './replicas.ts'
import { Screen, tableLines } from './up-screen.ts'

const REFRESH_MS = 1000
const COUNTS_TIMEOUT_MS = 500
const CLOSE_MS = 500

export const run: Run<'up'> = async (options, _args, context) => {
  const screen = process.stdout.isTTY ? new Screen(process.stdout) : undefined
  const log = await createLog({ level: options.logLevel, name: 'up' }, text => screen?.print(text))
  const places = Array.from({ length: options.replicas }, (_, i): Place => {
    const address = `127.0.1.${i + 1}`
    return { listen: { address, port: options.port }, admin: { address, port: options.adminPort } }
  })
  let closing = false
  let refreshing: NodeJS.Timeout | undefined
  let replicas: Replica[] = []
  const service = `echo.${options.zone}`
  const dnsOptions: DnsOptions = {
    ...options,
    services: [
      {
        name: service,
        source: staticSource(places.map(({ listen }) => endpoint(listen.address))),
        text: `the ${places.length} replicas of up`,
      },
    ],
    check: options.check ?? defaultChecks(options),
    drainMs: 0,
    graceMs: CLOSE_MS,
    async onClose() {
      closing = true
      clearInterval(refreshing)
      await Promise.all(replicas.map(stopReplica))
    },
  }
  validate(dnsOptions)
  if (options.port === options.adminPort)
    throw new UsageError(
      `Cannot use ${options.port} as --port and as --admin-port: both are TCP on each replica`,
    )
  await reserve(
    [...options.listen, ...places.map(({ listen }) => listen)],
    [options.admin, ...places.map(({ admin }) => admin)],
  )

  const format = screen && (await textFormat())
  const onLine = format && ((line: string) => screen.print(format(line)))
  // On a terminal the table tells of the replicas what their log would.
  const replicaLevel = screen && !options.given.has('logLevel') ? 'warn' : options.logLevel
  log.info(`starting ${places.length} replicas`)
  replicas = await startReplicas(places, replicaLevel, onLine)
  for (const replica of replicas)
    replica.process.once('exit', () => {
      const { address } = replica.listen
      if (!closing)
        log.warn({ by: replica.ended, startAgain: startCommand(replica) }, `replica ${address} ended`)
    })

  const { authority, addresses } = await startDns(dnsOptions, log, context)
  if (!screen) {
    log.info(
      tryCommands(addresses[0]!, service, options, replicas),
      `farm of ${replicas.length} replicas started`,
    )
    return
  }
  const counts = new Map<string, Counts>()
  const paint = () => {
    const tries = Object.entries(tryCommands(addresses[0]!, service, options, replicas))
    const commands = tries.map(([what, command]) => `${`${what}:`.padEnd(10)} ${command}`)
    const table = rows(authority, replicas, counts)
    const again = replicas
      .filter(({ ended }, i) => ended && table[i]!.state !== 'up')
      .map(replica => `start ${replica.listen.address} again: ${startCommand(replica)}`)
    const room = Math.max(1, screen.rows - commands.length - 2 * again.length - 8)
    screen.show(['', ...commands, '', ...tableLines(table, room), '', ...again.slice(0, 3)])
  }
  paint()
  refreshing = setInterval(() => {
    paint()
    for (const { admin } of replicas)
      readCounts(admin).then(
        read => counts.set(admin.address, read),
        () => {},
      )
  }, REFRESH_MS)
}

/** Rejects when one of the addresses cannot be had, before anything is started. */
async function reserve(udpAndTcp: readonly SocketAddress[], tcp: readonly SocketAddress[]): Promise<void> {
  const held: { close(): unknown }[] = []
  try {
    for (const { tcp, udp } of await bindAll(
      udpAndTcp,
      openTcp(() => createServer()),
      openUdp(udpSocket),
    ))
      held.push(tcp, udp)
    for (const { address, port } of tcp) {
      const server = createServer().listen({ host: address, port })
      held.push(server)
      await once(server, 'listening')
    }
  } finally {
    for (const socket of held) socket.close()
  }
}

const defaultChecks = ({ port, adminPort }: Options<'up'>): Check[] => [
  { kind: 'udp', port },
  { kind: 'http', port: adminPort, path: '/readyz' },
]

/** The three things to try, as they are typed. */
function tryCommands(
  dns: SocketAddress,
  service: string,
  options: Options<'up'>,
  replicas: readonly Replica[],
) {
  const victim = replicas.find(({ ended }) => !ended)
  return {
    rotation: `dig @${dns.address} -p ${dns.port} ${service} +short`,
    echo: `${selfCommand()} send --tcp -v --dns ${formatAddress(dns)} --port ${options.port} ${service} hello`,
    ...(victim && { failure: `kill -9 ${victim.process.pid}` }),
  }
}

interface Counts {
  readonly datagrams: number
  readonly connections: number
}

async function readCounts(admin: SocketAddress): Promise<Counts> {
  const { body } = await httpGet(admin, '/whoami', AbortSignal.timeout(COUNTS_TIMEOUT_MS))
  return JSON.parse(body).counters
}

function rows(authority: Authority, replicas: readonly Replica[], counts: ReadonlyMap<string, Counts>) {
  const firsts = authority.firsts()
  const { service, endpoints } = authority.snapshots[0]!
  return replicas.map(replica => {
    const { address } = replica.listen
    const known = endpoints.find(endpoint => endpoint.address === address)
    return {
      address,
      state: known?.state ?? 'checking',
      checks: known?.detail ?? '',
      first: firstCount(firsts, service, address),
      datagrams: counts.get(address)?.datagrams,
      connections: counts.get(address)?.connections,
    }
  })
}
