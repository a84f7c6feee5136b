/** Runs the command line as a user does, for tests. Ends only what it started, by pid. */
import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import type { TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'

export const cli = fileURLToPath(new URL('../src/cli.ts', import.meta.url))

/** A log line of ours. */
export type Line = { readonly msg: string; readonly level: string } & Readonly<Record<string, unknown>>

export interface Running {
  readonly process: ChildProcess
  readonly pid: number
  readonly lines: readonly Line[]
  /** Resolves with the first log line, past or future, that fits; rejects when the process ends without one. */
  line(fits: string | ((line: Line) => boolean)): Promise<Line>
  /** Resolves when the process has ended. */
  ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
  stderr(): string
}

/**
 * Starts a server verb; it is killed when the test ends. `shell` is run by sh(1) first, and the verb takes the place of
 * the shell.
 */
export function start(
  t: TestContext,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
  shell?: string,
): Running {
  const [command, ...commandArgs] = [
    ...(shell === undefined ? [] : ['sh', '-c', `${shell}; exec "$0" "$@"`]),
    process.execPath,
    cli,
    ...args,
  ]
  const child = spawn(command!, commandArgs, {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  })
  const lines: Line[] = []
  const waiting = new Set<() => void>()
  let rest = ''
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', text => {
    stderr += text
  })
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    const parts = (rest + text).split('\n')
    rest = parts.pop() ?? ''
    for (const part of parts)
      lines.push(part.startsWith('{') ? JSON.parse(part) : { msg: part, level: 'none' })
    for (const look of waiting) look()
  })
  let over = false
  const ended = once(child, 'close').then(([code, signal]) => {
    over = true
    for (const look of waiting) look()
    return { code, signal }
  })
  t.after(async () => {
    if (!over) child.kill('SIGKILL')
    await ended
  })
  return {
    process: child,
    pid: child.pid as number,
    lines,
    ended,
    stderr: () => stderr,
    line(fits) {
      const matches = typeof fits === 'string' ? (line: Line) => line.msg.includes(fits) : fits
      return new Promise((resolve, reject) => {
        const look = () => {
          const found = lines.find(matches)
          if (!found && !over) return
          waiting.delete(look)
          if (found) resolve(found)
          else reject(new Error(`ended without the line ${fits}: ${stderr}${JSON.stringify(lines)}`))
        }
        waiting.add(look)
        look()
      })
    },
  }
}

/** Runs a verb to its end. */
export function run(
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise(resolve => {
    execFile(process.execPath, [cli, ...args], { env: { ...process.env, ...env } }, (error, stdout, stderr) =>
      resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
    )
  })
}

/** Whether a program is on the PATH; for tests that skip by name without it. */
export const has = (tool: string): boolean => spawnSync('sh', ['-c', `command -v ${tool}`]).status === 0

/** The port of `127.0.0.1:5300`. */
export const portOf = (address: unknown): number => Number(/:(\d+)$/.exec(String(address))?.[1])
