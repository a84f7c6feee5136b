/**
 * The concurrent model (TLPI 60.3, is_echo_sv): the parent accepts, starts a process for each connection, and
 * reaps it when it ends. Node cannot fork, so each child is a new Node that receives the connection as
 * descriptor 0, as behind inetd. That shows what a process costs, so there is a cap. Compare with prefork.ts,
 * which pays that price in advance.
 */
import type { Socket } from 'node:net'
import { pause } from '../clock.ts'
import { untilDeadline } from '../lifecycle.ts'
import { bindAll, openNone } from '../net/bind.ts'
import { Listeners } from '../net/listeners.ts'
import type { Protocol } from '../protocols.ts'
import { sparingly } from '../say.ts'
import { type Child, startChild } from './children.ts'
import { type ChildState, countersOf, type EchoService, type ServerOptions } from './service.ts'

const FORK_RETRY_MS = 250

type Options = Pick<ServerOptions, 'listen' | 'idleMs' | 'maxChildren' | 'clock' | 'say'>

export async function concurrent(protocol: Protocol, options: Options): Promise<EchoService> {
  const { idleMs, clock, say } = options
  const orders = { protocol: protocol.name, idleMs, listeners: 0, maxRequests: 0 }
  /** Those that are alive. */
  const children = new Map<Child, ChildState>()
  const tally = { forks: 0, failures: 0 }
  let closing = false
  let whenIdle = () => {}

  const refused = sparingly(err => say('error', 'cannot start a process: clients wait', { err }))
  const sayDied = sparingly(details => say('warn', 'child died: its client is cut off', details))
  const sayDiedEarly = sparingly(details =>
    say('warn', 'child died during its start: its client waits', details),
  )

  /**
   * Reads nothing from the client, which waits until a process has taken it over. Resolves when the client
   * has left.
   */
  async function fork(connection: Socket): Promise<void> {
    for (; !closing && !connection.destroyed; await pause(clock, FORK_RETRY_MS)) {
      const child = startChild(orders, connection, [], clock, refused)
      if (!child) continue
      tally.forks++
      children.set(child, 'starting')
      child.started.then(() => {
        children.set(child, 'busy')
        counters.connections++
        // The child has its own descriptor.
        connection.destroy()
      })
      const reason = await child.ended
      const early = children.get(child) === 'starting'
      children.delete(child)
      if (!reason && !early) return
      tally.failures++
      const say = early ? sayDiedEarly : sayDied
      if (!closing) say({ child: child.pid, reason })
      if (!early) return
    }
  }

  async function serve(connection: Socket): Promise<void> {
    connection.on('error', () => connection.destroy())
    await fork(connection)
    connection.destroy()
    listeners.left()
    if (listeners.active === 0) whenIdle()
  }

  const listeners = new Listeners(options.maxChildren, connection => void serve(connection), say)
  const counters = countersOf(listeners)
  const bound = await bindAll(options.listen, listeners.open, openNone)

  return {
    name: protocol.name,
    addresses: bound.map(({ address }) => address),
    counters,
    children: () => ({
      scoreboard: [...children].map(([{ pid }, state]) => ({ pid, state, served: 1 })),
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
        for (const child of children.keys()) child.process.kill('SIGKILL')
      })
    },
  }
}
