/**
 * The internet superserver (TLPI 60.5, inetd(8)): one process watches the sockets of all services and starts
 * a server only when a client arrives. This file reconciles the running services with a configuration.
 * programs.ts starts programs, service.ts runs one service.
 */
import type { Clock } from '../clock.ts'
import type { Service } from '../lifecycle.ts'
import { descriptorRoom } from '../net/listeners.ts'
import type { Protocol } from '../protocols.ts'
import type { Say } from '../say.ts'
import { createSpawner } from '../sys/spawn.ts'
import { startWatcher, type Watcher } from '../sys/watcher.ts'
import type { Entry, InternalName } from './entry.ts'
import { type ProgramLimits, Programs } from './programs.ts'
import { type Configured, RunningService, type ServiceRow } from './service.ts'

export interface InetdOptions extends ProgramLimits {
  /** The protocols of the internal services. */
  readonly protocol: (name: InternalName) => Protocol
  /** Limits of connections to internal services. */
  readonly idleMs: number
  readonly maxConnections: number
  readonly clock: Clock
  readonly say: Say
}

/** Resolves when inetd can watch sockets. It serves nothing until a configuration is applied. */
export async function startInetd(options: InetdOptions): Promise<Inetd> {
  return new Inetd(options, await startWatcher())
}

export class Inetd implements Service {
  readonly name = 'inetd'
  readonly #options: InetdOptions
  readonly #watcher: Watcher
  readonly #programs: Programs
  readonly #services = new Map<string, RunningService>()
  /** Of all services: none answers the datagrams of another, or the two could go on for ever. */
  readonly #udpPorts = new Set<number>()
  /** How many connections one internal service may have, so that all have descriptors. */
  #descriptorShare = 1
  #closing = false

  constructor(options: InetdOptions, watcher: Watcher) {
    this.#options = options
    this.#watcher = watcher
    const onFull = (full: boolean) => {
      for (const service of this.#services.values()) full ? service.pause() : service.resume()
    }
    this.#programs = new Programs({ ...options, limits: options, spawner: createSpawner(), watcher, onFull })
  }

  get closing(): boolean {
    return this.#closing
  }

  /** Whether there is no room for another program. */
  get full(): boolean {
    return this.#programs.full
  }

  rows(): ServiceRow[] {
    return [...this.#services.values()].map(service => service.row())
  }

  /**
   * Reconciles the running services with `wanted`. Unchanged ones keep their sockets, and so do those of
   * which only the program changed. Running programs are left alone. A socket that cannot be opened is logged
   * and retried.
   */
  async apply(wanted: readonly Configured[]): Promise<void> {
    if (this.#closing) return
    this.#divide(wanted.map(({ entry }) => entry))
    const next = new Map(wanted.map(configured => [configured.entry.key, configured]))
    for (const [key, service] of this.#services) {
      const configured = next.get(key)
      if (configured && service.canBecome(configured.entry)) continue
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
        // As GNU's inetd does: an operator who has fixed the cause does not have to wait for the retry.
        if (service.off) await service.open()
        continue
      }
      const added = this.#addService(configured)
      this.#services.set(key, added)
      await added.open()
    }
  }

  /** Decides what the services share: descriptors, and the UDP ports that none of them answers. */
  #divide(entries: readonly Entry[]): void {
    const internal = entries.filter(({ kind }) => kind === 'internal').length
    // One share is for the clients of programs, which use descriptors of ours only until the program has
    // begun.
    this.#descriptorShare = Math.max(1, Math.floor(descriptorRoom() / (internal + 1)))
    this.#udpPorts.clear()
    for (const entry of entries)
      if (entry.kind !== 'tcpmux' && entry.sockets.family === 'inet' && entry.sockets.transport === 'udp')
        for (const { port } of entry.sockets.addresses) this.#udpPorts.add(port)
  }

  #addService(configured: Configured): RunningService {
    const { clock, say, protocol, idleMs, maxConnections } = this.#options
    return new RunningService(configured, {
      clock,
      say,
      protocol,
      idleMs,
      programs: this.#programs,
      watcher: this.#watcher,
      maxConnections: () => Math.min(maxConnections, this.#descriptorShare),
      blockedPorts: this.#udpPorts,
      tcpmuxServices: () => [...this.#services.values()].flatMap(service => service.tcpmuxService() ?? []),
    })
  }

  async close(deadline: AbortSignal): Promise<void> {
    this.#closing = true
    const services = [...this.#services.values()]
    this.#services.clear()
    const closed = services.map(service => service.close(deadline))
    await Promise.all([...closed, this.#programs.close(deadline)])
    await this.#watcher.close()
  }
}
