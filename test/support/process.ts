/** Runs the command line as a user does. Ends only the processes that it started, by their pids. */
import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import type { TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { compileCacheFolder } from '../../src/compile-cache.ts'

// Children inherit it: without it, each compiles the TypeScript that the others have compiled.
const cacheFolder = compileCacheFolder()
if (cacheFolder !== undefined) process.env.NODE_COMPILE_CACHE ??= cacheFolder

export const cli = fileURLToPath(new URL('../../src/cli.ts', import.meta.url))

/** A line of our log. A line that is not JSON has only its text, as `msg`. */
export type Line = { readonly msg: string; readonly level: string } & Readonly<Record<string, unknown>>

export interface Lines {
  /** The lines so far. */
  readonly lines: readonly Line[]
  /**
   * Resolves with the first line, past or future, that fits. Rejects when the process ends without one, or when none
   * has come after 30 s.
   */
  line(fits: string | ((line: Line) => boolean)): Promise<Line>
}

export interface Running extends Lines {
  readonly process: ChildProcess
  readonly pid: number
  /** Resolves when the process has ended and its output is closed. */
  readonly ended: Promise<Ended>
  stderr(): string
}

export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

export interface Output {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

const LINE_DEADLINE_MS = 30_000

/** Reads the standard output of a process line by line. */
export function readLines(child: ChildProcess, explain: () => string = () => ''): Lines {
  const lines: Line[] = []
  const waiting = new Set<() => void>()
  let rest = ''
  let over = false
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    const parts = (rest + text).split('\n')
    rest = parts.pop() ?? ''
    for (const part of parts)
      lines.push(part.startsWith('{') ? JSON.parse(part) : { msg: part, level: 'none' })
    for (const look of waiting) look()
  })
  child.once('close', () => {
    over = true
    for (const look of waiting) look()
  })
  return {
    lines,
    line(fits) {
      const matches = typeof fits === 'string' ? (line: Line) => line.msg.includes(fits) : fits
      return new Promise((resolve, reject) => {
        const fail = (why: string) =>
          reject(new Error(`${why} without the line ${fits}: ${explain()}${JSON.stringify(lines)}`))
        const look = () => {
          const found = lines.find(matches)
          if (!found && !over) return
          waiting.delete(look)
          clearTimeout(timer)
          if (found) resolve(found)
          else fail('the process ended')
        }
        const timer = setTimeout(() => {
          waiting.delete(look)
          fail(`${LINE_DEADLINE_MS} ms passed`)
        }, LINE_DEADLINE_MS)
        waiting.add(look)
        look()
      })
    },
  }
}

/**
 * Starts a server verb, which is killed when the test ends. `shell` is run by sh(1) first, as `ulimit -n 120` is; the
 * verb then takes the place of the shell.
 */
export function start(
  t: TestContext,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
  shell?: string,
): Running {
  const command = [process.execPath, cli, ...args]
  const [file, ...rest] = shell === undefined ? command : ['sh', '-c', `${shell}; exec "$0" "$@"`, ...command]
  const child = spawn(file!, rest, {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  })
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', text => {
    stderr += text
  })
  let over = false
  const ended = once(child, 'close').then(([code, signal]) => {
    over = true
    return { code, signal }
  })
  t.after(async () => {
    if (!over) child.kill('SIGKILL')
    await ended
  })
  return {
    ...readLines(child, () => stderr),
    process: child,
    pid: child.pid as number,
    ended,
    stderr: () => stderr,
  }
}

/** Runs a verb to its end, in a thread: it costs a quarter of the CPU time of a process. */
export async function run(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Output> {
  const thread = new Worker(cli, {
    argv: [...args],
    env: { ...process.env, ...env },
    stdout: true,
    stderr: true,
  })
  const [stdout, stderr, [code]] = await Promise.all([
    text(thread.stdout),
    text(thread.stderr),
    once(thread, 'exit'),
  ])
  return { code, stdout, stderr }
}

/** Does the same in a process, for tests of what only a process has: options of Node, limits, pipes. */
export function runProcess(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Output> {
  return new Promise(resolve => {
    execFile(process.execPath, [cli, ...args], { env: { ...process.env, ...env } }, (error, stdout, stderr) =>
      resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
    )
  })
}

/** Whether a program is on the PATH; for tests that are skipped without it. */
export const has = (tool: string): boolean => spawnSync('sh', ['-c', `command -v ${tool}`]).status === 0

/** The port of `127.0.0.1:5300`. */
export const portOf = (address: unknown): number => Number(/:(\d+)$/.exec(String(address))?.[1])
