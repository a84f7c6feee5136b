/** `roundelay echo` as a process, seen from outside: its log, its admin server, its processes. */
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { get } from 'node:http'
import { text } from 'node:stream/consumers'
import type { TestContext } from 'node:test'
import type { ModelName } from '../../src/servers/models.ts'
import type { Children, EchoCounters } from '../../src/servers/service.ts'
import { type Line, portOf, type Running, start } from '../support/process.ts'
import { until } from '../support/until.ts'
import { childrenOf, isChildOfModel } from './proc.ts'

interface State extends Partial<Children> {
  readonly model: ModelName
  readonly protocol: string
  readonly transports: readonly string[]
  readonly counters: EchoCounters
}

export interface Replica extends Pick<Running, 'pid' | 'lines' | 'line'> {
  readonly port: number
  /** Resolves when it has ended, whether or not its children have. */
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
  readonly ready: Line
  /** A document of the admin server, over a connection of its own. */
  admin(path: string): Promise<{ status: number; body: string }>
  state(): Promise<State>
  kill(signal: NodeJS.Signals): void
  /** The processes that it has started and that have not ended. */
  children(): number[]
}

/** Resolves when it is ready; a prefork server when its processes are. */
export async function startReplica(
  t: TestContext,
  model: ModelName,
  args: readonly string[] = [],
  { descriptors }: { descriptors?: number } = {},
): Promise<Replica> {
  const all = ['echo', '--model', model, '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', ...args]
  const known = new Set<number>()
  let parent: ChildProcess | undefined
  // Before what `start` does at the end of a test: it waits until nobody holds the pipe of standard error any
  // more.
  t.after(() => {
    for (const { pid } of parent?.pid ? childrenOf(parent.pid) : []) known.add(pid)
    parent?.kill('SIGKILL')
    for (const pid of known) if (isChildOfModel(pid)) process.kill(pid, 'SIGKILL')
  })
  const running = start(t, all, {}, descriptors === undefined ? undefined : `ulimit -n ${descriptors}`)
  parent = running.process
  const exited = once(running.process, 'exit').then(([code, signal]) => ({ code, signal }))
  const ready = await running.line('echo replica ready')
  const port = portOf((ready.listen as string[])[0])
  const adminPort = portOf(ready.admin)
  const replica: Replica = {
    ...running,
    exited,
    port,
    ready,
    admin: path =>
      new Promise((resolve, reject) => {
        get({ host: '127.0.0.1', port: adminPort, path, agent: false }, async response =>
          resolve({ status: response.statusCode ?? 0, body: await text(response) }),
        ).once('error', reject)
      }),
    state: async () => JSON.parse((await replica.admin('/state')).body),
    kill: signal => void process.kill(running.pid, signal),
    children() {
      const pids = childrenOf(running.pid).flatMap(({ pid, state }) => (state === 'Z' ? [] : pid))
      for (const pid of pids) known.add(pid)
      return pids
    },
  }
  await until('no process is starting', async () => {
    const { scoreboard = [] } = await replica.state()
    return scoreboard.every(({ state }) => state !== 'starting')
  })
  return replica
}
