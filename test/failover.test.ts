/** The whole program, as users run it: replicas come and go, and the answers follow. */
import assert from 'node:assert/strict'
import { Resolver } from 'node:dns/promises'
import { once } from 'node:events'
import { connect } from 'node:net'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Transport } from '../src/address.ts'
import { openEcho } from '../src/client/echo.ts'
import { commonPort } from './common-port.ts'
import { type Running, start } from './process.ts'

const NAME = 'echo.roundelay.test'
const addresses = ['127.0.3.1', '127.0.3.2', '127.0.3.3'] as const
const DNS = '127.0.3.53'

/** `roundelay dns` on the given port, and questions to it. */
async function startDns(t: TestContext, port: number, args: readonly string[]) {
  const at = ['--listen', `${DNS}:${port}`, '--admin', `${DNS}:0`, '--drain', '0', '--grace', '1s']
  const process = start(t, ['dns', ...at, ...args])
  const { admin } = await process.line('dns server listens')
  const resolver = new Resolver()
  resolver.setServers([`${DNS}:${port}`])
  const answer = () => resolver.resolve4(NAME)
  return {
    process,
    answer,
    /** Questions of other types and names, which have cursors of their own or none. */
    askOthers: () => Promise.all([resolver.resolveTxt(NAME), resolver.resolveSrv(`_echo._udp.${NAME}`)]),
    answerWithTtl: () => resolver.resolve4(NAME, { ttl: true }),
    /** Asks until the answer fits; resolves with the milliseconds that this took. */
    async until(fits: (answer: string[]) => boolean): Promise<number> {
      const begun = performance.now()
      while (!fits(await answer())) await sleep(5)
      return Math.round(performance.now() - begun)
    },
    state: async () => (await fetch(`http://${admin}/state`)).json() as Promise<State>,
    metric: async (line: RegExp) => line.exec(await (await fetch(`http://${admin}/metrics`)).text())?.[1],
  }
}

interface State {
  readonly services: readonly {
    readonly endpoints: readonly { readonly address: string; readonly activeConnections: number }[]
  }[]
}

/** Three replicas, and a DNS server that checks them as `up` does. */
async function startFarm(t: TestContext, args: readonly string[] = []) {
  const [port, adminPort] = [await commonPort(...addresses), await commonPort(...addresses)]
  const startReplica = async (address: string): Promise<Running> => {
    const at = ['--listen', `${address}:${port}`, '--admin', `${address}:${adminPort}`]
    const replica = start(t, ['echo', ...at, '--drain', '3s'])
    await replica.line('echo replica ready')
    return replica
  }
  const replicas = await Promise.all(addresses.map(startReplica))
  const checks = ['--check', `udp:${port}`, '--check', `http:${adminPort}/readyz`]
  const pace = ['--check-interval', '400ms', '--check-timeout', '2s', '--ttl', '1']
  const source = ['--service', `echo=static:${addresses}`]
  const dns = await startDns(t, await commonPort(DNS), [...source, ...checks, ...pace, ...args])
  await dns.process.line('service ready')
  return { port, startReplica, replicas, dns }
}

test('a replica that is killed, and one that is stopped, leave the answer and come back to it', async t => {
  const { startReplica, replicas, dns } = await startFarm(t)
  const [killed, stopped, left] = addresses
  assert.deepEqual((await dns.answer()).sort(), [...addresses])

  process.kill(replicas[0]!.pid, 'SIGKILL')
  const killedMs = await dns.until(answer => !answer.includes(killed))
  process.kill(replicas[1]!.pid, 'SIGSTOP')
  const stoppedMs = await dns.until(answer => !answer.includes(stopped))
  assert.deepEqual(await dns.answer(), [left])

  process.kill(replicas[1]!.pid, 'SIGCONT')
  const continuedMs = await dns.until(answer => answer.includes(stopped))
  assert.deepEqual((await dns.answer()).sort(), [stopped, left])
  const restarted = await startReplica(killed)
  const restartedMs = await dns.until(answer => answer.includes(killed))
  assert.deepEqual((await dns.answer()).sort(), [...addresses])
  t.diagnostic(
    `time-out 2 s, fall 2: out of the answer ${killedMs} ms after SIGKILL, and after SIGSTOP in ` +
      `${stoppedMs} ms; back after SIGCONT in ${continuedMs} ms, after a restart in ${restartedMs} ms`,
  )

  for (const { pid } of replicas.slice(1)) process.kill(pid, 'SIGKILL')
  await dns.until(answer => answer.join() === killed)
  process.kill(restarted.pid, 'SIGKILL')
  // No replica is healthy: the service fails open.
  await dns.until(answer => answer.length === addresses.length)
})

test('weighted shares are exact over each full period, whatever else is asked', async t => {
  const dns = await startDns(t, await commonPort(DNS), [
    ...['--service', `echo=static:${addresses[0]}*5,${addresses[1]},${addresses[2]}*3`],
    ...['--check', 'none', '--policy', 'weighted'],
  ])
  await dns.process.line('service ready')
  const firsts: string[] = []
  for (let i = 0; i < 27; i++) {
    firsts.push((await dns.answer())[0]!)
    if (i % 2) await dns.askOthers()
  }
  for (let from = 0; from + 9 <= firsts.length; from++) {
    const period = firsts.slice(from, from + 9)
    const shares = addresses.map(address => period.filter(first => first === address).length)
    assert.deepEqual(shares, [5, 1, 3])
  }
})

test('least-loaded puts the replica with the fewest open connections first', async t => {
  const { port, dns } = await startFarm(t, ['--policy', 'least-loaded'])
  const open = new Map(addresses.map(address => [address, [] as ReturnType<typeof connect>[]]))
  const load = async (...counts: number[]) => {
    for (const [i, address] of addresses.entries()) {
      const sockets = open.get(address) ?? []
      while (sockets.length > counts[i]!) sockets.pop()?.destroy()
      while (sockets.length < counts[i]!) {
        const socket = connect(port, address)
        sockets.push(socket)
        await once(socket, 'connect')
      }
    }
    const known = async () => (await dns.state()).services[0]!.endpoints.map(e => e.activeConnections)
    while ((await known()).join() !== counts.join()) await sleep(5)
  }
  t.after(() => [...open.values()].flat().forEach(socket => void socket.destroy()))
  const [a, b, c] = addresses
  const firstsOf = async (queries: number) => {
    const firsts: string[] = []
    while (firsts.length < queries) firsts.push((await dns.answer())[0]!)
    return addresses.map(address => firsts.filter(first => first === address).length)
  }
  await load(5, 2, 0)
  assert.deepEqual(await dns.answer(), [c, b, a])
  assert.deepEqual(await firstsOf(10), [0, 0, 10])
  await load(1, 2, 3)
  assert.deepEqual(await dns.answer(), [a, b, c])
  // Only the replicas with equally few connections take turns.
  await load(1, 1, 3)
  assert.deepEqual(await firstsOf(10), [5, 5, 0])
  await load(0, 0, 0)
  assert.deepEqual(await firstsOf(30), [10, 10, 10])
})

test('a farm that follows another DNS server keeps the last good answer while that one is gone', async t => {
  const leaderPort = await commonPort(DNS)
  const startLeader = async (...of: string[]) => {
    const leader = await startDns(t, leaderPort, ['--service', `echo=static:${of}`, '--check', 'none'])
    await leader.process.line('service ready')
    return leader
  }
  const leader = await startLeader(...addresses)
  const source = `dns:${NAME}@${DNS}:${leaderPort}/50ms`
  const args = ['--service', `echo=${source}`, '--check', 'none']
  const follower = await startDns(t, await commonPort(DNS), args)
  await follower.process.line('service ready')
  const up = () => follower.metric(/^roundelay_source_up\{service="echo.roundelay.test"\} (\d)$/m)
  const failures = () =>
    follower.metric(/^roundelay_source_failures_total\{service="echo.roundelay.test"\} (\d+)$/m)
  assert.deepEqual((await follower.answer()).sort(), [...addresses])
  assert.deepEqual([await up(), await failures()], ['1', undefined])

  process.kill(leader.process.pid, 'SIGTERM')
  assert.deepEqual(await leader.process.ended, { code: 0, signal: null })
  const line = await follower.process.line('source fails: the last good answer stays in use')
  assert.deepEqual([line.level, line.service], ['warn', NAME])
  assert.deepEqual((await follower.answer()).sort(), [...addresses])
  assert.deepEqual([await up(), await failures()], ['0', '1'])

  await startLeader(addresses[1])
  await follower.process.line('source is well again')
  await follower.until(answer => answer.join() === addresses[1])
  assert.deepEqual([await up(), await failures()], ['1', '1'])
})

test('a rolling restart of every replica costs no client a single echo', async t => {
  const { port, startReplica, replicas, dns } = await startFarm(t)
  const stop = new AbortController()
  t.after(() => stop.abort())
  const failures: string[] = []
  let echoes = 0

  /** Looks up and echoes, over UDP and TCP in turn, until `stop` aborts. */
  const client = async (name: string, lookUp: () => Promise<string>) => {
    for (let i = 0; !stop.signal.aborted; i++) {
      const transport: Transport = i % 2 ? 'tcp' : 'udp'
      let address = '?'
      try {
        address = await lookUp()
        await echoOnce(transport, address, port)
        echoes++
      } catch (error) {
        failures.push(`${name} ${transport} ${address}: ${(error as Error).message}`)
      }
      await sleep(2)
    }
  }
  const clients = [
    client('uncached', async () => (await dns.answer())[0]!),
    client('cached', cached(dns.answerWithTtl)),
  ]

  for (const [i, address] of addresses.entries()) {
    process.kill(replicas[i]!.pid, 'SIGTERM')
    const begun = performance.now()
    await dns.until(answer => !answer.includes(address))
    t.diagnostic(`${address} left the answer ${Math.round(performance.now() - begun)} ms after SIGTERM`)
    assert.deepEqual(await replicas[i]!.ended, { code: 0, signal: null })
    await startReplica(address)
    await dns.until(answer => answer.includes(address))
  }
  stop.abort()
  await Promise.all(clients)
  t.diagnostic(`${echoes} echoes, ${failures.length} failed`)
  assert.deepEqual(failures, [])
  assert.ok(echoes > 100)
})

/** Works as a resolver's cache: each answer is used for all of its TTL, each of its addresses in turn. */
function cached(ask: () => Promise<{ address: string; ttl: number }[]>): () => Promise<string> {
  let answer: string[] = []
  let expires = 0
  let uses = 0
  return async () => {
    if (performance.now() >= expires) {
      const records = await ask()
      answer = records.map(({ address }) => address)
      expires = performance.now() + records[0]!.ttl * 1000
    }
    return answer[uses++ % answer.length]!
  }
}

async function echoOnce(transport: Transport, address: string, port: number): Promise<void> {
  const limit = AbortSignal.timeout(10_000)
  const payload = Buffer.from(`over ${transport} to ${address}`)
  const session = await openEcho(transport, { address, port }, limit)
  try {
    assert.deepEqual(await session.exchange(payload, limit), payload)
  } finally {
    session.close()
  }
}
