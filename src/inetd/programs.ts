/**
 * Starts the programs of all services and keeps count of them: how many run, and how many for each address of
 * clients. Knows nothing of sockets and services. Compare with concurrent.ts, which does this for one server
 * of its own.
 */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'
import type { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import type { Clock } from '../clock.ts'
import { compileCache } from '../compile-cache.ts'
import { untilDeadline } from '../lifecycle.ts'
import { nodeArguments, programUrl } from '../program.ts'
import { type Say, sparingly } from '../say.ts'
import { close, setBlocking } from '../sys/libc.ts'
import type { Spawner } from '../sys/spawn.ts'
import type { Watcher } from '../sys/watcher.ts'
import { type ExecOrders, type Failure, type MuxOrders, ORDERS, REPORT } from './exec.ts'

export interface ProgramLimits {
  /** Programs at a time, over all services. Beyond it clients wait. */
  readonly maxChildren: number
  /**
   * Programs at a time for one address of clients, and starts a minute; Infinity for no limit. Beyond it a
   * client is refused.
   */
  readonly maxPerIp: number
  readonly ratePerIp: number
}

interface ProgramsOptions {
  readonly limits: ProgramLimits
  /** For programs that run as the user of inetd. Without it, and for all others, Node's spawn is used. */
  readonly spawner: Spawner | undefined
  readonly watcher: Pick<Watcher, 'watch'>
  readonly clock: Clock
  readonly say: Say
  /** Called when the last free place is taken (true), and when one is free again (false). */
  readonly onFull: (full: boolean) => void
}

/** What becomes of a program. Either `ended` or `notStarted` is called, once. */
export interface ProgramEvents {
  /** Called before one of the two if the program cannot be run, with the system's reason. */
  cannotRun?(program: string, error: NodeJS.ErrnoException): void
  /** The program has ended. `failure` says what was wrong, if anything. */
  ended(failure: string | undefined): void
  /** The program could not be started. Transient: the system lacked processes, memory or descriptors. */
  notStarted?(transient: boolean): void
}

/**
 * Calls exactly one of its arguments, unless it throws. Returns a way to end the program, or undefined if
 * `onError` is going to be called.
 */
type Launch = (
  onExit: (code: number | null, signal: string | null) => void,
  onError: (error: NodeJS.ErrnoException) => void,
  onFailure: (failure: Failure) => void,
) => { end(): void } | undefined

const MINUTE_MS = 60_000
/** From one look to the next at a program whose end the watcher does not report. */
const REAP_MS = 100
/** Transient errors. Any other error means that the program cannot be run. */
const TRANSIENT_ERRORS = new Set(['EAGAIN', 'ENOMEM', 'EMFILE', 'ENFILE'])
const MAX_REMEMBERED_ADDRESSES = 100_000
const shim = fileURLToPath(programUrl('exec', import.meta.url))

export class Programs {
  readonly #options: ProgramsOptions
  readonly #running = new Set<{ end(): void }>()
  /** Programs that run, and starts in the present minute, by the client's address. */
  readonly #runningFor = new Map<string, number>()
  readonly #startedFor = new Map<string, number>()
  #minuteBegan = 0
  #whenEmpty = () => {}
  readonly #sayFull: (details: object) => void

  constructor(options: ProgramsOptions) {
    this.#options = options
    const { say } = options
    this.#sayFull = sparingly(details => say('warn', 'process cap reached: further clients wait', details))
  }

  get full(): boolean {
    return this.#running.size >= this.#options.limits.maxChildren
  }

  /**
   * Whether the limits of this address allow another program. If so, the start is counted. Unix clients have
   * no address.
   */
  admit(ip: string | undefined): boolean {
    if (ip === undefined) return true
    const { clock, limits } = this.#options
    if (clock.now() - this.#minuteBegan >= MINUTE_MS || this.#startedFor.size > MAX_REMEMBERED_ADDRESSES) {
      this.#startedFor.clear()
      this.#minuteBegan = clock.now()
    }
    const started = this.#startedFor.get(ip) ?? 0
    if ((this.#runningFor.get(ip) ?? 0) >= limits.maxPerIp || started >= limits.ratePerIp) return false
    if (limits.ratePerIp !== Infinity) this.#startedFor.set(ip, started + 1)
    return true
  }

  /** Starts a program with `stdio` as its descriptors 0, 1 and 2. Returns whether it was started. */
  start(orders: ExecOrders, stdio: Socket | number, ip: string | undefined, events: ProgramEvents): boolean {
    const { path, argv, account, env } = orders
    const { spawner } = this.#options
    const fd = typeof stdio === 'number' ? stdio : descriptorOf(stdio)
    if (!account && spawner && fd !== undefined)
      return this.#launch(path, this.#bySpawner(spawner, fd, orders), ip, events)
    if (!account?.supplementary) {
      const user = account && { uid: account.uid, gid: account.gid }
      const options = { ...onDescriptors(stdio), argv0: argv[0], env, ...user }
      return this.#launch(path, byNode(path, argv.slice(1), options), ip, events)
    }
    return this.#launch(path, byShim(orders, stdio), ip, events)
  }

  /** Starts the program that asks a client of tcpmux for the service that it wants. */
  startMultiplexer(
    orders: MuxOrders,
    client: Socket,
    ip: string | undefined,
    events: ProgramEvents,
  ): boolean {
    return this.#launch('tcpmux', byShim(orders, client), ip, events)
  }

  /** Several times as fast as Node's spawn. */
  #bySpawner(spawner: Spawner, fd: number, { path, argv, env }: ExecOrders): Launch {
    return onExit => {
      // Node makes the connections that it accepts non-blocking.
      setBlocking(fd)
      const { watcher, clock } = this.#options
      const started = spawner.spawn(fd, path, argv, env)
      const look = () => {
        const status = spawner.exitStatus(started)
        if (status) onExit(status.code, status.signal)
        else clock.after(REAP_MS, look)
      }
      if (started.pidfd < 0) clock.after(REAP_MS, look)
      else
        watcher.watch(started.pidfd, () => {
          close(started.pidfd)
          look()
        })
      return { end: () => void process.kill(started.pid, 'SIGTERM') }
    }
  }

  #launch(program: string, launch: Launch, ip: string | undefined, events: ProgramEvents): boolean {
    const failed = (err: NodeJS.ErrnoException) => {
      events.cannotRun?.(program, err)
      events.notStarted?.(TRANSIENT_ERRORS.has(err.code ?? ''))
    }
    let child: ReturnType<Launch>
    try {
      child = launch(
        (code, signal) => this.#ended(child, ip, code, signal, events),
        failed,
        ({ program, code, message }) =>
          events.cannotRun?.(program, Object.assign(new Error(message), code && { code })),
      )
    } catch (err) {
      // Node's spawn throws some errors (ENOTDIR, ETXTBSY) and emits the others (ENOENT, EAGAIN). The caller
      // sees one order.
      setImmediate(failed, err as NodeJS.ErrnoException)
      return false
    }
    if (!child) return false
    this.#running.add(child)
    if (ip !== undefined) this.#runningFor.set(ip, (this.#runningFor.get(ip) ?? 0) + 1)
    if (this.full) {
      this.#sayFull({ cap: this.#options.limits.maxChildren })
      this.#options.onFull(true)
    }
    return true
  }

  #ended(
    child: ReturnType<Launch>,
    ip: string | undefined,
    code: number | null,
    signal: string | null,
    events: ProgramEvents,
  ): void {
    const wasFull = this.full
    if (child) this.#running.delete(child)
    if (ip !== undefined) {
      const left = (this.#runningFor.get(ip) ?? 1) - 1
      if (left > 0) this.#runningFor.set(ip, left)
      else this.#runningFor.delete(ip)
    }
    events.ended(code === 0 ? undefined : signal ? `killed by ${signal}` : exitCode(code))
    if (wasFull) this.#options.onFull(false)
    if (this.#running.size === 0) this.#whenEmpty()
  }

  /** Resolves when no program runs; sends them SIGTERM when `deadline` aborts. */
  async close(deadline: AbortSignal): Promise<void> {
    const empty = new Promise<void>(resolve => {
      this.#whenEmpty = resolve
      if (this.#running.size === 0) resolve()
    })
    await untilDeadline(empty, deadline, () => {
      for (const child of this.#running)
        try {
          child.end()
        } catch {
          // We may not signal a program that has changed its uid (EPERM).
        }
    })
  }
}

const exitCode = (code: number | null) => `exit code ${code}`

/** Node has no public name for it. */
const descriptorOf = (socket: Socket): number | undefined =>
  (socket as unknown as { readonly _handle: { readonly fd: number } | null })._handle?.fd

const onDescriptors = (stdio: Socket | number) =>
  ({
    // The program gets no other descriptors: Node opens everything close-on-exec.
    stdio: [stdio, stdio, stdio],
    // Ctrl-C at a terminal is for inetd alone.
    detached: true,
  }) satisfies SpawnOptions

function byNode(path: string, args: readonly string[], options: SpawnOptions): Launch {
  return (onExit, onError) => {
    const child: ChildProcess = spawn(path, args, options)
    if (child.pid === undefined) {
      child.once('error', onError)
      return undefined
    }
    child.once('exit', onExit)
    return { end: () => void child.kill('SIGTERM') }
  }
}

/** Like `byNode`. The shim reports by itself if it cannot become the program. */
const byShim =
  (orders: ExecOrders | MuxOrders, stdio: Socket | number): Launch =>
  (onExit, onError, onFailure) => {
    const options = onDescriptors(stdio)
    const child = spawn(process.execPath, [...nodeArguments, shim], {
      ...options,
      stdio: [...options.stdio, 'pipe'],
      env: { ...compileCache(), ...process.env, [ORDERS]: JSON.stringify(orders) },
    })
    let report = ''
    const reports = child.stdio[REPORT] as Readable | null | undefined
    reports
      ?.on('error', () => {})
      .setEncoding('utf8')
      .on('data', text => {
        report += text
      })
    if (child.pid === undefined) {
      child.once('error', onError)
      return undefined
    }
    // Unlike `exit` this event comes when the report is complete.
    child.once('close', (code, signal) => {
      if (report) onFailure(JSON.parse(report))
      onExit(code, signal)
    })
    return { end: () => void child.kill('SIGTERM') }
  }
