/**
 * The internet superserver (TLPI 60.5, inetd(8)): one process watches the sockets of all services and starts a server only
 * when a client arrives. Here are the programs and their limits, in inetd-service.ts the sockets. Compare with
 * concurrent.ts, which is this for one service that it brings itself.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { EventEmitter } from 'node:events'
import { readdirSync } from 'node:fs'
import type { Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { compileCache } from '../compile-cache.ts'
import { type Service, untilDeadline } from '../lifecycle.ts'
import { descriptorRoom } from '../net/listeners.ts'
import { programUrl } from '../program.ts'
import type { Protocol } from '../protocols.ts'
import { type Say, sparingly } from '../say.ts'
import { close, closeOnExec, setBlocking } from '../sys/libc.ts'
import { canSpawn, ended, spawnOn } from '../sys/spawn.ts'
import { Watcher } from '../sys/watcher.ts'
import type { Entry } from './conf.ts'
import { CANNOT_RUN, type ExecOrders, type MuxOrders, type MuxService, ORDERS } from './exec.ts'
import { RunningService } from './service.ts'
import type { Account } from './users.ts'

/** An entry that can be run. */
export interface Configured {
  readonly entry: Entry
  /** Whom its program runs as; undefined: as whoever runs inetd. */
  readonly account: Account | undefined
}

/** Time, so that tests need not wait for it. */
export interface Clock {
  /** Milliseconds, monotonic. */
  now(): number
  /** Calls `task` once after `ms`, unless the function that it returns is called before. */
  after(ms: number, task: () => void): () => void
}

export interface InetdOptions {
  /** The internal services. */
  readonly protocols: readonly Protocol[]
  /** Programs at a time, over all services; then clients wait. */
  readonly maxChildren: number
  /** Programs at a time for one address of clients, and starts a minute; Infinity for no limit. Over it a client is closed. */
  readonly maxPerIp: number
  readonly ratePerIp: number
  /** Of connections to internal services. */
  readonly idleMs: number
  readonly maxConnections: number
  readonly clock: Clock
  readonly say: Say
}

/** One line of the table of services. Counts are since start. */
export interface ServiceRow {
  /** As in `echo/tcp`. */
  readonly service: string
  readonly sockets: string
  /** `waiting` for its program to end; `off` until it is tried again. */
  readonly state: 'listening' | 'waiting' | 'off'
  readonly started: number
  readonly running: number
  readonly refused: number
  readonly failed: number
}

const MINUTE_MS = 60_000
const REAP_MS = 100
/** What is over after a while; the rest is wrong with the program. */
const SHORTAGES = new Set(['EAGAIN', 'ENOMEM', 'EMFILE', 'ENFILE'])
const MAX_REMEMBERED_IPS = 100_000
const shim = fileURLToPath(programUrl('exec', import.meta.url))

export class Inetd implements Service {
  readonly name = 'inetd'
  readonly options: InetdOptions
  readonly watcher = new Watcher()
  /** Of all services: none answers another's datagrams, or they could go on for ever. */
  readonly udpPorts = new Set<number>()
  /** Descriptors for the connections of one internal service. */
  descriptorShare = 1
  readonly #services = new Map<string, RunningService>()
  #closing = false
  readonly #children = new Set<Program>()
  readonly #canSpawn = canSpawn()
  /** Programs now, and starts in this minute, by the client's address. */
  readonly #runningFor = new Map<string, number>()
  readonly #startedFor = new Map<string, number>()
  #startedSince = 0
  #whenEmpty = () => {}
  readonly #sayFull: (details: object) => void
  readonly #sayRefused: (details: object) => void

  constructor(options: InetdOptions) {
    this.options = options
    const { say } = options
    // What we were started with may not be close-on-exec, and is nothing to programs.
    for (const fd of readdirSync('/proc/self/fd').map(Number)) if (fd > 2) closeOnExec(fd)
    this.#sayFull = sparingly(details => say('warn', 'process cap reached: further clients wait', details))
    this.#sayRefused = sparingly(details => say('error', 'cannot start a program', details))
  }

  get closing(): boolean {
    return this.#closing
  }

  get full(): boolean {
    return this.#children.size >= this.options.maxChildren
  }

  rows(): ServiceRow[] {
    return [...this.#services.values()].map(service => service.row())
  }

  /**
   * Makes the services those that are `wanted`. Who is unchanged keeps its sockets, and so does one of which only what it
   * starts has changed; programs that run live on. A socket that cannot be had is said and tried again later.
   */
  async apply(wanted: readonly Configured[]): Promise<void> {
    await this.watcher.ready
    if (this.#closing) return
    const internal = wanted.filter(({ entry }) => entry.program.kind === 'internal').length
    // One share is for the clients of programs, which have theirs only until the program has begun.
    this.descriptorShare = Math.max(1, Math.floor(descriptorRoom() / (internal + 1)))
    this.udpPorts.clear()
    for (const { entry } of wanted)
      if (entry.socketType === 'dgram') for (const { port } of entry.addresses) this.udpPorts.add(port)
    const next = new Map(wanted.map(configured => [configured.entry.key, configured]))
    for (const [key, service] of this.#services) {
      const configured = next.get(key)
      if (configured && service.canBecome(configured)) continue
      this.#services.delete(key)
      // Its sockets are closed when this returns; connections to an internal service may go on.
      void service.close(new AbortController().signal)
    }
    for (const [key, configured] of next) {
      if (this.#closing) return
      const service = this.#services.get(key)
      if (service) {
        service.configured = configured
        await service.opening
        // As with GNU's inetd: who mended what was wrong does not have to wait.
        if (service.off) await service.open()
        continue
      }
      const made = new RunningService(this, configured)
      this.#services.set(key, made)
      await made.open()
    }
  }

  /** Starts what asks a client of tcpmux for the service that it wants: those that there are now. */
  startMux(client: Socket, env: NodeJS.ProcessEnv, ip: string | undefined, fate: Fate): boolean {
    const services = this.#muxServices()
    return this.#adopt('tcpmux', () => spawnShim({ services, env }, client), ip, fate)
  }

  #muxServices(): MuxService[] {
    return [...this.#services.values()].flatMap(({ configured: { entry, account } }) =>
      entry.tcpmux && entry.program.kind === 'exec'
        ? [{ ...entry.tcpmux, path: entry.program.path, argv: entry.program.argv, account }]
        : [],
    )
  }

  /** Whether another program may be started for this client; if so, it is counted. */
  admit(ip: string | undefined): boolean {
    if (ip === undefined) return true
    const { clock, maxPerIp, ratePerIp } = this.options
    if (clock.now() - this.#startedSince >= MINUTE_MS || this.#startedFor.size > MAX_REMEMBERED_IPS) {
      this.#startedFor.clear()
      this.#startedSince = clock.now()
    }
    const [running, started] = [this.#runningFor.get(ip) ?? 0, this.#startedFor.get(ip) ?? 0]
    if (running >= maxPerIp || started >= ratePerIp) return false
    if (ratePerIp !== Infinity) this.#startedFor.set(ip, started + 1)
    return true
  }

  /** Starts a program; false where that cannot be done. */
  start(
    { path, argv, account, env }: ExecOrders,
    stdio: Socket | number,
    ip: string | undefined,
    fate: Fate,
  ): boolean {
    const fd = typeof stdio === 'number' ? stdio : descriptorOf(stdio)
    if (!account && this.#canSpawn && fd !== undefined)
      return this.#adopt(path, () => this.#spawnOn(fd, path, argv, env), ip, fate)
    if (!account?.supplementary) {
      const user = account && { uid: account.uid, gid: account.gid }
      const options = { ...common(stdio), argv0: argv[0], env, ...user }
      return this.#adopt(path, () => spawn(path, argv.slice(1), options), ip, fate)
    }
    const ended = (failure: string | undefined) => {
      if (failure === exitCode(CANNOT_RUN)) this.#sayRefused({ program: path, err: failure })
      fate.ended(failure)
    }
    return this.#adopt(path, () => spawnShim({ path, argv, account, env }, stdio), ip, { ...fate, ended })
  }

  /** Several times as fast as Node's spawn, for programs that run as ourselves. */
  #spawnOn(fd: number, path: string, argv: readonly string[], env: NodeJS.ProcessEnv): Program {
    // Node accepts non-blocking.
    setBlocking(fd)
    const started = spawnOn(fd, path, argv, env)
    const program = Object.assign(new EventEmitter(), {
      pid: started.pid,
      kill: (signal: NodeJS.Signals) => process.kill(started.pid, signal),
    })
    const look = () => {
      const end = ended(started)
      if (end) program.emit('exit', end.code, end.signal)
      else setTimeout(look, REAP_MS)
    }
    // Without a descriptor for the pidfd it is looked after from time to time.
    if (started.pidfd < 0) setTimeout(look, REAP_MS)
    else
      this.watcher.watch(started.pidfd, () => {
        close(started.pidfd)
        look()
      })
    return program
  }

  #adopt(program: string, make: () => Program, ip: string | undefined, { ended, refused }: Fate): boolean {
    let child: Program
    try {
      child = make()
    } catch (err) {
      // Of what may be wrong spawn throws some (ENOTDIR, ETXTBSY) and emits the rest (ENOENT, EAGAIN).
      this.#sayRefused({ program, err })
      setImmediate(() => refused?.(SHORTAGES.has((err as NodeJS.ErrnoException).code ?? '')))
      return false
    }
    if (child.pid === undefined) {
      child.once('error', (err: NodeJS.ErrnoException) => {
        this.#sayRefused({ program, err })
        refused?.(SHORTAGES.has(err.code ?? ''))
      })
      return false
    }
    this.#children.add(child)
    if (ip !== undefined) this.#runningFor.set(ip, (this.#runningFor.get(ip) ?? 0) + 1)
    if (this.full) {
      this.#sayFull({ cap: this.options.maxChildren })
      for (const service of this.#services.values()) service.pause()
    }
    child.once('exit', (code, signal) => {
      const wasFull = this.full
      this.#children.delete(child)
      if (ip !== undefined) this.#forgetOne(ip)
      ended(code === 0 ? undefined : signal ? `killed by ${signal}` : exitCode(code))
      if (wasFull) for (const service of this.#services.values()) service.resume()
      if (this.#children.size === 0) this.#whenEmpty()
    })
    return true
  }

  #forgetOne(ip: string): void {
    const left = (this.#runningFor.get(ip) ?? 1) - 1
    if (left > 0) this.#runningFor.set(ip, left)
    else this.#runningFor.delete(ip)
  }

  async close(deadline: AbortSignal): Promise<void> {
    this.#closing = true
    const services = [...this.#services.values()]
    this.#services.clear()
    const empty = new Promise<void>(resolve => {
      this.#whenEmpty = resolve
      if (this.#children.size === 0) resolve()
    })
    const internal = services.map(service => service.close(deadline))
    await untilDeadline(empty, deadline, () => {
      for (const child of this.#children) endIfOurs(child)
    })
    await Promise.all(internal)
    await this.watcher.close()
  }
}

/** A child process, however it was made. */
interface Program {
  /** Undefined where it could not be made: then comes an error. */
  readonly pid?: number | undefined
  kill(signal: NodeJS.Signals): unknown
  once(event: 'exit', listener: (code: number | null, signal: string | null) => void): unknown
  once(event: 'error', listener: (error: NodeJS.ErrnoException) => void): unknown
}

/** Node has no public name for it. */
const descriptorOf = (socket: Socket): number | undefined =>
  (socket as unknown as { readonly _handle: { readonly fd: number } | null })._handle?.fd

/** What is told of a program that was to be started. */
interface Fate {
  /** With what was wrong, if anything. */
  ended(failure: string | undefined): void
  /** It could not be started, for want of processes, memory or descriptors, or because of what it is. */
  refused?(shortage: boolean): void
}

/** One that has become somebody else is left to itself. */
function endIfOurs(child: Program): void {
  try {
    child.kill('SIGTERM')
  } catch {
    // EPERM.
  }
}

const exitCode = (code: number | null) => `exit code ${code}`

const common = (stdio: Socket | number) => ({
  // Nothing else: Node opens all that it opens close-on-exec.
  stdio: [stdio, stdio, stdio],
  // Ctrl-C at a terminal is for inetd alone.
  detached: true,
})

const spawnShim = (orders: ExecOrders | MuxOrders, stdio: Socket | number): ChildProcess =>
  spawn(process.execPath, [shim], {
    ...common(stdio),
    env: { ...compileCache(), ...process.env, [ORDERS]: JSON.stringify(orders) },
  })
