/** The whole program as users run it: the answers follow the replicas. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import { test } from 'node:test'
import { addresses, DNS, NAME, startDns, startFarm } from './support/farm.ts'
import { freePort } from './support/ports.ts'
import { until } from './support/until.ts'

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
  const dns = await startDns(t, await freePort(DNS), [
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
    await until(`${counts} connections are known`, async () => (await known()).join() === counts.join())
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

test('a farm that follows another DNS server keeps the last good answer while that server is down', async t => {
  const leaderPort = await freePort(DNS)
  const startLeader = async (...of: string[]) => {
    const leader = await startDns(t, leaderPort, ['--service', `echo=static:${of}`, '--check', 'none'])
    await leader.process.line('service ready')
    return leader
  }
  const leader = await startLeader(...addresses)
  const source = `dns:${NAME}@${DNS}:${leaderPort}/50ms`
  const args = ['--service', `echo=${source}`, '--check', 'none']
  const follower = await startDns(t, await freePort(DNS), args)
  await follower.process.line('service ready')
  const up = () => follower.metric(/^roundelay_source_up\{service="echo.roundelay.test"\} (\d)$/m)
  const failures = () =>
    follower.metric(/^roundelay_source_failures_total\{service="echo.roundelay.test"\} (\d+)$/m)
  assert.deepEqual((await follower.answer()).sort(), [...addresses])
  assert.deepEqual([await up(), await failures()], ['1', undefined])

  process.kill(leader.process.pid, 'SIGTERM')
  assert.deepEqual(await leader.process.ended, { code: 0, signal: null })
  const line = await follower.process.line('source failed: the last good answer stays in use')
  assert.deepEqual([line.level, line.service], ['warn', NAME])
  assert.deepEqual((await follower.answer()).sort(), [...addresses])
  assert.deepEqual([await up(), await failures()], ['0', '1'])

  await startLeader(addresses[1])
  await follower.process.line('source recovered')
  await follower.until(answer => answer.join() === addresses[1])
  assert.deepEqual([await up(), await failures()], ['1', '1'])
})
