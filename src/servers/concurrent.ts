/**
 * The concurrent model (TLPI 60.3, is_echo_sv): the parent accepts, and makes a process for each connection, reaped when it
 * ends. Node cannot fork, so each child is a new Node that is given the connection as descriptor 0, as inetd does it:
 * a lesson in what a process costs, with a cap. Compare with prefork.ts, which pays that price in advance.
 */
import type { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { bindAll, openNothing, untilDeadline } from '../bind.ts'
import type { Protocol } from '../protocols.ts'
import { type Child, startChild } from './children.ts'
import { Listeners } from './listeners.ts'
import { type EchoCounters, type EchoService, noCounts, type ServerOptions, sparingly } from './service.ts'

const FORK_RETRY_MS = 250

type Options = Pick<ServerOptions, 'listen' | 'idleMs' | 'maxChildren' | 'say'>

export async function concurrent(protocol: Protocol, options: Options): Promise<EchoService> {
  const { idleMs, say } = options
  const orders = {
    protocol: { module: protocol.module, name: protocol.name },
    idleMs,
    listeners: 0,
    maxRequests: 0,
  }
  const children = new Set<Child>()
  const tally = { forks: 0, failures: 0 }
  let closing = false
  let whenIdle = () => {}

  const refused = sparingly(err => say('error', 'cannot make a process: clients wait', { err }))
  /** The client waits, unread, until there is a process for it. */
  async function fork(connection: Socket): Promise<Child | undefined> {
    while (!closing && !connection.destroyed) {
      const child = startChild(orders, connection, [], refused)
      if (child) return child
      await sleep(FORK_RETRY_MS)
    }
    return undefined
  }

  async function serve(connection: Socket): Promise<void> {
    connection.on('error', () => connection.destroy())
    const child = await fork(connection)
    // The child has its own descriptor of it.
    connection.destroy()
    if (child) {
      tally.forks++
      counters.connections++
      children.add(child)
      const failure = await child.ended
      children.delete(child)
      if (failure && !closing) {
        tally.failures++
        say('warn', 'child died: its client is cut off', { pid: child.pid, reason: failure })
      }
    }
    listeners.left()
    if (listeners.active === 0) whenIdle()
  }

  const listeners = new Listeners(options.maxChildren, connection => void serve(connection), say)
  const counters: EchoCounters = {
    ...noCounts(),
    get active() {
      return listeners.active
    },
    get waiting() {
      return listeners.waiting
    },
  }
  const bound = await bindAll(options.listen, listeners.open, openNothing)

  return {
    name: protocol.name,
    addresses: bound.map(({ address }) => address),
    counters,
    children: () => ({
      scoreboard: [...children].map(({ pid }) => ({ pid, state: 'busy', served: 1 })),
      ...tally,
    }),
    async close(deadline) {
      closing = true
      listeners.close()
      const idle = new Promise<void>(resolve => {
        whenIdle = resolve
        if (listeners.active === 0) resolve()
      })
      await untilDeadline(idle, deadline, () => {
        for (const child of children) child.process.kill('SIGKILL')
      })
    },
  }
}
