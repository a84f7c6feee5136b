/** Two servers on different ports, which one forged datagram starts to talk to each other. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventLoop } from '../../src/servers/event-loop.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { echo } from '../support/echo.ts'
import { freePorts } from '../support/ports.ts'
import { start } from '../support/process.ts'

const options = { timeout: 60_000, skip: (await whyUnavailable()) ?? false }
const ADMIN = ['--admin', '127.0.0.1:0']

/** The other server: how it is started on a port. */
const others: Readonly<Record<string, (t: TestContext, port: number) => string[]>> = {
  'a replica': (_t, port) => ['echo', '--listen', `127.0.0.1:${port}`],
  'a replica of the iterative model': (_t, port) => [
    'echo',
    '--model',
    'iterative',
    '--listen',
    `127.0.0.1:${port}`,
  ],
  'a service of inetd': (t, port) => {
    const folder = mkdtempSync(join(tmpdir(), 'roundelay-loops-'))
    t.after(() => rmSync(folder, { recursive: true }))
    const file = join(folder, 'inetd.conf')
    writeFileSync(file, `127.0.0.1:${port} dgram udp wait root internal echo\n`)
    return ['inetd', file]
  },
}

for (const [name, args] of Object.entries(others))
  test(`loops between a replica and ${name} end`, options, async t => {
    const [own = 0, port = 0] = await freePorts(2)
    const other = start(t, [...args(t, port), ...ADMIN])
    await other.line(({ msg }) => msg.endsWith('ready'))
    for (const forged of [1, 2, 100]) {
      // What the loops before have sent is more than a second ago.
      await sleep(1000)
      // The other server answers only after ours has taken over the port that the datagrams come from.
      other.process.kill('SIGSTOP')
      const forger = createSocket('udp4')
      forger.bind({ address: '127.0.0.1', port: own, exclusive: true })
      await once(forger, 'listening')
      for (let i = 0; i < forged; i++)
        await new Promise(resolve => forger.send(randomBytes(i), port, '127.0.0.1', resolve))
      await once(forger.close(), 'close')
      const listen = [{ address: '127.0.0.1', port: own }]
      const server = await eventLoop(echo, { listen, maxConnections: 9, idleMs: 9e4, say: () => {} })
      other.process.kill('SIGCONT')
      try {
        const { counters } = server
        const came = () => counters.datagrams + counters.datagramsLoopDropped
        const deadline = AbortSignal.timeout(10_000)
        for (let before = -1; before < 1 || came() !== before; ) {
          assert.ok(!deadline.aborted, `${forged} datagrams still loop after ${came()}`)
          before = came()
          await sleep(250)
        }
        t.diagnostic(`${forged} forged: ended after ${came()} datagrams`)
      } finally {
        await server.close(AbortSignal.abort())
      }
    }
  })
