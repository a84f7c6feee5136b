/**
 * One entry of inetd.conf as plain data: where it listens and what answers there. Pure. conf.ts makes entries
 * from a file, service.ts runs them.
 */
import { formatAddress, isIpv6, type SocketAddress, type Transport } from '../address.ts'

export const socketProtocols = [
  'tcp',
  'udp',
  'tcp4',
  'tcp6',
  'udp4',
  'udp6',
  'tcp46',
  'udp46',
  'unix',
] as const
export const internalNames = ['echo', 'discard', 'chargen', 'daytime', 'time'] as const

export type SocketProtocol = (typeof socketProtocols)[number]
export type InternalName = (typeof internalNames)[number]

/** The addresses that mean every address of their family. */
export const WILDCARDS: readonly string[] = ['0.0.0.0', '::']

/** TCP listeners or UDP sockets, one for each address. */
export interface InetSockets {
  readonly family: 'inet'
  readonly transport: Transport
  readonly addresses: readonly SocketAddress[]
}

/** A stream socket in the file system. The path is absolute. */
export interface UnixSocket {
  readonly family: 'unix'
  readonly path: string
}

export interface Program {
  readonly path: string
  readonly argv: readonly string[]
}

interface Common {
  /**
   * Names all sockets of the entry, and is unique in a file: `tcp 0.0.0.0:7, tcp [::]:7`, `unix /run/x.sock`
   * or `tcpmux name`.
   */
  readonly key: string
  /** The number of its first line, from 1. */
  readonly line: number
  /** As written, without addresses: a name, a port or a path. */
  readonly service: string
  readonly protocol: SocketProtocol
  /** Starts within 60 s; Infinity for no limit. */
  readonly maxPerMinute: number
  readonly user: string
  readonly group?: string
}

/** inetd answers by itself. */
export interface InternalEntry extends Common {
  readonly kind: 'internal'
  readonly name: InternalName
  readonly sockets: InetSockets | UnixSocket
}

/** The internal service `tcpmux` (RFC 1078): each client names the service that it wants. */
export interface MultiplexerEntry extends Common {
  readonly kind: 'multiplexer'
  readonly sockets: InetSockets | UnixSocket
}

/** A program answers. */
export interface ExecEntry extends Common {
  readonly kind: 'exec'
  readonly sockets: InetSockets | UnixSocket
  /**
   * The program gets the listening or UDP socket itself, and inetd does not watch it until the program ends.
   */
  readonly wait: boolean
  readonly program: Program
}

/** A program that clients reach through the multiplexer; it has no socket of its own. */
export interface TcpmuxEntry extends Common {
  readonly kind: 'tcpmux'
  /** In lower case: RFC 1078 ignores case. */
  readonly name: string
  /** inetd sends the "+" reply for the program. */
  readonly plus: boolean
  readonly program: Program
}

export type Entry = InternalEntry | MultiplexerEntry | ExecEntry | TcpmuxEntry

type WithoutKey<E> = E extends Entry ? Omit<E, 'key'> : never

/** An entry whose sockets are not decided yet: those depend on the other entries of the file. */
export type Draft = WithoutKey<Entry>

export const socketName = (transport: Transport, address: SocketAddress): string =>
  `${transport} ${formatAddress(address)}`

/** One name for each socket of an entry. Two entries with a name in common want the same socket. */
export function socketNames(entry: Draft): readonly string[] {
  if (entry.kind === 'tcpmux') return [`tcpmux ${entry.name}`]
  const { sockets } = entry
  if (sockets.family === 'unix') return [`unix ${sockets.path}`]
  return sockets.addresses.map(address => socketName(sockets.transport, address))
}

/** What is left of an entry when later ones take sockets from it. */
interface Share {
  /** Undefined if it has no socket left. */
  readonly left: Entry | undefined
  /** The sockets that it lost, and the index of the entry that has each. */
  readonly lost: readonly { readonly name: string; readonly to: number }[]
}

/** Leaves each socket to the last of the entries that name it. */
export function leaveToLast(drafts: readonly Draft[]): readonly Share[] {
  const owners = new Map(drafts.flatMap((draft, i) => socketNames(draft).map(name => [name, i] as const)))
  return drafts.map((draft, i) => {
    const lost = socketNames(draft).flatMap(name => {
      const to = owners.get(name)
      return to === undefined || to === i ? [] : [{ name, to }]
    })
    return { left: without(draft, new Set(lost.map(({ name }) => name))), lost }
  })
}

function without(draft: Draft, lost: ReadonlySet<string>): Entry | undefined {
  const names = socketNames(draft).filter(name => !lost.has(name))
  if (names.length === 0) return undefined
  const keyed = { ...draft, key: names.join(', ') }
  if (keyed.kind === 'tcpmux' || keyed.sockets.family === 'unix') return keyed
  const { sockets } = keyed
  const { transport } = sockets
  const addresses = sockets.addresses.filter(address => !lost.has(socketName(transport, address)))
  return { ...keyed, sockets: { ...sockets, addresses } }
}

/** How logs and metrics name a service: `echo/tcp`. */
export const labelOf = ({ service, protocol }: Entry): string => `${service}/${protocol}`

/** Whether two readings of a file say the same about an entry. Its place in the file does not matter. */
export const sameEntry = (a: Entry, b: Entry): boolean =>
  JSON.stringify({ ...a, line: 0 }) === JSON.stringify({ ...b, line: 0 })

/** Says in plain words what happens where. */
export function describe(entry: Entry): string {
  const place = entry.kind === 'tcpmux' ? `tcpmux service ${entry.name}` : describeSockets(entry.sockets)
  return `${place}: ${describeAnswer(entry)}`
}

function describeSockets(sockets: InetSockets | UnixSocket): string {
  if (sockets.family === 'unix') return `unix socket ${sockets.path}`
  const { transport, addresses } = sockets
  const families = new Set(addresses.map(({ address }) => (isIpv6(address) ? 6 : 4)))
  const every = families.size > 1 ? 'every address' : `every IPv${[...families][0]} address`
  const where = addresses.every(({ address }) => WILDCARDS.includes(address))
    ? every
    : addresses.map(({ address }) => address).join(', ')
  return `${transport.toUpperCase()} port ${addresses[0]!.port} on ${where}`
}

function describeAnswer(entry: Entry): string {
  const { user, group, maxPerMinute } = entry
  const owner = `as ${user}${group === undefined ? '' : `:${group}`}`
  const limit = maxPerMinute === Infinity ? '' : `, at most ${maxPerMinute} a minute`
  switch (entry.kind) {
    case 'internal':
      return `${entry.name}, answered inside inetd without a program`
    case 'multiplexer':
      return 'tcpmux, answered inside inetd without a program'
    case 'tcpmux': {
      // Its starts count against the limit of the multiplexer, not against one of its own.
      const reply = entry.plus ? ', after a "+" from inetd' : ''
      return `a new ${entry.program.path} for each connection${reply}, ${owner}`
    }
    case 'exec':
      return `${describeProgram(entry)}, ${owner}${limit}`
  }
}

function describeProgram({ wait, program, sockets }: ExecEntry): string {
  if (!wait) return `a new ${program.path} for each connection`
  return sockets.family === 'inet' && sockets.transport === 'udp'
    ? `${program.path} gets the socket while a datagram waits, one at a time`
    : `${program.path} gets the listening socket and accepts by itself, one at a time`
}
