/** The book's server models, all in the same run, each next to the same model in C (peer.c). */
import { httpGet } from '../src/client/http.ts'
import type { LoadOptions } from '../src/client/tally.ts'
import { type ModelName, modelsForTransport } from '../src/servers/models.ts'
import {
  alternate,
  compile,
  count,
  median,
  type Round,
  round,
  type Server,
  startOurs,
  startPeer,
  stop,
  table,
} from './measure.ts'

/** Clients at a time, each with one request in flight: as many as a pool of processes may serve. */
const CLIENTS = 16
const POOL_SIZE = '20'
const POOL = ['--start', POOL_SIZE, '--min-spare', '2', '--max-spare', '24']

interface Workload {
  readonly name: string
  readonly models: readonly ModelName[]
  readonly load: Pick<LoadOptions, 'transport' | 'newConnection'>
}

const workloads: readonly Workload[] = [
  {
    name: 'UDP datagrams',
    models: modelsForTransport('udp'),
    load: { transport: 'udp', newConnection: false },
  },
  {
    name: 'TCP, connections kept',
    models: modelsForTransport('tcp'),
    load: { transport: 'tcp', newConnection: false },
  },
  {
    name: 'TCP, one for each request',
    models: modelsForTransport('tcp'),
    load: { transport: 'tcp', newConnection: true },
  },
]

interface Contestant {
  readonly name: string
  readonly workload: Workload
  readonly model: ModelName
  readonly inC: boolean
  readonly server: Server
}

type ModelRound = Round & { readonly forks: number }

export async function run(): Promise<void> {
  const peer = compile('peer.c')
  const contestants: Contestant[] = []
  try {
    for (const workload of workloads)
      for (const model of workload.models) {
        const args = ['echo', '--model', model, ...(model === 'prefork' ? POOL : [])]
        contestants.push({ name: model, workload, model, inC: false, server: await startOurs(args) })
        // The peer's event loop is TCP only: over UDP it would be its iterative server with one call more.
        if (peer && !(model === 'event-loop' && workload.load.transport === 'udp')) {
          const server = await startPeer(peer, [model, POOL_SIZE])
          contestants.push({ name: `${model}, in C`, workload, model, inC: true, server })
        }
      }
    const results = await alternate(contestants, measure)
    process.stdout.write(`${report(results)}\n`)
  } finally {
    await Promise.all(contestants.map(({ server }) => stop(server)))
  }
}

async function measure({ workload, server }: Contestant): Promise<ModelRound> {
  const before = await forksOf(server)
  const measured = await round(server, { ...workload.load, connections: CLIENTS })
  return { ...measured, forks: (await forksOf(server)) - before }
}

async function forksOf({ admin }: Server): Promise<number> {
  if (!admin) return 0
  const { body } = await httpGet({ address: '127.0.0.1', port: admin }, '/state', AbortSignal.timeout(5000))
  return JSON.parse(body).forks ?? 0
}

function report(results: ReadonlyMap<Contestant, readonly ModelRound[]>): string {
  const rows = [...results].map(([{ name, workload, model, inC }, rounds]) => {
    const twin = [...results].find(
      ([other]) => other.workload === workload && other.model === model && other.inC,
    )?.[1]
    const ratio = (pick: (round: Round) => number) =>
      inC || !twin ? '' : (median(rounds, pick) / median(twin, pick)).toFixed(2)
    return [
      workload.name,
      name,
      count(median(rounds, ({ rate }) => rate)),
      count(median(rounds, ({ p50 }) => p50)),
      count(median(rounds, ({ p99 }) => p99)),
      count(median(rounds, ({ cpuMicros }) => cpuMicros)),
      count(median(rounds, ({ memory }) => memory)),
      inC ? '' : count(median(rounds, ({ forks }) => forks)),
      ratio(({ rate }) => rate),
      ratio(({ cpuMicros }) => cpuMicros),
    ]
  })
  // biome-ignore format: as the table shows them
  const head = ['clients', 'server', 'operations/s', 'p50 µs', 'p99 µs', 'CPU µs/op', 'MiB', 'forks', 'rate : C', 'CPU : C']
  return table(head, rows)
}
