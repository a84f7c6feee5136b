/** `roundelay up`: the whole farm on loopback, with DNS and checks in this process. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { httpGet } from '../client/http.ts'
import type { Authority } from '../dns/authority.ts'
import type { Check } from '../endpoints/checks.ts'
import { endpoint, staticSource } from '../endpoints/source.ts'
import { createLog, textFormat } from '../ops/log.ts'
import type { SocketAddress } from '../parse.ts'
import { firstCount, startDns } from './dns.ts'
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
  await reserve(
    [...options.listen, ...places.map(({ listen }) => listen)],
    [options.admin, ...places.map(({ admin }) => admin)],
  )

  const format = screen && (await textFormat())
  const onLine = format && ((line: string) => screen.print(format(line)))
  // On a terminal the table tells of the replicas what their log would.
  const replicaLevel = screen && !options.given.has('logLevel') ? 'warn' : options.logLevel
  const replicas = places.map(place => startReplica(place, replicaLevel, onLine))
  await Promise.all(replicas.map(waitUntilReady))
  for (const replica of replicas)
    replica.process.once('exit', () => {
      const { address } = replica.listen
      if (!closing)
        log.warn({ by: replica.ended, startAgain: startCommand(replica) }, `replica ${address} ended`)
    })

  let closing = false
  let refreshing: NodeJS.Timeout | undefined
  const service = `echo.${options.zone}`
  const endpoints = places.map(({ listen }) => endpoint(listen.address))
  const { authority, addresses } = await startDns(
    {
      ...options,
      services: [
        { name: service, source: staticSource(endpoints), text: `${replicas.length} replicas of up` },
      ],
      check: options.check ?? defaultChecks(options),
      drainMs: 0,
      graceMs: CLOSE_MS,
      async onClose() {
        closing = true
        clearInterval(refreshing)
        await Promise.all(replicas.map(stopReplica))
      },
    },
    log,
    context,
  )
  const commands = tryCommands(addresses[0], service, options, replicas[0])
  log.info(commands, `farm of ${replicas.length} replicas started`)
  if (!screen) return
  const counts = new Map<string, Counts>()
  const paint = () => {
    const room = screen.rows - Object.keys(commands).length - 5
    const lines = Object.entries(commands).map(([what, command]) => `${`${what}:`.padEnd(10)} ${command}`)
    screen.show(['', ...lines, '', ...tableLines(rows(authority, replicas, counts), Math.max(1, room))])
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
function tryCommands(dns: SocketAddress, service: string, options: Options<'up'>, { process }: Replica) {
  return {
    rotation: `dig @${dns.address} -p ${dns.port} ${service} +short`,
    echo: `${selfCommand()} send --tcp -v --dns ${dns.address}:${dns.port} --port ${options.port} ${service} hello`,
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
    const state = known?.state ?? 'checking'
    const gone = replica.ended && state !== 'up'
    return {
      address,
      state,
      checks: gone ? `${replica.ended}; start it again: ${startCommand(replica)}` : (known?.detail ?? ''),
      first: firstCount(firsts, service, address),
      datagrams: counts.get(address)?.datagrams,
      connections: counts.get(address)?.connections,
    }
  })
}
