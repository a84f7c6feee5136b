/** `roundelay up`: the whole farm on loopback, with DNS and checks in this process. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { httpGet } from '../client/http.ts'
import type { Authority } from '../dns/authority.ts'
import type { Check } from '../endpoints/checks.ts'
import { endpoint } from '../endpoints/endpoint.ts'
import { staticSource } from '../endpoints/source.ts'
import { createLog, textFormat } from '../ops/log.ts'
import { formatAddress, type SocketAddress } from '../parse.ts'
import { type DnsOptions, firstCount, startDns, validate } from './dns.ts'
import type { Options, Run } from './options.ts'
import {
  type Place,
  type Replica,
  selfCommand,
  startCommand,
  startReplica,
  stopReplica,
  waitUntilReady,
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
  await reserve(
    [...options.listen, ...places.map(({ listen }) => listen)],
    [options.admin, ...places.map(({ admin }) => admin)],
  )

  const format = screen && (await textFormat())
  const onLine = format && ((line: string) => screen.print(format(line)))
  // On a terminal the table tells of the replicas what their log would.
  const replicaLevel = screen && !options.given.has('logLevel') ? 'warn' : options.logLevel
  replicas = places.map(place => startReplica(place, replicaLevel, onLine))
  await Promise.all(replicas.map(waitUntilReady))
  for (const replica of replicas)
    replica.process.once('exit', () => {
      const { address } = replica.listen
      if (!closing)
        log.warn({ by: replica.ended, startAgain: startCommand(replica) }, `replica ${address} ended`)
    })

  const { authority, addresses } = await startDns(dnsOptions, log, context)
  if (!screen) {
    const { rotation, echo, failure } = tryCommands(addresses[0], service, options, replicas)
    log.info({ rotation, echo, failure }, `farm of ${replicas.length} replicas started`)
    return
  }
  const counts = new Map<string, Counts>()
  const paint = () => {
    const tries = Object.entries(tryCommands(addresses[0], service, options, replicas))
    const commands = tries.map(([what, command]) => `${`${what}:`.padEnd(10)} ${command}`)
    const again = replicas
      .filter(({ ended }) => ended)
      .map(
        replica =>
          `${replica.listen.address} ended (${replica.ended}); start it again: ${startCommand(replica)}`,
      )
    const room = Math.max(1, screen.rows - commands.length - 8)
    const table = tableLines(rows(authority, replicas, counts), room)
    screen.show(['', ...commands, '', ...table, '', ...again.slice(0, 3)])
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
  const taken: { close(done: () => void): unknown }[] = []
  try {
    for (const { address, port } of [...udpAndTcp, ...tcp]) {
      const server = createServer().listen({ host: address, port })
      taken.push(server)
      await once(server, 'listening')
    }
    for (const { address, port } of udpAndTcp) {
      const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4')
      taken.push(socket)
      socket.bind({ address, port, exclusive: true })
      await once(socket, 'listening')
    }
  } finally {
    await Promise.all(taken.map(server => new Promise<void>(resolve => server.close(resolve))))
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
  const { process } = replicas.find(({ ended }) => !ended) ?? replicas[0]
  return {
    rotation: `dig @${dns.address} -p ${dns.port} ${service} +short`,
    echo: `${selfCommand()} send --tcp -v --dns ${formatAddress(dns)} --port ${options.port} ${service} hello`,
    failure: `kill -9 ${process.pid}`,
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
  const [{ service, endpoints }] = authority.snapshots
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
