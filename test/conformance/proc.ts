/** What /proc tells of the processes of a server, on Linux. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

interface Stat {
  readonly pid: number
  /** R running, S sleeping, Z zombie, … */
  readonly state: string
  readonly parent: number
}

function stat(pid: number): Stat | undefined {
  try {
    // The name in parentheses may contain anything, parentheses included.
    const [state, parent] = readFileSync(`/proc/${pid}/stat`, 'latin1')
      .replace(/^.*\) /s, '')
      .split(' ')
    return { pid, state: state!, parent: Number(parent) }
  } catch {
    return undefined
  }
}

/** The processes that `pid` started, zombies too. */
export const childrenOf = (pid: number): readonly Stat[] =>
  readdirSync('/proc').flatMap(name => {
    const found = /^\d+$/.test(name) ? stat(Number(name)) : undefined
    return found?.parent === pid ? found : []
  })

/** It runs; an orphan that ended may stay a zombie for as long as its new parent likes. */
export const runs = (pid: number): boolean => ![undefined, 'Z', 'X'].includes(stat(pid)?.state)

/** Whether it is one that a server model started: a pid alone may mean another process by now. */
export function isChildOfModel(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('/src/servers/child.ts')
  } catch {
    return false
  }
}

export const descriptors = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length

/** Resident memory in MiB; 0 when it has ended. */
export function rssMib(pid: number): number {
  try {
    return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024
  } catch {
    return 0
  }
}

const sockets = (kind: 'tcp' | 'udp'): readonly (readonly string[])[] =>
  readFileSync(`/proc/net/${kind}`, 'latin1')
    .trim()
    .split('\n')
    .slice(1)
    .map(line => line.trim().split(/\s+/))

const portOfHex = (address: string) => Number.parseInt(address.split(':')[1]!, 16)

/** Which of these processes hold the server's end of connections over IPv4: by the client's port. */
export function holders(serverPort: number, pids: readonly number[]): ReadonlyMap<number, readonly number[]> {
  const clientOf = new Map<string, number>()
  for (const [, local, remote, , , , , , , inode] of sockets('tcp'))
    if (portOfHex(local!) === serverPort) clientOf.set(`socket:[${inode}]`, portOfHex(remote!))
  const held = new Map<number, number[]>()
  for (const pid of pids) {
    for (const open of openFiles(pid)) {
      const client = clientOf.get(open)
      if (client) held.set(client, [...new Set([...(held.get(client) ?? []), pid])])
    }
  }
  return held
}

function openFiles(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).flatMap(fd => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`)
      } catch {
        return []
      }
    })
  } catch {
    return []
  }
}

/**
 * Our descriptor of a socket over IPv4 with this local port; over TCP connected to `peerPort`, else
 * listening.
 */
export function descriptorOf(kind: 'tcp' | 'udp', localPort: number, peerPort = 0): number {
  const row = sockets(kind).find(
    ([, local, remote]) => portOfHex(local!) === localPort && portOfHex(remote!) === peerPort,
  )
  const wanted = `socket:[${row?.[9]}]`
  for (const fd of readdirSync('/proc/self/fd'))
    try {
      if (readlinkSync(`/proc/self/fd/${fd}`) === wanted) return Number(fd)
    } catch {
      // It was the descriptor that read the folder.
    }
  throw new Error(`this process has no ${kind} socket with port ${localPort}`)
}

/** Octets, as the kernel counts them, that wait in the receive queue of a UDP socket over IPv4. */
export function udpQueued(port: number): number {
  const line = sockets('udp').find(([, local]) => portOfHex(local!) === port)
  return line ? Number.parseInt(line[4]!.split(':')[1]!, 16) : 0
}
