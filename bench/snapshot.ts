/** The time of the main thread for one endpoint that changes: its health, the Snapshot, the zone. */
import type { ProbeResult, ProbeTarget } from '../src/client/probe.ts'
import { Authority } from '../src/dns/authority.ts'
import { policies } from '../src/dns/rotation.ts'
import { endpoint } from '../src/endpoints/endpoint.ts'
import { startPool } from '../src/endpoints/pool.ts'
import { VirtualClock } from '../test/support/virtual-clock.ts'
import { median, table } from './measure.ts'

const SIZES = [1000, 5000] as const
const WARM_UP_ROUNDS = 5
const ROUNDS = 5
const CHANGES = 10
const SERVICE = 'echo.roundelay.test'
const INTERVAL_MS = 1000

/** Of one change. */
interface Milliseconds {
  readonly total: number
  readonly pool: number
}

export async function run(): Promise<void> {
  const farms = await Promise.all(SIZES.map(startFarm))
  const results = farms.map(({ change, close }, i) => ({
    size: SIZES[i],
    change,
    close,
    rounds: [] as Milliseconds[],
  }))
  for (let round = 0; round < WARM_UP_ROUNDS + ROUNDS; round++)
    for (const { change, rounds } of results) {
      const changes: Milliseconds[] = []
      while (changes.length < CHANGES) changes.push(await change())
      const mean = (pick: (of: Milliseconds) => number) =>
        changes.reduce((sum, of) => sum + pick(of), 0) / CHANGES
      if (round >= WARM_UP_ROUNDS)
        rounds.push({ total: mean(({ total }) => total), pool: mean(({ pool }) => pool) })
    }
  const totalOf = (rounds: readonly Milliseconds[]) => median(rounds, ({ total }) => total)
  const rows = results.map(({ size, rounds }) => [
    String(size),
    totalOf(rounds).toFixed(2),
    Math.min(...rounds.map(({ total }) => total)).toFixed(2),
    Math.max(...rounds.map(({ total }) => total)).toFixed(2),
    median(rounds, ({ pool }) => pool).toFixed(2),
    (totalOf(rounds) / totalOf(results[0]?.rounds ?? [])).toFixed(2),
  ])
  // biome-ignore format: as the table shows them
  const head = ['endpoints', 'ms per change', 'least', 'most', 'of it in the pool', `: ${SIZES[0]} endpoints`]
  process.stdout.write(`${table(head, rows)}\n`)
  for (const { close } of results) await close()
}

/**
 * A pool that feeds an Authority, in virtual time. After a first pass, an endpoint's check is answered by
 * `change`.
 */
async function startFarm(size: number) {
  const clock = new VirtualClock()
  const endpoints = Array.from({ length: size }, (_, i) => endpoint(`10.0.${i >> 8}.${i & 255}`))
  const authority = new Authority(
    {
      apex: 'roundelay.test',
      ttlSeconds: 1,
      nsAddresses: ['127.0.0.1'],
      port: 7007,
      policy: policies[0]!,
      services: [SERVICE],
      maxAnswers: Number.POSITIVE_INFINITY,
      serverId: 'bench',
      version: '0',
      clock,
      random: Math.random,
    },
    { failed() {} },
  )
  const answers = new Map<string, (result: ProbeResult) => void>()
  const seen = new Set<string>()
  const passed: ProbeResult = { ok: true, detail: 'echoed 16 bytes' }
  const failed: ProbeResult = { ok: false, detail: 'no answer within 500 ms', draining: false }
  const probe = async ({ address }: ProbeTarget) => {
    if (seen.size < seen.add(address).size) return passed
    return new Promise<ProbeResult>(resolve => answers.set(address, resolve))
  }
  let snapshots = 0
  let authorityMs = 0
  const pool = startPool(
    {
      service: SERVICE,
      source: async ({ publish }) => publish(endpoints),
      checks: [{ kind: 'udp', port: 7007 }],
      ...{ intervalMs: INTERVAL_MS, timeoutMs: 500, rise: 1, fall: 1, fail: 'open', watchLoad: false },
      ...{ clock, random: () => 0, probe },
    },
    {
      snapshot(snapshot) {
        const startedMs = threadMs()
        authority.update(snapshot)
        authorityMs += threadMs() - startedMs
        snapshots++
      },
      state() {},
      checked() {},
      source() {},
      note() {},
    },
  )
  // The first results; after them, each check waits for its answer.
  await clock.advance(INTERVAL_MS)
  let changes = 0
  return {
    /** Lets one endpoint after the other fail, and then pass again. */
    async change(): Promise<Milliseconds> {
      const { address } = endpoints[(changes >> 1) % size]!
      const result = changes++ % 2 === 0 ? failed : passed
      const expected = snapshots + 1
      authorityMs = 0
      const startedMs = threadMs()
      answers.get(address)?.(result)
      await clock.advance(10)
      const total = threadMs() - startedMs
      if (snapshots !== expected) throw new Error(`a change made ${snapshots - expected + 1} Snapshots`)
      await clock.advance(INTERVAL_MS)
      return { total, pool: total - authorityMs }
    },
    async close() {
      const closed = pool.close()
      for (const answer of answers.values()) answer(passed)
      await closed
    },
  }
}

/** The CPU time of this thread: what else runs on the machine does not count. */
function threadMs(): number {
  const { user, system } = process.threadCpuUsage()
  return (user + system) / 1000
}
