/**
 * Measures our inetd and Debian's in one run: a new connection for each request, to internal echo and to
 * /bin/cat.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { formatAddress, type SocketAddress } from '../src/address.ts'
import { probe } from '../src/client/probe.ts'
import { systemClock } from '../src/clock.ts'
import { protocol } from '../src/protocols.ts'
import {
  alternate,
  count,
  median,
  type Round,
  round,
  type Server,
  startInetd,
  stop,
  table,
  workspace,
} from './measure.ts'

const CLIENTS = 8
const START_TRIES = 100
const CAT_PORT = 17_008
/** Debian's inetds, kept in the foreground. */
const PEERS = [
  { name: 'openbsd-inetd', path: '/usr/sbin/inetd', flag: '-i' },
  { name: 'inetutils-inetd', path: '/usr/sbin/inetutils-inetd', flag: '-d' },
]

interface Contestant {
  readonly name: string
  readonly inetd: string
  readonly service: string
  readonly server: Server
}

const echo = protocol('echo', systemClock)

export async function run(): Promise<void> {
  const running: (Server & { readonly inetd: string; readonly host: string })[] = []
  const begin = async (inetd: string, start: (file: string) => Promise<ChildProcess> | ChildProcess) => {
    // Each has an address of its own, since not every inetd accepts a port number for an internal service.
    const host = `127.0.0.${running.length + 2}`
    const file = join(workspace(), `${inetd}.conf`)
    const lines = [
      `${host}:echo stream tcp nowait.1000000 root internal`,
      `${host}:${CAT_PORT} stream tcp nowait.1000000 root /bin/cat cat`,
    ]
    writeFileSync(file, `${lines.join('\n')}\n`)
    running.push({ inetd, host, port: CAT_PORT, process: await start(file) })
    for (const port of [echo.port, CAT_PORT]) await untilAnswered({ address: host, port })
  }
  if (process.getuid?.() !== 0) throw new Error('Cannot bench inetd: only root may bind port 7')
  try {
    await begin('roundelay', startInetd)
    for (const { name, path, flag } of PEERS.filter(({ path }) => existsSync(path)))
      await begin(name, file => spawn(path, [flag, file], { stdio: 'ignore' }))
    if (running.length === 1) process.stderr.write('Only ours is measured: openbsd-inetd is not installed.\n')
    const contestants = ['internal echo', '/bin/cat'].flatMap((service, i) =>
      running.map(({ inetd, ...server }): Contestant => {
        const port = i === 0 ? echo.port : server.port
        return { name: `${inetd}, ${service}`, inetd, service, server: { ...server, port } }
      }),
    )
    const measure = ({ server }: Contestant) =>
      round(server, { transport: 'tcp', newConnection: true, connections: CLIENTS })
    process.stdout.write(`${report(await alternate(contestants, measure))}\n`)
  } finally {
    await Promise.all(running.map(stop))
  }
}

async function untilAnswered(target: SocketAddress): Promise<void> {
  for (let i = 0; i < START_TRIES; i++) {
    if ((await probe({ kind: 'tcp', ...target }, 1000)).ok) return
    await sleep(100)
  }
  throw new Error(`No server answers on ${formatAddress(target)}`)
}

function report(results: ReadonlyMap<Contestant, readonly Round[]>): string {
  const rows = [...results].map(([{ inetd, service }, rounds]) => {
    const ours = [...results].find(([one]) => one.service === service)?.[1] ?? []
    const ratio = (pick: (round: Round) => number) =>
      inetd === 'roundelay' ? '' : (median(ours, pick) / median(rounds, pick)).toFixed(2)
    return [
      service,
      inetd,
      count(median(rounds, ({ rate }) => rate)),
      count(median(rounds, ({ p50 }) => p50)),
      count(median(rounds, ({ cpuMicros }) => cpuMicros)),
      ratio(({ rate }) => rate),
      ratio(({ cpuMicros }) => cpuMicros),
    ]
  })
  const head = [
    'service',
    'server',
    'connections/s',
    'p50 µs',
    'CPU µs/connection',
    'our rate : its',
    'our CPU : its',
  ]
  return table(head, rows)
}
