/** The Docker command line, for tests that run containers. */
import { execFile, spawnSync } from 'node:child_process'
import type { TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import { until } from '../support/until.ts'

export const root = fileURLToPath(new URL('../..', import.meta.url))

const works = (...args: string[]) => spawnSync('docker', args, { timeout: 10_000 }).status === 0
/** Options of a test that runs containers. */
export const needsEngine = {
  skip: works('version') && works('compose', 'version') ? false : 'needs a Docker engine with Compose',
}

/** Resolves with standard output; rejects, with what it complained of, when the exit code is not 0. */
export function docker(...args: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile('docker', args, { cwd: root, maxBuffer: 1 << 28 }, (error, stdout, stderr) =>
      error ? reject(new Error(`docker ${args.join(' ')}: ${stdout}${stderr}`)) : resolve(stdout.trim()),
    )
  })
}

export const inspect = async <T>(what: string): Promise<T> => JSON.parse(await docker('inspect', what))[0]

/** Containers start and are checked in seconds. */
export const becomesTrue = (what: string, holds: () => Promise<boolean>) => until(what, holds, 60_000)

/** What these tests read of a container. */
export interface Container {
  readonly State: {
    readonly Running: boolean
    readonly ExitCode: number
    readonly StartedAt: string
    readonly Health: { readonly Status: string; readonly Log: readonly { readonly Output: string }[] }
  }
  readonly HostConfig: {
    readonly ReadonlyRootfs: boolean
    readonly CapDrop: readonly string[]
    readonly SecurityOpt: readonly string[]
    readonly Memory: number
    readonly PidsLimit: number
  }
  readonly Config: { readonly User: string; readonly StopTimeout: number }
  readonly NetworkSettings: {
    readonly Networks: Readonly<
      Record<string, { readonly IPAddress: string; readonly GlobalIPv6Address: string }>
    >
  }
}

/** A container of its own for one test, hardened as in Compose and without a network unless asked for. */
export async function startContainer(t: TestContext, image: string, args: string[], options: string[] = []) {
  const hardened = ['--read-only', '--cap-drop=ALL', '--security-opt=no-new-privileges']
  const network = options.some(option => option.startsWith('--network=')) ? [] : ['--network=none']
  const id = await docker('run', '--detach', ...hardened, ...network, ...options, image, ...args)
  t.after(() => docker('rm', '--force', id))
  const logs = () => docker('logs', id)
  const state = async () => (await inspect<Container>(id)).State
  return {
    id,
    logs,
    /** Resolves when its log holds the text. */
    said: (text: string) =>
      becomesTrue(`the log contains ${text}`, async () => (await logs()).includes(text)),
    becomes: (health: string) =>
      becomesTrue(`the health is ${health}`, async () => (await state()).Health.Status === health),
    exitCode: async () => Number(await docker('wait', id)),
    /** Runs Node in it. */
    node: (script: string) => docker('exec', id, 'node', '-e', script),
  }
}
