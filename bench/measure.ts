/** What benches share: servers as processes, their cost according to /proc, medians, tables. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync } from 'node:fs'
import { cpus, release, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { runLoad } from '../src/client/load.ts'
import { type LoadOptions, totals } from '../src/client/tally.ts'

const cli = fileURLToPath(new URL('../src/cli.ts', import.meta.url))
/** USER_HZ, proc(5): the unit of times in /proc/PID/stat. */
const TICKS_PER_SECOND = 100
const ROUNDS = 5
const ROUND_MS = 2000

let made: string | undefined
/** A directory for this run alone. */
export const workspace = (): string => {
  made ??= mkdtempSync(join(tmpdir(), 'roundelay-bench-'))
  return made
}

export const machine = (): string =>
  `${cpus().length} cores of ${cpus()[0]!.model.trim()}, Linux ${release()}, Node ${process.version}; medians of ${ROUNDS} alternating rounds`

/** The C program compiled, or undefined where there is no compiler. */
export function compile(source: string): string | undefined {
  const program = join(workspace(), 'peer')
  const path = fileURLToPath(new URL(source, import.meta.url))
  const { status, stderr } = spawnSync('cc', ['-O2', '-o', program, path], { encoding: 'utf8' })
  if (status === 0) return program
  process.stderr.write(`without the peers in C: ${stderr ?? 'there is no cc'}\n`)
  return undefined
}

export interface Server {
  /** 127.0.0.1 if undefined. */
  readonly host?: string
  readonly process: ChildProcess
  readonly port: number
  readonly admin?: number
}

/** Our replica; resolves when it logs that it is ready. */
export async function startOurs(args: readonly string[]): Promise<Server> {
  const { child, readiness } = await start([...args, '--listen', '127.0.0.1:0'])
  return { process: child, port: portOf(readiness.listen[0]), admin: portOf(readiness.admin) }
}

export const startInetd = async (file: string): Promise<ChildProcess> => (await start(['inetd', file])).child

/** `readiness` is the log line of readiness. */
async function start(args: readonly string[]) {
  const places = ['--admin', '127.0.0.1:0', '--drain', '0']
  const child = spawn(process.execPath, [cli, ...args, ...places], { stdio: ['ignore', 'pipe', 'inherit'] })
  for await (const line of createInterface(child.stdout)) {
    const readiness = JSON.parse(line)
    if (readiness.admin) return { child, readiness }
  }
  throw new Error(`${args.join(' ')} ended before it was ready`)
}

/** A program that prints its port. */
export async function startPeer(program: string, args: readonly string[]): Promise<Server> {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const [line] = await once(createInterface(child.stdout), 'line')
  return { process: child, port: Number(line) }
}

export interface Round {
  /** Operations a second. */
  readonly rate: number
  /** In microseconds, of an operation. */
  readonly p50: number
  readonly p99: number
  /** CPU time of the server and its descendants, in microseconds for each operation. */
  readonly cpuMicros: number
  /** In MiB, half-way. */
  readonly memory: number
}

/** One round in closed loop. Throws when an operation was lost or wrong: then nothing was measured. */
export async function round(
  { process: { pid = 0 }, port, host = '127.0.0.1' }: Server,
  how: Pick<LoadOptions, 'transport' | 'newConnection' | 'connections'>,
): Promise<Round> {
  const before = cpuSeconds(pid)
  const running = runLoad(
    {
      ...how,
      host,
      port,
      outstanding: 1,
      size: 32,
      rate: 0,
      durationMs: ROUND_MS,
      timeoutMs: 5000,
      resolve: 'once',
      seed: 1,
    },
    new AbortController().signal,
  )
  await sleep(ROUND_MS / 2)
  const memory = memoryMib(pid)
  const result = await running
  const { done, lost, wrong } = totals(result)
  if (lost + wrong > 0) throw new Error(`${lost} operations lost, ${wrong} wrong: nothing was measured`)
  return {
    rate: (1000 * done) / result.elapsedMs,
    p50: result.latency.percentile(50) / 1000,
    p99: result.latency.percentile(99) / 1000,
    cpuMicros: (1e6 * (cpuSeconds(pid) - before)) / done,
    memory,
  }
}

/**
 * Runs every contestant once a round, in turn, so that noise hits them all. The first round is not counted.
 */
export async function alternate<C extends { readonly name: string }, R>(
  contestants: readonly C[],
  measure: (contestant: C) => Promise<R>,
): Promise<Map<C, R[]>> {
  const results = new Map(contestants.map(contestant => [contestant, [] as R[]]))
  for (let i = 0; i <= ROUNDS; i++)
    for (const [contestant, measured] of results) {
      if (process.stderr.isTTY) process.stderr.write(`\rround ${i} of ${ROUNDS}: ${contestant.name}\x1b[K`)
      const one = await measure(contestant)
      if (i > 0) measured.push(one)
    }
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
  return results
}

/** The median of one figure. */
export function median<R>(rounds: readonly R[], pick: (round: R) => number): number {
  const sorted = rounds.map(pick).toSorted((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN
}

export const count = (value: number): string =>
  value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString('en-US')

export async function stop({ process: child }: Pick<Server, 'process'>): Promise<void> {
  const ended = once(child, 'exit')
  child.kill('SIGTERM')
  await ended
}

const portOf = (address: string) => Number(/:(\d+)$/.exec(address)?.[1])

/**
 * CPU time in seconds of a process and all its descendants, including those that have ended and were reaped.
 */
export function cpuSeconds(pid: number): number {
  return tree(pid).reduce((sum, one) => sum + (statOf(one)?.cpuTicks ?? 0), 0) / TICKS_PER_SECOND
}

/**
 * Memory in MiB of a process and its descendants; what several share is counted once (proportional set size).
 */
export function memoryMib(pid: number): number {
  const kib = tree(pid).map(one => Number(/^Pss:\s+(\d+)/m.exec(read(`/proc/${one}/smaps_rollup`))?.[1] ?? 0))
  return kib.reduce((a, b) => a + b, 0) / 1024
}

function tree(root: number): number[] {
  const childrenOf = new Map<number, number[]>()
  for (const entry of readdirSync('/proc')) {
    const stat = /^\d+$/.test(entry) ? statOf(Number(entry)) : undefined
    if (stat) childrenOf.set(stat.parent, [...(childrenOf.get(stat.parent) ?? []), Number(entry)])
  }
  const all = [root]
  for (const pid of all) all.push(...(childrenOf.get(pid) ?? []))
  return all
}

function statOf(pid: number): { parent: number; cpuTicks: number } | undefined {
  // The name before it may contain anything, also parentheses.
  const fields = read(`/proc/${pid}/stat`)
    .replace(/^.*\) /s, '')
    .split(' ')
  if (fields.length < 16) return undefined
  // From the third field on: utime, stime, cutime and cstime are numbers 14 to 17.
  return { parent: Number(fields[1]), cpuTicks: fields.slice(11, 15).reduce((a, b) => a + Number(b), 0) }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    // The process has ended.
    return ''
  }
}

/** A table in Markdown, padded so that it can be read as it is. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((_, i) => Math.max(...[head, ...rows].map(row => row[i]!.length)))
  const pad = (text: string, i: number) => (i < 2 ? text.padEnd(widths[i]!) : text.padStart(widths[i]!))
  const line = (cells: readonly string[]) => `| ${cells.map(pad).join(' | ')} |`
  const rule = `|${widths.map((width, i) => (i < 2 ? '-'.repeat(width + 2) : `${'-'.repeat(width + 1)}:`)).join('|')}|`
  return [line(head), rule, ...rows.map(line)].join('\n')
}
