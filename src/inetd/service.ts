/**
 * One service of inetd and its sockets: listens, hands clients or the sockets themselves to programs that inetd.ts starts,
 * and is switched off when it loops. What it started outlives it.
 */
import { lstatSync, unlinkSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import type { SocketAddress } from '../address.ts'
import type { Service } from '../lifecycle.ts'
import { retryWithoutIpv6 } from '../net/bind.ts'
import { type Listener, pausable } from '../net/listeners.ts'
import { eventLoop } from '../servers/event-loop.ts'
import { close } from '../sys/libc.ts'
import { bindUdp, listenTcp, listenUnix } from '../sys/sockets.ts'
import { type Entry, sameEntry } from './conf.ts'
import type { ExecOrders } from './exec.ts'
import type { Configured, Inetd, ServiceRow } from './inetd.ts'

const MINUTE_MS = 60_000
/** inetd(8): after "server failing (looping)". */
const OFF_MS = 10 * MINUTE_MS
/** After a socket that cannot be had: a program of an earlier inetd, or of an earlier entry, may hold it. */
const BIND_RETRY_MS = 10_000
const SPAWN_RETRY_MS = 1000
const RECEIVE_BUFFER_OCTETS = 256 * 1024

/** A socket that is given to one program at a time. */
interface Handed {
  readonly fd: number
  readonly address: SocketAddress | undefined
  busy: boolean
}

export class RunningService {
  readonly #inetd: Inetd
  configured: Configured
  #state: 'opening' | 'listening' | 'off' | 'closed' = 'off'
  #internal: Service | undefined
  #listeners: Listener[] = []
  /** Of services that wait. */
  #handed: Handed[] = []
  #starts: number[] = []
  #cancelRetry = () => {}
  /** Resolves when the last attempt is over. */
  opening: Promise<void> = Promise.resolve()
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
  open(again = false): Promise<void> {
    this.opening = this.#tryToOpen(again)
    return this.opening
  }

  async #tryToOpen(again: boolean): Promise<void> {
    this.#cancelRetry()
    this.#state = 'opening'
    try {
      await retryWithoutIpv6(this.configured.entry.addresses, addresses => this.#open(addresses))
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

  async #open(addresses: readonly SocketAddress[]): Promise<void> {
    // Those of a try that failed.
    await this.#closeSockets(AbortSignal.abort())
    const { entry } = this.configured
    const { program } = entry
    if (entry.tcpmux) return
    if (program.kind === 'internal' && program.name !== 'tcpmux') {
      const protocol = this.#inetd.options.protocols.find(({ name }) => name === program.name)
      if (!protocol) throw new Error(`there is no internal service "${program.name}"`)
      const transports = [entry.socketType === 'stream' ? 'tcp' : 'udp'] as const
      const { options, udpPorts, descriptorShare } = this.#inetd
      this.#internal = await eventLoop(protocol, {
        listen: addresses,
        transports,
        alsoBlocked: udpPorts,
        idleMs: options.idleMs,
        maxConnections: Math.min(options.maxConnections, descriptorShare),
        say: (level, message, details) => options.say(level, `${this.#label}: ${message}`, details),
      })
      return
    }
    if (entry.path !== undefined) removeSocket(entry.path)
    const places = entry.path === undefined ? addresses : [undefined]
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
        ? this.#inetd.startMux(client, env, ip, { ended })
        : this.#inetd.start(this.#orders(env), client, ip, { ended })
    if (started) this.#begun()
    return started
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
    while (now - this.#starts[0]! >= MINUTE_MS) this.#starts.shift()
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
    this.#cancelRetry()
    this.#cancelRetry = this.#inetd.options.clock.after(ms, () => void this.open(true))
    await this.#closeSockets(AbortSignal.abort())
  }

  /** There is no room for another program. */
  pause(): void {
    for (const listener of this.#listeners) listener.pause()
    for (const { fd } of this.#handed) this.#inetd.watcher.forget(fd)
  }

  resume(): void {
    for (const listener of this.#listeners) listener.resume()
    for (const handed of this.#handed) if (!handed.busy) this.#watch(handed)
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
