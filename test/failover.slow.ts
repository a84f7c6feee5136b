/** A rolling restart with the full drain of each replica. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Transport } from '../src/address.ts'
import { openEcho } from '../src/client/echo.ts'
import { addresses, startFarm } from './support/farm.ts'

test('a rolling restart of every replica costs no client a single echo', async t => {
  const { port, startReplica, replicas, dns } = await startFarm(t)
  const stop = new AbortController()
  t.after(() => stop.abort())
  const failures: string[] = []
  let echoes = 0

  /** Looks up the name and echoes, over UDP and TCP in turn, until the signal aborts. */
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

/** A resolver's cache: it uses each answer for the whole TTL, and its addresses in turn. */
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
