/** The replicas that `up` starts: each a process of its own, tied to this one, none of them started again. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, realpathSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { formatAddress, type SocketAddress } from '../address.ts'
import { httpGet } from '../client/http.ts'
import { compileCache } from '../compile-cache.ts'
import { programUrl } from '../program.ts'

const cli = fileURLToPath(programUrl('../cli', import.meta.url))
const START_TIMEOUT_MS = 60_000
const START_POLL_MS = 50
const STOP_TIMEOUT_MS = 1000

export interface Place {
  readonly listen: SocketAddress
  readonly admin: SocketAddress
}

export interface Replica extends Place {
  readonly process: ChildProcess
  /** How it ended; undefined while it runs. */
  ended: string | undefined
}

/** Where standard output goes: to ours, or by lines to `onLine`. */
function startReplica(place: Place, logLevel: string, onLine: ((line: string) => void) | undefined): Replica {
  const args = [...echoArgs(place), '--name', place.listen.address, '--log-level', logLevel, '--tied']
  // The pipe is never written: its end, which the kernel brings about even after SIGKILL, ends the replica.
  const child = spawn(process.execPath, [cli, ...args], {
    stdio: ['pipe', onLine ? 'pipe' : 'inherit', 'inherit'],
    env: {
      ...compileCache(),
      // Only `up` heeds the twins of its flags; a replica has what it is given.
      ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('ROUNDELAY_'))),
    },
  })
  const replica: Replica = { ...place, process: child, ended: undefined }
  if (child.stdout && onLine) createInterface(child.stdout).on('line', onLine)
  child.stdin?.on('error', () => {})
  child.once('exit', (code, signal) => {
    replica.ended = signal ?? `exit code ${code}`
  })
  return replica
}

/**
 * Resolves when all are ready. A few start at a time: two hundred together would take a minute to give the first
 * sign of life.
 */
export async function startReplicas(
  places: readonly Place[],
  logLevel: string,
  onLine: ((line: string) => void) | undefined,
): Promise<Replica[]> {
  const replicas: Replica[] = []
  const left = places.entries()
  const startSome = async () => {
    for (const [i, place] of left) {
      replicas[i] = startReplica(place, logLevel, onLine)
      await waitUntilReady(replicas[i])
    }
  }
  await Promise.all(Array.from({ length: 2 * availableParallelism() }, startSome))
  return replicas
}

/** Rejects when the replica ends instead, or takes longer than a minute. */
async function waitUntilReady(replica: Replica): Promise<void> {
  const limit = AbortSignal.timeout(START_TIMEOUT_MS)
  while (!replica.ended && !limit.aborted) {
    const { statusCode } = await httpGet(replica.admin, '/readyz', limit).catch(() => ({ statusCode: 0 }))
    if (statusCode === 200) return
    await sleep(START_POLL_MS)
  }
  throw new Error(
    `Replica ${formatAddress(replica.listen)} did not start: ${replica.ended ?? 'it is not ready'}`,
  )
}

/** Resolves when the process is gone. */
export async function stopReplica({ process, ended }: Replica): Promise<void> {
  if (ended) return
  const exit = once(process, 'exit')
  process.stdin?.end()
  const late = setTimeout(() => process.kill('SIGKILL'), STOP_TIMEOUT_MS)
  await exit
  clearTimeout(late)
}

const echoArgs = ({ listen, admin }: Place): string[] => [
  'echo',
  '--listen',
  formatAddress(listen),
  '--admin',
  formatAddress(admin),
]

/** `node src/cli.ts` as a person in this directory would have to type it to get this very Node. */
export function selfCommand(): string {
  // What npm puts there is a link: shorter to read and to type than where it leads to.
  const link = join(dirname(cli), '../node_modules/.bin/node')
  const node =
    existsSync(link) && realpathSync(link) === realpathSync(process.execPath) ? link : process.execPath
  return [node, cli].map(path => relative('', path)).join(' ')
}

export const startCommand = (place: Place): string => `${selfCommand()} ${echoArgs(place).join(' ')}`
