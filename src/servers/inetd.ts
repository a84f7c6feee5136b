/**
 * The internet superserver (TLPI 60.5, inetd(8)): one process watches the sockets of all services and starts a server only
 * when a client arrives. Compare with concurrent.ts, which is this for one service that it brings itself.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { EventEmitter } from 'node:events'
import { lstatSync, readdirSync, unlinkSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { untilDeadline } from '../bind.ts'
import { compileCache } from '../compile-cache.ts'
import type { SocketAddress } from '../parse.ts'
import type { Protocol } from '../protocols.ts'
import { close, closeOnExec, setBlocking } from '../sys/libc.ts'
import { bindUdp, listenTcp, listenUnix } from '../sys/sockets.ts'
import { canSpawn, ended, spawnOn } from '../sys/spawn.ts'
import { Watcher } from '../sys/watcher.ts'
import { eventLoop } from './event-loop.ts'
import { CANNOT_RUN, type ExecOrders, type MuxOrders, type MuxService, ORDERS } from './exec.ts'
import { type Entry, sameEntry } from './inetd-conf.ts'
import { descriptorRoom, type Listener, pausable } from './listeners.ts'
import { type ServerOptions, type Service, sparingly } from './service.ts'
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
  readonly say: ServerOptions['say']
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
/** inetd(8): after "server failing (looping)". */
const OFF_MS = 10 * MINUTE_MS
/** After a socket that cannot be had: a program of an earlier inetd, or of an earlier entry, may hold it. */
const BIND_RETRY_MS = 10_000
const SPAWN_RETRY_MS = 1000
const REAP_MS = 100
/** What is over after a while; the rest is wrong with the program. */
const SHORTAGES = new Set(['EAGAIN', 'ENOMEM', 'EMFILE', 'ENFILE'])
const MAX_REMEMBERED_IPS = 100_000
const RECEIVE_BUFFER_OCTETS = 256 * 1024
const shim = fileURLToPath(new URL('exec.ts', import.meta.url))

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
        // As with GNU's inetd: who mended what was wrong does not have to wait.
        if (service.off) await service.open()
        continue
      }
      const made = new RunningService(this, configured)
      this.#services.set(key, made)
      await made.open()
    }
  }

  /** The services behind tcpmux, as they are now. */
  muxServices(): MuxService[] {
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
      return this.adopt(path, () => this.#spawnOn(fd, path, argv, env), ip, fate)
    if (!account?.supplementary) {
      const user = account && { uid: account.uid, gid: account.gid }
      const options = { ...common(stdio), argv0: argv[0], env, ...user }
      return this.adopt(path, () => spawn(path, argv.slice(1), options), ip, fate)
    }
    const ended = (failure: string | undefined) => {
      if (failure === exitCode(CANNOT_RUN)) this.#sayRefused({ program: path, err: failure })
      fate.ended(failure)
    }
    return this.adopt(path, () => spawnShim({ path, argv, account, env }, stdio), ip, { ...fate, ended })
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

  adopt(program: string, make: () => Program, ip: string | undefined, { ended, refused }: Fate): boolean {
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
      for (const child of this.#children) child.kill('SIGTERM')
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

/** A socket that is given to one program at a time. */
interface Handed {
  readonly fd: number
  readonly address: SocketAddress | undefined
  busy: boolean
}

/** A service and its sockets. Programs that it started outlive it. */
class RunningService {
  readonly #inetd: Inetd
  configured: Configured
  #state: 'opening' | 'listening' | 'off' | 'closed' = 'off'
  #internal: Service | undefined
  #listeners: Listener[] = []
  /** Of services that wait. */
  #handed: Handed[] = []
  #starts: number[] = []
  #cancelRetry = () => {}
  readonly #counts = { started: 0, running: 0, refused: 0, failed: 0 }

  constructor(inetd: Inetd, configured: Configured) {
    this.#inetd = inetd
    this.configured = configured
  }

  get #label(): string {
    const { service, protocol } = this.configured.entry
    return `${service}/${protocol}`
  }

  get off(): boolean {
    return this.#state === 'off'
  }

  get #closed(): boolean {
    return this.#state === 'closed'
  }

  row(): ServiceRow {
    const busy = this.#handed.some(({ busy }) => busy)
    const state = this.#state === 'listening' ? (busy ? 'waiting' : 'listening') : 'off'
    return { service: this.#label, sockets: this.configured.entry.key, state, ...this.#counts }
  }

  /** Whether its sockets will do for another entry with the same key. */
  canBecome({ entry }: Configured): boolean {
    const now = this.configured.entry
    if (sameEntry(now, entry)) return true
    const programs = now.program.kind === 'exec' && entry.program.kind === 'exec'
    return programs && now.wait === entry.wait && now.socketType === entry.socketType
  }

  /** Never rejects: what cannot be had is said, and tried again after a while. */
  async open(again = false): Promise<void> {
    this.#cancelRetry()
    this.#state = 'opening'
    try {
      await this.#open()
      if (this.#closed) return
      this.#state = 'listening'
      if (again) this.#inetd.options.say('info', `${this.#label}: listening again`, {})
      if (this.#inetd.full) this.pause()
    } catch (err) {
      if (this.#closed) return
      const { say } = this.#inetd.options
      if (!again) say('error', `${this.#label}: cannot listen, trying again every 10 seconds`, { err })
      await this.#switchOff(BIND_RETRY_MS)
    } finally {
      // Removed meanwhile.
      if (this.#closed) await this.#closeSockets(AbortSignal.abort())
    }
  }

  async #open(): Promise<void> {
    const { entry } = this.configured
    const { program } = entry
    if (entry.tcpmux) return
    if (program.kind === 'internal' && program.name !== 'tcpmux') {
      const protocol = this.#inetd.options.protocols.find(({ name }) => name === program.name)
      if (!protocol) throw new Error(`there is no internal service "${program.name}"`)
      const transports = [entry.socketType === 'stream' ? 'tcp' : 'udp'] as const
      const { options, udpPorts, descriptorShare } = this.#inetd
      this.#internal = await eventLoop(protocol, {
        listen: entry.addresses,
        transports,
        alsoBlocked: udpPorts,
        idleMs: options.idleMs,
        maxConnections: Math.min(options.maxConnections, descriptorShare),
        say: (level, message, details) => options.say(level, `${this.#label}: ${message}`, details),
      })
      return
    }
    if (entry.path !== undefined) removeSocket(entry.path)
    const places = entry.path === undefined ? entry.addresses : [undefined]
    for (const place of places) {
      // Each is ours before the next is tried, so that none is left behind when that fails.
      const { fd, address } = place ? this.#bind(place) : this.#bindUnix(entry.path ?? '')
      if (entry.wait) {
        const handed = { fd, address, busy: false }
        this.#handed.push(handed)
        this.#watch(handed)
      } else {
        const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, socket =>
          this.#arrived(socket),
        )
        this.#listeners.push(await pausable(fd, server))
      }
    }
  }

  #bind(wanted: SocketAddress) {
    const { socketType, wait } = this.configured.entry
    return socketType === 'dgram' ? bindUdp(wanted, RECEIVE_BUFFER_OCTETS) : listenTcp(wanted, wait)
  }

  #bindUnix(path: string) {
    // As OpenBSD and Debian have it: who may connect is a matter of the folder.
    const before = process.umask(0o111)
    try {
      return { fd: listenUnix(path, this.configured.entry.wait), address: undefined }
    } finally {
      process.umask(before)
    }
  }

  /** The kernel has something for the program: it finds it still there. */
  #watch(handed: Handed): void {
    this.#inetd.watcher.watch(handed.fd, () => {
      // Watched again by `resume`.
      if (this.#inetd.full) return
      if (!this.#mayStart()) return
      const { address } = handed
      const orders = this.#orders(environment(this.configured.entry, address))
      const again = () => {
        handed.busy = false
        if (this.#handed.includes(handed)) this.#watch(handed)
      }
      const ended = (failure: string | undefined) => {
        this.#ended(failure)
        again()
      }
      // A program that is missing is tried until it is switched off for looping: its clients must not wait for ever.
      const refused = (shortage: boolean) =>
        shortage ? this.#inetd.options.clock.after(SPAWN_RETRY_MS, again) : again()
      // Until one of the two is called, nobody else may watch it.
      handed.busy = true
      if (this.#inetd.start(orders, handed.fd, undefined, { ended, refused })) this.#begun()
    })
  }

  /** A client of a service that does not wait. */
  #arrived(client: Socket): void {
    client.on('error', () => client.destroy())
    const ip = client.remoteAddress
    // It has left already, and would not count for its address.
    if (ip === undefined && this.configured.entry.path === undefined) return void client.destroy()
    const admitted = this.#inetd.admit(ip) && this.#mayStart() && this.#serve(client, ip)
    if (!admitted) this.#counts.refused++
    // The program has descriptors of its own.
    client.destroy()
  }

  #serve(client: Socket, ip: string | undefined): boolean {
    const { entry } = this.configured
    const local = client.localAddress === undefined ? undefined : localEnd(client)
    const env = environment(entry, local, local && remoteEnd(client))
    const ended = (failure: string | undefined) => this.#ended(failure)
    const started =
      entry.program.kind === 'internal'
        ? this.#inetd.adopt('tcpmux', () => this.#spawnMux(client, env), ip, { ended })
        : this.#inetd.start(this.#orders(env), client, ip, { ended })
    if (started) this.#begun()
    return started
  }

  #spawnMux(client: Socket, env: NodeJS.ProcessEnv): ChildProcess {
    return spawnShim({ services: this.#inetd.muxServices(), env }, client)
  }

  #orders(env: NodeJS.ProcessEnv): ExecOrders {
    const { entry, account } = this.configured
    if (entry.program.kind !== 'exec') throw new Error(`${this.#label} has no program`)
    return { path: entry.program.path, argv: entry.program.argv, account, env }
  }

  #begun(): void {
    this.#counts.started++
    this.#counts.running++
  }

  #ended(failure: string | undefined): void {
    this.#counts.running--
    if (failure) this.#counts.failed++
  }

  /** inetd(8): a service that is started too often in a minute is switched off for a while. */
  #mayStart(): boolean {
    const { clock, say } = this.#inetd.options
    const { maxPerMinute } = this.configured.entry
    if (maxPerMinute === Infinity) return true
    const now = clock.now()
    while (now - this.#starts[0] >= MINUTE_MS) this.#starts.shift()
    if (this.#starts.length < maxPerMinute) {
      this.#starts.push(now)
      return true
    }
    const details = { maxPerMinute, offSeconds: OFF_MS / 1000 }
    say('error', `${this.#label} server failing (looping), service terminated`, details)
    this.#switchOff(OFF_MS)
    return false
  }

  async #switchOff(ms: number): Promise<void> {
    this.#starts = []
    this.#state = 'off'
    this.#retry(ms, () => this.open(true))
    await this.#closeSockets(AbortSignal.abort())
  }

  #retry(ms: number, task: () => void): void {
    this.#cancelRetry()
    this.#cancelRetry = this.#inetd.options.clock.after(ms, () => this.#state !== 'closed' && task())
  }

  /** There is no room for another program. */
  pause(): void {
    for (const listener of this.#listeners) listener.pause()
    for (const { fd } of this.#handed) this.#inetd.watcher.forget(fd)
  }

  resume(): void {
    for (const listener of this.#listeners) listener.resume()
    for (const handed of this.#handed) {
      this.#inetd.watcher.forget(handed.fd)
      if (!handed.busy) this.#watch(handed)
    }
  }

  async close(deadline: AbortSignal): Promise<void> {
    this.#state = 'closed'
    this.#cancelRetry()
    await this.#closeSockets(deadline)
  }

  async #closeSockets(deadline: AbortSignal): Promise<void> {
    const { path } = this.configured.entry
    for (const listener of this.#listeners) listener.close()
    for (const { fd } of this.#handed) {
      this.#inetd.watcher.forget(fd)
      close(fd)
    }
    if (path !== undefined && this.#listeners.length + this.#handed.length > 0) removeSocket(path)
    this.#listeners = []
    this.#handed = []
    const internal = this.#internal
    this.#internal = undefined
    await internal?.close(deadline)
  }
}

/** What an earlier inetd left behind, and nothing that is not a socket. */
function removeSocket(path: string): void {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket()) unlinkSync(path)
}

const localEnd = ({ localAddress = '', localPort = 0 }: Socket) => ({
  address: localAddress,
  port: localPort,
})
const remoteEnd = ({ remoteAddress = '', remotePort = 0 }: Socket) => ({
  address: remoteAddress,
  port: remotePort,
})

/** What tcpserver and s6-tcpserver tell their programs (UCSPI). Our own variables are not theirs. */
function environment(
  entry: Entry,
  local: SocketAddress | undefined,
  remote?: SocketAddress,
): NodeJS.ProcessEnv {
  const inherited = Object.entries(process.env).filter(
    ([name]) => !/^(ROUNDELAY_|(TCP|UDP)(LOCAL|REMOTE)(IP|PORT)$)/.test(name),
  )
  const proto = entry.path !== undefined ? 'UNIX' : entry.socketType === 'stream' ? 'TCP' : 'UDP'
  return {
    ...Object.fromEntries(inherited),
    PROTO: proto,
    ...(local && { [`${proto}LOCALIP`]: local.address, [`${proto}LOCALPORT`]: `${local.port}` }),
    ...(remote && { [`${proto}REMOTEIP`]: remote.address, [`${proto}REMOTEPORT`]: `${remote.port}` }),
  }
}
