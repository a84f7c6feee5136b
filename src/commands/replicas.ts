/** The replicas that `up` starts. Each is a process that ends with this one; none of them is restarted. */
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
import { nodeArguments, programUrl } from '../program.ts'

const cli = fileURLToPath(programUrl('../cli', import.meta.url))
const START_TIMEOUT_MS = 60_000
const START_POLL_MS = 50
const STOP_TIMEOUT_MS = 1000

export interface ReplicaAddresses {
  readonly listen: SocketAddress
  readonly admin: SocketAddress
}

export interface Replica extends ReplicaAddresses {
  readonly process: ChildProcess
  /** How it ended; undefined while it runs. */
  ended: string | undefined
}

/** The replica's standard output goes to `onLine`, line by line, or else to our own. */
function startReplica(
  addresses: ReplicaAddresses,
  logLevel: string,
  onLine: ((line: string) => void) | undefined,
): Replica {
  const args = [...echoArgs(addresses), '--name', addresses.listen.address, '--log-level', logLevel, '--tied']
  // This pipe is never written. The kernel closes it when we end, even by SIGKILL: then the replica ends.
  const child = spawn(process.execPath, [...nodeArguments, cli, ...args], {
    stdio: ['pipe', onLine ? 'pipe' : 'inherit', 'inherit'],
    env: {
      ...compileCache(),
      // The environment twins of flags are meant for `up`; a replica only gets the flags above.
      ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('ROUNDELAY_'))),
    },
  })
  const replica: Replica = { ...addresses, process: child, ended: undefined }
  if (child.stdout && onLine) createInterface(child.stdout).on('line', onLine)
  child.stdin?.on('error', () => {})
  child.once('exit', (code, signal) => {
    replica.ended = signal ?? `exit code ${code}`
  })
  return replica
}

/**
 * Resolves when all are ready. Only a few start at a time: of two hundred that start together, none is ready
 * before a minute has passed.
 */
export async function startReplicas(
  all: readonly ReplicaAddresses[],
  logLevel: string,
  onLine: ((line: string) => void) | undefined,
): Promise<Replica[]> {
  const replicas: Replica[] = []
  const left = all.entries()
  const startSome = async () => {
    for (const [i, addresses] of left) {
      const replica = startReplica(addresses, logLevel, onLine)
      replicas[i] = replica
      await waitUntilReady(replica)
    }
  }
  await Promise.all(Array.from({ length: 2 * availableParallelism() }, startSome))
  return replicas
}

/** Rejects when the replica ends instead or is not ready within a minute. */
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

/** Resolves when the process has ended. */
export async function stopReplica({ process, ended }: Replica): Promise<void> {
  if (ended) return
  const exit = once(process, 'exit')
  process.stdin?.end()
  const late = setTimeout(() => process.kill('SIGKILL'), STOP_TIMEOUT_MS)
  await exit
  clearTimeout(late)
}

const echoArgs = ({ listen, admin }: ReplicaAddresses): string[] => [
  'echo',
  '--listen',
  formatAddress(listen),
  '--admin',
  formatAddress(admin),
]

/** `node src/cli.ts` as a person in the current directory must type it to run this same Node. */
export function selfCommand(): string {
  // npm puts a link there, which is shorter to read and to type than its target.
  const link = join(dirname(cli), '../node_modules/.bin/node')
  const node =
    existsSync(link) && realpathSync(link) === realpathSync(process.execPath) ? link : process.execPath
  return [node, cli].map(path => relative('', path)).join(' ')
}

export const startCommand = (addresses: ReplicaAddresses): string =>
  `${selfCommand()} ${echoArgs(addresses).join(' ')}`
