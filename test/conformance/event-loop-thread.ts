/** An event-loop server in a thread of its own, which a blocking handler may block. */
import { parentPort } from 'node:worker_threads'
import { eventLoop } from '../../src/servers/event-loop.ts'
import { gatedEcho } from './odd-protocols.ts'

const { addresses } = await eventLoop(gatedEcho, {
  listen: [{ address: '127.0.0.1', port: 0 }],
  idleMs: 60_000,
  maxConnections: 100,
  say: () => {},
})
parentPort?.postMessage(addresses[0])
