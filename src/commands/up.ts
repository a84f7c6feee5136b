/** `roundelay up`: the whole farm on loopback, with DNS and checks in this process. */
import { once } from 'node:events'
import { createServer } from 'node:net'
import { formatAddress, type SocketAddress } from '../address.ts'
import { httpGet } from '../client/http.ts'
import { systemClock } from '../clock.ts'
import type { Check } from '../endpoints/checks.ts'
import { endpoint } from '../endpoints/endpoint.ts'
import { staticSource } from '../endpoints/static.ts'
import { UsageError } from '../errors.ts'
import { bindAll, bindNodeUdp, listenNodeTcp, udpSocket } from '../net/bind.ts'
import { EventHub, type FarmEvent, type FarmState, type Present } from '../ops/events.ts'
import { createLog, logSubscriber, textFormat } from '../ops/log.ts'
import { startDns } from './dns.ts'
import { type DnsOptions, validate } from './dns-options.ts'
import { firstCount } from './dns-state.ts'
import type { Options, Run } from './options.ts'
import {
  type Replica,
  type ReplicaAddresses,
  selfCommand,
  startCommand,
  startReplicas,
  stopReplica,
} from './replicas.ts'
import { type Row, Screen, tableLines } from './up-screen.ts'

const COUNTS_MS = 1000
const COUNTS_TIMEOUT_MS = 500
const PAINT_MS = 50
const CLOSE_MS = 500

export const run: Run<'up'> = async (options, _args, context) => {
  const screen = process.stdout.isTTY ? new Screen(process.stdout) : undefined
  const log = await createLog({ level: options.logLevel, name: 'up' }, text => screen?.print(text))
  const hub = new EventHub(systemClock)
  hub.subscribe(logSubscriber(log))
  const addresses = Array.from({ length: options.replicas }, (_, i): ReplicaAddresses => {
    const address = `127.0.1.${i + 1}`
    return { listen: { address, port: options.port }, admin: { address, port: options.adminPort } }
  })
  const closing = new AbortController()
  let replicas: readonly Replica[] = []
  const service = `echo.${options.zone}`
  const dnsOptions: DnsOptions = {
    ...options,
    services: [
      {
        name: service,
        source: staticSource(addresses.map(({ listen }) => endpoint(listen.address))),
        text: `the ${addresses.length} replicas of up`,
      },
    ],
    check: options.check ?? defaultChecks(options),
    // The list of replicas never changes.
    handover: 0,
    drainMs: 0,
    graceMs: CLOSE_MS,
    async onClose() {
      closing.abort()
      await Promise.all(replicas.map(stopReplica))
    },
  }
  validate(dnsOptions)
  if (options.port === options.adminPort)
    throw new UsageError(
      `Cannot use ${options.port} as --port and as --admin-port: both are TCP on each replica`,
    )
  await reserve(
    [...options.listen, ...addresses.map(({ listen }) => listen)],
    [options.admin, ...addresses.map(({ admin }) => admin)],
  )

  const format = screen && (await textFormat())
  const onLine = format && ((line: string) => screen.print(format(line)))
  // On a terminal the table shows what the logs of the replicas would say.
  const replicaLevel = screen && !options.given.has('logLevel') ? 'warn' : options.logLevel
  log.info(`starting ${addresses.length} replicas`)
  replicas = await startReplicas(addresses, replicaLevel, onLine)
  for (const replica of replicas) publishReplica(replica, hub, closing.signal)

  const [dns] = await startDns(dnsOptions, hub, log, context)
  const farm: Farm = { dns: dns!, service, port: options.port, replicas }
  if (screen) showTable(farm, screen, hub, closing.signal)
  else log.info(tryCommands(farm, hub.state), `farm of ${replicas.length} replicas started`)
}

/** Publishes that the replica runs and, unless the farm is closing, that it has ended. */
function publishReplica(replica: Replica, hub: EventHub, closing: AbortSignal): void {
  const event = {
    type: 'replica',
    address: replica.listen.address,
    pid: replica.process.pid,
    startAgain: startCommand(replica),
  } as const
  const ended = () => {
    if (!closing.aborted && replica.ended) hub.publish({ ...event, ended: replica.ended })
  }
  hub.publish(event)
  replica.process.once('exit', ended)
  ended()
}

interface Farm {
  readonly dns: SocketAddress
  readonly service: string
  readonly port: number
  readonly replicas: readonly Replica[]
}

/** Paints the table whenever something changes, until `closing` aborts. */
function showTable(farm: Farm, screen: Screen, hub: EventHub, closing: AbortSignal): void {
  const counts = new Map<string, Counts>()
  const paint = () => {
    const commands = Object.entries(tryCommands(farm, hub.state)).map(
      ([what, command]) => `${`${what}:`.padEnd(10)} ${command}`,
    )
    const rows = tableRows(farm, hub.state, counts)
    const again = rows.flatMap(({ address, state }) => {
      const process = hub.state.replicas.get(address)
      return process?.ended === undefined || state === 'up'
        ? []
        : [`restart ${address}: ${process.startAgain}`]
    })
    const room = Math.max(1, screen.rows - commands.length - 2 * again.length - 10)
    const open = hub.state.services.get(farm.service)?.failedOpen
    const table = [
      ...tableLines(rows, room),
      `DNS answers: ${hub.state.tallies.answers}`,
      ...(open ? ['No replica is healthy: all are answered (--fail open).'] : []),
    ]
    screen.show(['', ...commands, '', ...table, ...(again.length > 0 ? ['', ...again.slice(0, 3)] : [])])
  }
  // Many events come together, such as the counts of all replicas.
  let cancelPaint: (() => void) | undefined
  const paintSoon = () => {
    if (closing.aborted) return
    cancelPaint ??= systemClock.after(PAINT_MS, () => {
      cancelPaint = undefined
      paint()
    })
  }
  paint()
  const onEvent = ({ type }: FarmEvent | Present) => {
    if (type !== 'check') paintSoon()
  }
  const unsubscribe = hub.subscribe(onEvent, { tallies: true })
  const timer = setInterval(() => {
    for (const { admin } of farm.replicas)
      readCounts(admin).then(
        read => {
          counts.set(admin.address, read)
          paintSoon()
        },
        () => {},
      )
  }, COUNTS_MS)
  closing.addEventListener('abort', () => {
    unsubscribe()
    clearInterval(timer)
    cancelPaint?.()
  })
}

/** Rejects when one of the addresses cannot be bound, before anything is started. */
async function reserve(udpAndTcp: readonly SocketAddress[], tcp: readonly SocketAddress[]): Promise<void> {
  const held: { close(): unknown }[] = []
  try {
    for (const { tcp, udp } of await bindAll(
      udpAndTcp,
      listenNodeTcp(() => createServer()),
      bindNodeUdp(udpSocket),
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

/** The three things to try, as a person types them. */
function tryCommands({ dns, service, port, replicas }: Farm, { replicas: processes }: FarmState) {
  const running = replicas.find(({ listen }) => processes.get(listen.address)?.ended === undefined)
  return {
    rotation: `dig @${dns.address} -p ${dns.port} ${service} +short`,
    echo: `${selfCommand()} send --tcp -v --dns ${formatAddress(dns)} --port ${port} ${service} hello`,
    ...(running && { failure: `kill -9 ${running.process.pid}` }),
  }
}

/** What only the replica knows. */
interface Counts {
  readonly datagrams: number
  readonly connections: number
}

async function readCounts(admin: SocketAddress): Promise<Counts> {
  const { body } = await httpGet(admin, '/whoami', AbortSignal.timeout(COUNTS_TIMEOUT_MS))
  return JSON.parse(body).counters
}

function tableRows(
  { service, replicas }: Farm,
  state: FarmState,
  counts: ReadonlyMap<string, Counts>,
): Row[] {
  const endpoints = state.services.get(service)?.endpoints ?? []
  return replicas.map(({ listen: { address } }) => {
    const known = endpoints.find(endpoint => endpoint.address === address)
    return {
      address,
      state: known?.state ?? 'checking',
      checks: known?.detail ?? '',
      first: firstCount(state.tallies.firsts, service, address),
      datagrams: counts.get(address)?.datagrams,
      connections: counts.get(address)?.connections,
    }
  })
}
