/**
 * One service of inetd and its sockets: listens, passes clients or the sockets themselves to programs, and is
 * switched off when it starts programs too often. Programs that it started outlive it.
 */
import { lstatSync, unlinkSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import type { SocketAddress } from '../address.ts'
import type { Clock } from '../clock.ts'
import { retryWithoutIpv6 } from '../net/bind.ts'
import { pausable } from '../net/listeners.ts'
import type { Protocol } from '../protocols.ts'
import { type Say, sparingly } from '../say.ts'
import { eventLoop } from '../servers/event-loop.ts'
import { close } from '../sys/libc.ts'
import { bindUdp, listenTcp, listenUnix } from '../sys/sockets.ts'
import type { Watcher } from '../sys/watcher.ts'
import {
  type Entry,
  type ExecEntry,
  type InetSockets,
  type InternalEntry,
  type InternalName,
  labelOf,
  type MultiplexerEntry,
  sameEntry,
} from './entry.ts'
import type { MuxService } from './exec.ts'
import type { ProgramEvents, Programs } from './programs.ts'
import type { Account } from './users.ts'

/** An entry that can be run. */
export interface Configured {
  readonly entry: Entry
  /** Its file and line, for the log. */
  readonly at: string
  /**
   * Whom the program runs as; undefined for the user of inetd. It is asked for each program, since accounts
   * change. Throws an Error if the user does not exist.
   */
  account(): Account | undefined
}

/** What all services share. */
export interface ServiceContext {
  readonly programs: Pick<Programs, 'full' | 'admit' | 'start' | 'startMultiplexer'>
  readonly watcher: Pick<Watcher, 'watch' | 'forget'>
  readonly clock: Clock
  readonly say: Say
  readonly protocol: (name: InternalName) => Protocol
  /** Limits of connections to an internal service. */
  readonly idleMs: number
  readonly maxConnections: () => number
  /** UDP ports whose datagrams no internal service answers. */
  readonly blockedPorts: ReadonlySet<number>
  /** What clients of tcpmux may ask for at this moment. */
  readonly tcpmuxServices: () => readonly MuxService[]
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

/** A socket of the service, or all sockets of an internal one. */
interface OpenSocket {
  /** Whether a program has it, or is about to get it. */
  readonly taken: boolean
  /** Pauses while there is no room for another program: clients then wait in the kernel's queue. */
  pause(): void
  resume(): void
  /** Stops listening before it returns. Connections to an internal service are cut when `deadline` aborts. */
  close(deadline: AbortSignal): Promise<void>
}

const MINUTE_MS = 60_000
/** inetd(8): after "server failing (looping)". */
const OFF_MS = 10 * MINUTE_MS
/**
 * After a failure to bind: a program of an earlier inetd, or of an earlier entry, may still have the socket.
 */
const BIND_RETRY_MS = 10_000
const SPAWN_RETRY_MS = 1000
const RECEIVE_BUFFER_OCTETS = 256 * 1024

export class RunningService {
  configured: Configured
  /** Resolves when the last attempt to open the sockets has ended. */
  opening: Promise<void> = Promise.resolve()
  readonly #context: ServiceContext
  #state: 'opening' | 'listening' | 'off' | 'closed' = 'off'
  #sockets: OpenSocket[] = []
  /** When programs were started in the last minute. */
  #starts: number[] = []
  #cancelRetry = () => {}
  readonly #sayCannotRun: (details: object) => void
  readonly #counts = { started: 0, running: 0, refused: 0, failed: 0 }

  constructor(configured: Configured, context: ServiceContext) {
    this.configured = configured
    this.#context = context
    // For each service on its own: one that fails often must not hide the others.
    this.#sayCannotRun = sparingly(details =>
      context.say('error', `${this.#label}: cannot start a program`, details),
    )
  }

  get #label(): string {
    return labelOf(this.configured.entry)
  }

  get off(): boolean {
    return this.#state === 'off'
  }

  get #closed(): boolean {
    return this.#state === 'closed'
  }

  row(): ServiceRow {
    const waiting = this.#sockets.some(({ taken }) => taken)
    const state = this.#state === 'listening' ? (waiting ? 'waiting' : 'listening') : 'off'
    return { service: this.#label, sockets: this.configured.entry.key, state, ...this.#counts }
  }

  /** Whether the open sockets fit another entry with the same key. */
  canBecome(next: Entry): boolean {
    const now = this.configured.entry
    if (sameEntry(now, next)) return true
    if (now.kind === 'tcpmux') return next.kind === 'tcpmux'
    return now.kind === 'exec' && next.kind === 'exec' && now.wait === next.wait
  }

  /** Never rejects: a socket that cannot be opened is logged and retried. */
  open(again = false): Promise<void> {
    this.opening = this.#tryToOpen(again)
    return this.opening
  }

  async #tryToOpen(again: boolean): Promise<void> {
    const { say, programs } = this.#context
    this.#cancelRetry()
    this.#state = 'opening'
    try {
      await this.#openSockets()
      if (this.#closed) return
      this.#state = 'listening'
      if (again) say('info', `${this.#label}: listening again`, {})
      if (programs.full) this.pause()
    } catch (err) {
      if (this.#closed) return
      if (!again) say('error', `${this.#label}: cannot listen, trying again every 10 seconds`, { err })
      await this.#switchOff(BIND_RETRY_MS)
    } finally {
      // The service was removed in the meantime.
      if (this.#closed) await this.#closeSockets(AbortSignal.abort())
    }
  }

  async #openSockets(): Promise<void> {
    const { entry } = this.configured
    if (entry.kind === 'tcpmux') return
    const { sockets } = entry
    if (sockets.family === 'unix') return this.#openUnix(entry, sockets.path)
    await retryWithoutIpv6(sockets.addresses, async addresses => {
      // Those of an attempt that failed.
      await this.#closeSockets(AbortSignal.abort())
      if (entry.kind === 'internal') this.#sockets.push(await this.#openInternal(entry, sockets, addresses))
      // Each is recorded before the next is opened, so that none is left behind when that fails.
      else for (const address of addresses) this.#sockets.push(await this.#openInet(entry, sockets, address))
    })
  }

  async #openInternal(
    entry: InternalEntry,
    { transport }: InetSockets,
    listen: readonly SocketAddress[],
  ): Promise<OpenSocket> {
    const { protocol, idleMs, maxConnections, blockedPorts, say } = this.#context
    const server = await eventLoop(protocol(entry.name), {
      listen,
      transports: [transport],
      alsoBlocked: blockedPorts,
      idleMs,
      maxConnections: maxConnections(),
      say: (level, message, details) => say(level, `${this.#label}: ${message}`, details),
    })
    return { taken: false, pause() {}, resume() {}, close: deadline => server.close(deadline) }
  }

  #openInet(
    entry: ExecEntry | MultiplexerEntry,
    { transport }: InetSockets,
    wanted: SocketAddress,
  ): OpenSocket | Promise<OpenSocket> {
    const wait = entry.kind === 'exec' && entry.wait
    const { fd, address } =
      transport === 'udp' ? bindUdp(wanted, RECEIVE_BUFFER_OCTETS) : listenTcp(wanted, wait)
    return wait ? this.#passToPrograms(fd, address) : this.#acceptFrom(fd)
  }

  async #openUnix(entry: Entry, path: string): Promise<void> {
    if (entry.kind === 'internal') throw new Error('an internal service cannot have a unix socket')
    await this.#closeSockets(AbortSignal.abort())
    removeSocket(path)
    const wait = entry.kind === 'exec' && entry.wait
    // As on OpenBSD and Debian, every user who may enter the folder may connect.
    const fd = withUmask(0o111, () => listenUnix(path, wait))
    const socket = wait ? this.#passToPrograms(fd, undefined) : await this.#acceptFrom(fd)
    this.#sockets.push({
      get taken() {
        return socket.taken
      },
      pause: socket.pause,
      resume: socket.resume,
      close(deadline) {
        const closed = socket.close(deadline)
        removeSocket(path)
        return closed
      },
    })
  }

  /** For `nowait`: accepts clients and starts a program for each. Owns the descriptor. */
  async #acceptFrom(fd: number): Promise<OpenSocket> {
    const options = { allowHalfOpen: true, pauseOnConnect: true }
    const listener = await pausable(
      fd,
      createServer(options, client => this.#accepted(client)),
    )
    const close = async () => listener.close()
    return { taken: false, pause: listener.pause, resume: listener.resume, close }
  }

  /** For `wait`: gives the socket itself to one program after the other. Owns the descriptor. */
  #passToPrograms(fd: number, address: SocketAddress | undefined): OpenSocket {
    const { watcher, programs, clock } = this.#context
    let taken = false
    let closed = false
    const watch = () => watcher.watch(fd, readable)
    const returned = () => {
      taken = false
      if (!closed) watch()
    }
    const readable = () => {
      const { entry } = this.configured
      // If there is no room, `resume` watches it again.
      if (programs.full || entry.kind !== 'exec' || !this.#mayStart()) return
      // It must not be watched until the program has ended, or could not be started.
      taken = true
      const notStarted = (transient: boolean) =>
        transient ? clock.after(SPAWN_RETRY_MS, returned) : returned()
      const started = this.#startProgram(entry, environment(entry, address), fd, undefined, {
        ended: failure => {
          this.#ended(failure)
          returned()
        },
        // A program that cannot be run is tried until the service is switched off: its clients must not wait
        // for ever.
        notStarted,
      })
      if (started) this.#started()
    }
    watch()
    return {
      get taken() {
        return taken
      },
      pause: () => watcher.forget(fd),
      resume: () => {
        if (!taken) watch()
      },
      async close() {
        closed = true
        watcher.forget(fd)
        close(fd)
      },
    }
  }

  #accepted(client: Socket): void {
    client.on('error', () => client.destroy())
    const { entry } = this.configured
    const ip = client.remoteAddress
    // A client that has disconnected already would not count for its address.
    const disconnected = ip === undefined && entry.kind !== 'tcpmux' && entry.sockets.family === 'inet'
    if (disconnected) return void client.destroy()
    const started = this.#context.programs.admit(ip) && this.#mayStart() && this.#serve(client, ip)
    if (started) this.#started()
    else this.#counts.refused++
    // The program has descriptors of its own.
    client.destroy()
  }

  /** Starts the program for a client. */
  #serve(client: Socket, ip: string | undefined): boolean {
    const { programs, tcpmuxServices } = this.#context
    const { entry } = this.configured
    const local = client.localAddress === undefined ? undefined : localEnd(client)
    const env = environment(entry, local, local && remoteEnd(client))
    const events: ProgramEvents = {
      ended: failure => this.#ended(failure),
      cannotRun: (program, err) => this.#cannotRun(program, err),
    }
    switch (entry.kind) {
      case 'exec':
        return this.#startProgram(entry, env, client, ip, events)
      case 'multiplexer':
        return programs.startMultiplexer({ services: tcpmuxServices(), env }, client, ip, events)
      default:
        return false
    }
  }

  #startProgram(
    { program }: ExecEntry,
    env: NodeJS.ProcessEnv,
    stdio: Socket | number,
    ip: string | undefined,
    events: ProgramEvents,
  ): boolean {
    const cannotRun = (path: string, err: Error) => this.#cannotRun(path, err)
    try {
      const orders = { ...program, account: this.configured.account(), env }
      return this.#context.programs.start(orders, stdio, ip, { ...events, cannotRun })
    } catch (err) {
      // The user no longer exists.
      cannotRun(program.path, err as Error)
      if (events.notStarted) setImmediate(events.notStarted, false)
      return false
    }
  }

  /**
   * What the multiplexer may start for a client; undefined if this is no service of it, or its user no longer
   * exists.
   */
  tcpmuxService(): MuxService | undefined {
    const { entry, account } = this.configured
    if (entry.kind !== 'tcpmux') return undefined
    const { name, plus, program } = entry
    try {
      return { name, plus, ...program, account: account() }
    } catch (err) {
      this.#cannotRun(program.path, err as Error)
      return undefined
    }
  }

  #cannotRun(program: string, err: Error): void {
    this.#sayCannotRun({ at: this.configured.at, program, err })
  }

  #started(): void {
    this.#counts.started++
    this.#counts.running++
  }

  #ended(failure: string | undefined): void {
    this.#counts.running--
    if (failure) this.#counts.failed++
  }

  /**
   * Whether the limit of starts a minute allows another one. If not, the service is switched off, as inetd(8)
   * has it.
   */
  #mayStart(): boolean {
    const { clock, say } = this.#context
    const { maxPerMinute } = this.configured.entry
    if (maxPerMinute === Infinity) return true
    const now = clock.now()
    while (now - this.#starts[0]! >= MINUTE_MS) this.#starts.shift()
    if (this.#starts.length < maxPerMinute) {
      this.#starts.push(now)
      return true
    }
    const details = { maxPerMinute, offSeconds: OFF_MS / 1000 }
    say('error', `${this.#label} server failing (looping), service terminated`, details)
    void this.#switchOff(OFF_MS)
    return false
  }

  async #switchOff(ms: number): Promise<void> {
    this.#starts = []
    this.#state = 'off'
    this.#cancelRetry()
    this.#cancelRetry = this.#context.clock.after(ms, () => void this.open(true))
    await this.#closeSockets(AbortSignal.abort())
  }

  pause(): void {
    for (const socket of this.#sockets) socket.pause()
  }

  resume(): void {
    for (const socket of this.#sockets) socket.resume()
  }

  /**
   * Its sockets are closed when this returns; resolves when connections to an internal service have ended.
   */
  async close(deadline: AbortSignal): Promise<void> {
    this.#state = 'closed'
    this.#cancelRetry()
    await this.#closeSockets(deadline)
  }

  async #closeSockets(deadline: AbortSignal): Promise<void> {
    const sockets = this.#sockets
    this.#sockets = []
    await Promise.all(sockets.map(socket => socket.close(deadline)))
  }
}

/** Removes the socket that an earlier inetd left, and no file of another kind. */
function removeSocket(path: string): void {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket()) unlinkSync(path)
}

function withUmask<T>(mask: number, work: () => T): T {
  const before = process.umask(mask)
  try {
    return work()
  } finally {
    process.umask(before)
  }
}

const localEnd = ({ localAddress = '', localPort = 0 }: Socket): SocketAddress => ({
  address: localAddress,
  port: localPort,
})
const remoteEnd = ({ remoteAddress = '', remotePort = 0 }: Socket): SocketAddress => ({
  address: remoteAddress,
  port: remotePort,
})

/**
 * The variables that tcpserver and s6-tcpserver set for their programs (UCSPI). Programs do not get our own
 * variables.
 */
function environment(
  entry: Entry,
  local: SocketAddress | undefined,
  remote?: SocketAddress,
): NodeJS.ProcessEnv {
  const inherited = Object.entries(process.env).filter(
    ([name]) => !/^(ROUNDELAY_|(TCP|UDP)(LOCAL|REMOTE)(IP|PORT)$)/.test(name),
  )
  const proto = entry.protocol === 'unix' ? 'UNIX' : entry.protocol.startsWith('udp') ? 'UDP' : 'TCP'
  return {
    ...Object.fromEntries(inherited),
    PROTO: proto,
    ...(local && { [`${proto}LOCALIP`]: local.address, [`${proto}LOCALPORT`]: `${local.port}` }),
    ...(remote && { [`${proto}REMOTEIP`]: remote.address, [`${proto}REMOTEPORT`]: `${remote.port}` }),
  }
}
