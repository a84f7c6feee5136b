/**
 * /etc/inetd.conf → entries as plain data, /etc/services → a look-up: pure. What is meant stands in inetd(8) of Debian
 * (openbsd-inetd), OpenBSD, NetBSD, FreeBSD and GNU inetutils, and in services(5). Where those disagree:
 * - `tcp` and `udp` are both families on Debian, IPv4 elsewhere, where files have a second line for `tcp6`. Here they are
 *   both, but leave an IPv6 address to the line for `tcp6` or `udp6` that has it too.
 * - `tcp6` is IPv6 only, but both families on GNU. `tcp46` is both in one IPv6 socket; here in two, as `tcp`.
 * - MAX is starts a minute: 256 on Debian, OpenBSD and FreeBSD, 40 on NetBSD and GNU. Here 256, behind "." or NetBSD's ":";
 *   0 is no limit, as for FreeBSD's -R. FreeBSD's "/MAX" limits children at a time: refused.
 * - `dgram nowait` with a program is in OpenBSD's and NetBSD's manuals; BUGS of Debian's tells what comes of it. Refused, as
 *   FreeBSD and GNU have it. Internal services take either word over UDP, and `nowait` over TCP.
 * - Host names are looked up by OpenBSD, NetBSD and GNU: refused, since where it listens would depend on the DNS of the moment.
 * - Only NetBSD has quotes, around whole arguments; here they hold words together anywhere, as in a shell. "\" is no escape.
 * - After `internal` FreeBSD has the service's name, the others `internal`: both are taken, so a port can have a name, too.
 * - A line that begins with white space goes on with the entry above: BSD's custom, which only NetBSD's BUGS mention. A line
 *   whose first character is "#" after such white space is a comment all the same, and ends the entry, as an empty one does.
 * - What only some have is refused: RPC, faithd, IPsec, buffer sizes, accept filters, login classes, `.include`, key-values.
 */

import { formatAddress, isIpv6, portNumber, type SocketAddress, socketAddress } from '../address.ts'
import { Expected } from '../errors.ts'

const protocols = ['tcp', 'udp', 'tcp4', 'tcp6', 'udp4', 'udp6', 'tcp46', 'udp46', 'unix'] as const
const datagramServices = ['echo', 'discard', 'chargen', 'daytime', 'time'] as const
const streamServices = [...datagramServices, 'tcpmux'] as const

/** One service. Read again, it is the same, changed or gone: see `key` and `sameEntry`. */
export interface Entry {
  /** Its sockets, unique in a file: `tcp 0.0.0.0:7, tcp [::]:7`, `unix /run/x.sock` or `tcpmux name`. */
  readonly key: string
  /** Where it begins, from 1. */
  readonly line: number
  /** As written, without addresses: a name, a port or a path. */
  readonly service: string
  readonly socketType: 'stream' | 'dgram'
  readonly protocol: (typeof protocols)[number]
  /** Those of `addresses`. */
  readonly families: readonly (4 | 6)[]
  /** A socket each; none for `unix` and for a service of tcpmux. */
  readonly addresses: readonly SocketAddress[]
  /** Of a `unix` socket; absolute. */
  readonly path?: string
  /** The program gets the listening or datagram socket, and inetd looks away until it ends. */
  readonly wait: boolean
  /** Starts within 60 s; Infinity for no limit. */
  readonly maxPerMinute: number
  readonly user: string
  readonly group?: string
  readonly program:
    | { readonly kind: 'internal'; readonly name: (typeof streamServices)[number] }
    | { readonly kind: 'exec'; readonly path: string; readonly argv: readonly string[] }
  /** RFC 1078: asked for by this name (in lower case) on tcpmux's port; with `plus` inetd answers "+" for the program. */
  readonly tcpmux?: { readonly name: string; readonly plus: boolean }
}

/** What is wrong with an entry; the others work. */
export interface Problem {
  readonly file: string
  readonly line: number
  /** As inetd(8) calls it: `service`, `socket type`, …; `line` where it is all of it. */
  readonly field: string
  /** The whole of it: `inetd.conf:12: Cannot parse protocol "sctp": expected one of tcp, udp, …` */
  readonly message: string
}

/** The port of a service, by its name or an alias. */
export type LookUp = (name: string, protocol: 'tcp' | 'udp') => number | undefined

const ANY: readonly string[] = ['0.0.0.0', '::']

const MAX_PER_MINUTE = 256

/** Characters of an entry with its continuations: room for any command line, and an end to a file that is none. */
const MAX_ENTRY_LENGTH = 8192

/** unix(7): what `sun_path` has room for on Linux. */
const MAX_PATH_OCTETS = 107

class BadField extends Error {
  readonly field: string
  constructor(field: string, text: string, expected: string) {
    const flat = text.replace(/[ \t\n]+/g, ' ')
    const shown = flat.slice(0, 60).replace(/\p{C}/gu, c => `\\u{${c.codePointAt(0)?.toString(16)}}`)
    super(`Cannot parse ${field} "${shown}${flat.length > 60 ? '…' : ''}": expected ${expected}`)
    this.field = field
  }
}

function parseField<T>(field: string, text: string, parse: (text: string) => T): T {
  try {
    return parse(text)
  } catch (error) {
    if (error instanceof Expected) throw new BadField(field, text, error.message)
    throw error
  }
}

const foreign: readonly (readonly [pattern: RegExp, what: string])[] = [
  [/^rpc\//, 'RPC is'],
  [/^faith\//, 'faithd is'],
  [/,(snd|rcv)buf=/, 'buffer sizes are'],
  [/^(stream|dgram)[,:]/, 'accept limits and filters are'],
  [/^(on|off)$/, 'the key-values notation is'],
  [/^(no)?wait\//, 'a limit of children at a time is'],
]

/** What to say of a text that another inetd knows. */
function hint(text: string): string {
  const what = foreign.find(([pattern]) => pattern.test(text))?.[1]
  return what ? ` (${what} not supported)` : ''
}

function keyword<const T extends string>(...values: readonly T[]): (text: string) => T {
  return text => {
    if ((values as readonly string[]).includes(text)) return text as T
    throw new Expected(`one of ${values.join(', ')}${hint(text)}`)
  }
}

/** `*`, or addresses with commas between them; each once. */
function listenAddresses(text: string): readonly string[] {
  if (text === '*') return ANY
  try {
    // Between brackets or, as Debian's inetds also take it, without.
    const bracketed = (part: string) => (isIpv6(part) && !part.startsWith('[') ? `[${part}]` : part)
    return [...new Set(text.split(',').map(part => socketAddress(`${bracketed(part)}:0`).address))]
  } catch {
    throw new Expected('* or IP addresses such as 127.0.0.1,[::1] (names are not looked up)')
  }
}

function waitAndLimit(text: string): Pick<Entry, 'wait' | 'maxPerMinute'> {
  const match = /^(no)?wait(?:[.:](\d{1,9}))?$/.exec(text)
  if (!match) throw new Expected(`wait or nowait, and .MAX for starts a minute${hint(text)}`)
  return { wait: !match[1], maxPerMinute: Number(match[2] ?? MAX_PER_MINUTE) || Number.POSITIVE_INFINITY }
}

/** A user's name contains "." only where ":" is the separator. */
function userAndGroup(text: string): Pick<Entry, 'user' | 'group'> {
  const match = /^(?:([\w.-]+\$?):([\w.-]+)|([\w-]+\$?)(?:\.([\w-]+))?)$/.exec(text)
  if (!match) throw new Expected('USER, USER:GROUP or USER.GROUP')
  const [, user = match[3]!, group = match[4]] = match
  return group === undefined ? { user } : { user, group }
}

function split(text: string): readonly string[] {
  const words = /(?:[^ \t\n'"]|'[^'\n]*'|"[^"\n]*")+/g
  const quote = /['"]/.exec(text.replace(words, ''))
  if (quote) throw new BadField('line', text, `another ${quote[0]} before the line ends`)
  return (text.match(words) ?? []).map(word => word.replace(/'([^']*)'|"([^"]*)"/g, '$1$2'))
}

/** What the lines before an entry say about it. */
interface Context {
  readonly lookUp: LookUp
  /** Where an entry without addresses listens; undefined where that line is bad, for elsewhere it must not. */
  inherited: { readonly line: number; readonly addresses?: readonly string[] }
  /** Of the IPsec policy in force, which nothing may serve without; 0 where there is none. */
  policyLine: number
}

type Place = Pick<Entry, 'service' | 'addresses' | 'path' | 'tcpmux'>

/** Where a service is found. Throws `BadField`. */
function parsePlace(text: string, protocol: Entry['protocol'], context: Context): Place {
  // A path may contain ":", an address never "/".
  const [, prefix, service = ''] = /^(?:([^/]*):)?(.*)$/s.exec(text) ?? []
  if (protocol === 'unix') {
    // Addresses before it are "meaningless and ignored".
    const octets = new TextEncoder().encode(service).length
    if (service.startsWith('/') && octets <= MAX_PATH_OCTETS) return { service, addresses: [], path: service }
    throw new BadField('service', service, `an absolute path of at most ${MAX_PATH_OCTETS} octets`)
  }
  const [, plus, muxName] = /^tcpmux\/(\+?)(.+)$/.exec(service) ?? []
  if (muxName !== undefined) {
    if (protocol !== 'tcp') throw new BadField('protocol', protocol, 'tcp for a service of tcpmux')
    if (prefix !== undefined)
      throw new BadField('address', prefix, 'none for a service of tcpmux: it has no socket of its own')
    const name = muxName.toLowerCase()
    if (name === 'help') throw new BadField('service', service, 'another name: tcpmux itself answers to help')
    return { service, addresses: [], tcpmux: { name, plus: plus === '+' } }
  }
  const base = protocol.startsWith('udp') ? 'udp' : 'tcp'
  const number = parseField('service', service, name => {
    if (/^\d+$/.test(name)) return portNumber(name)
    const found = context.lookUp(name, base)
    if (found !== undefined) return found
    throw new Expected(`a port or the name of a ${base.toUpperCase()} service`)
  })
  const all =
    prefix === undefined ? context.inherited.addresses : parseField('address', prefix, listenAddresses)
  if (!all)
    throw new BadField('address', '', `one here, as the default of line ${context.inherited.line} is bad`)
  const family = /^...([46])$/.exec(protocol)?.[1]
  const own = all.filter(address => !family || isIpv6(address) === (family === '6'))
  if (own.length === 0)
    throw new BadField('address', prefix ?? all.join(','), `an IPv${family} one for ${protocol}`)
  return { service, addresses: own.map(address => ({ address, port: number })) }
}

/** An entry before it is known what the others have. */
type Draft = Omit<Entry, 'key' | 'families'>

/** Throws `BadField`. */
function parseEntry(line: number, text: string, context: Context): Draft {
  const [first, type, transport, wait, owner, path, ...args] = split(text)
  if (first === '.include') throw new BadField('line', text, 'an entry (.include is not supported)')
  if (path === undefined)
    throw new BadField('line', text, 'service, socket type, protocol, wait/nowait, user and program')
  if (context.policyLine > 0)
    throw new BadField('line', text, `no IPsec policy in force, as that of line ${context.policyLine} is`)
  const socketType = parseField('socket type', type!, keyword('stream', 'dgram'))
  const protocol = parseField('protocol', transport!, keyword(...protocols))
  const fitting = protocol.startsWith('udp') ? 'dgram' : 'stream'
  if (socketType !== fitting) throw new BadField('socket type', type!, `${fitting} for ${protocol}`)
  const place = parsePlace(first!, protocol, context)
  const limits = parseField('wait/nowait', wait!, waitAndLimit)
  const rights = parseField('user', owner!, userAndGroup)
  const entry = { line, socketType, protocol, ...place, ...limits, ...rights }
  const stream = socketType === 'stream'
  const bad = (expected: string) => new BadField('wait/nowait', wait!, expected)
  if (place.tcpmux && limits.wait) throw bad('nowait for a service of tcpmux')
  if (path !== 'internal' || place.tcpmux) {
    if (!path.startsWith('/'))
      throw new BadField('program', path, `an absolute path${place.tcpmux ? '' : ' or internal'}`)
    if (!stream && !limits.wait) throw bad('wait (or one datagram starts the program for ever)')
    return { ...entry, program: { kind: 'exec', path, argv: args.length > 0 ? args : [path] } }
  }
  if (stream && limits.wait) throw bad('nowait for an internal service')
  if (args.length > 1)
    throw new BadField('arguments', args.join(' '), 'at most the name of the internal service')
  const named = args[0] === undefined || args[0] === 'internal' ? place.service : args[0]
  const name = parseField('internal service', named, keyword(...(stream ? streamServices : datagramServices)))
  return { ...entry, wait: false, program: { kind: 'internal', name } }
}

/** Each entry or `#@` line with its number; continuations are joined to it by \n. */
function* textsOf(file: string): Generator<{ line: number; text: string }> {
  let open: { line: number; text: string } | undefined
  for (const [index, text] of file.split(/\r?\n/).entries()) {
    const comment = /^[ \t]*(#|$)/.test(text) && !text.startsWith('#@')
    if (open && !comment && /^[ \t]/.test(text)) open.text += `\n${text}`
    else {
      if (open) yield open
      open = comment ? undefined : { line: index + 1, text }
    }
  }
  if (open) yield open
}

const socketOf = ({ socketType }: Draft, address: SocketAddress) =>
  `${socketType === 'stream' ? 'tcp' : 'udp'} ${formatAddress(address)}`

/** One name for each socket, equal for equal ones. */
function socketsOf(entry: Draft): readonly string[] {
  if (entry.path !== undefined) return [`unix ${entry.path}`]
  if (entry.tcpmux) return [`tcpmux ${entry.tcpmux.name}`]
  return entry.addresses.map(address => socketOf(entry, address))
}

/**
 * inetd.conf in two lists, both in the order of lines: a bad entry is a problem, and the others work. Never throws, unless
 * `lookUp` does. `file` is only what problems call it.
 */
export function parseInetdConf(
  text: string,
  file: string,
  lookUp: LookUp,
): { readonly entries: readonly Entry[]; readonly problems: readonly Problem[] } {
  const context: Context = { lookUp, inherited: { line: 0, addresses: ANY }, policyLine: 0 }
  const problems: Problem[] = []
  const attempt = (line: number, work: () => void) => {
    try {
      work()
    } catch (error) {
      if (!(error instanceof BadField)) throw error
      problems.push({ file, line, field: error.field, message: `${file}:${line}: ${error.message}` })
    }
  }

  const drafts: Draft[] = []
  for (const { line, text: written } of textsOf(text))
    attempt(line, () => {
      const alone = /^([^/#]*):\s*$/.exec(written)?.[1]
      if (alone !== undefined) context.inherited = { line }
      if (written.length > MAX_ENTRY_LENGTH)
        throw new BadField('line', written, `at most ${MAX_ENTRY_LENGTH} characters`)
      if (/(?![\t\n])\p{Cc}|\uFFFD/u.test(written))
        throw new BadField('line', written, 'UTF-8 text without control characters')
      if (alone !== undefined)
        context.inherited = { line, addresses: parseField('address', alone.trim(), listenAddresses) }
      else if (!written.startsWith('#@')) drafts.push(parseEntry(line, written, context))
      else {
        // ipsec_set_policy(3): a policy begins with its direction. Anything else is no policy, and "#@" alone ends one.
        context.policyLine = /^#@\s*(in|out)\b/.test(written) ? line : 0
        if (context.policyLine > 0) throw new BadField('line', written, 'no IPsec policy (not supported)')
      }
    })

  const claimed = new Set(drafts.filter(({ protocol }) => /^...6$/.test(protocol)).flatMap(socketsOf))
  const lines = new Map<string, number>()
  const entries: Entry[] = []
  for (const draft of drafts)
    attempt(draft.line, () => {
      const plain = draft.protocol === 'tcp' || draft.protocol === 'udp'
      const left = draft.addresses.filter(address => !(plain && claimed.has(socketOf(draft, address))))
      const addresses = left.length > 0 ? left : draft.addresses
      const sockets = socketsOf({ ...draft, addresses })
      const taken = sockets.find(socket => lines.has(socket))
      if (taken !== undefined)
        throw new BadField(
          'service',
          draft.service,
          `another socket (${taken}: see line ${lines.get(taken)})`,
        )
      for (const socket of sockets) lines.set(socket, draft.line)
      const families = [...new Set(addresses.map(({ address }) => (isIpv6(address) ? 6 : 4)))]
      entries.push({ key: sockets.join(', '), ...draft, addresses, families })
    })
  return { entries, problems: problems.sort((a, b) => a.line - b.line) }
}

/** Whether a file that is read again says the same of it; where it stands does not matter. */
export const sameEntry = (a: Entry, b: Entry): boolean =>
  JSON.stringify({ ...a, line: 0 }) === JSON.stringify({ ...b, line: 0 })

/** services(5): `name port/protocol alias… # comment`. The first line of a name is what counts; lines of another form do not. */
export function parseServices(text: string): LookUp {
  const ports = new Map<string, number>()
  for (const line of text.split('\n')) {
    const [name, at = '', ...aliases] = line.replace(/#.*/, '').trim().split(/\s+/)
    const [, number, protocol] = /^(\d{1,5})\/(tcp|udp)$/.exec(at) ?? []
    if (Number(number) >= 1 && Number(number) <= 65535)
      for (const key of [name, ...aliases].map(known => `${known}/${protocol}`))
        if (!ports.has(key)) ports.set(key, Number(number))
  }
  return (name, protocol) => ports.get(`${name}/${protocol}`)
}

function describePlace({ path, tcpmux, addresses, families, socketType }: Entry): string {
  if (path !== undefined) return `unix socket ${path}`
  if (tcpmux) return `tcpmux service ${tcpmux.name}`
  const any = addresses.every(({ address }) => ANY.includes(address))
  const every = families.length > 1 ? 'every address' : `every IPv${families[0]} address`
  const where = any ? every : addresses.map(({ address }) => address).join(', ')
  return `${socketType === 'stream' ? 'TCP' : 'UDP'} port ${addresses[0]!.port} on ${where}`
}

/** What happens where, in plain words. */
export function describe(entry: Entry): string {
  const { program, socketType, wait, user, group, maxPerMinute, tcpmux } = entry
  const place = describePlace(entry)
  if (program.kind === 'internal') return `${place}: ${program.name}, answered inside inetd without a program`
  const who = `as ${user}${group === undefined ? '' : `:${group}`}`
  // Services of tcpmux count for its own limit.
  const most = maxPerMinute === Number.POSITIVE_INFINITY || tcpmux ? '' : `, at most ${maxPerMinute} a minute`
  const what = !wait
    ? `a new ${program.path} for each connection${tcpmux?.plus ? `, after a "+" from inetd` : ''}`
    : socketType === 'dgram'
      ? `${program.path} gets the socket while a datagram waits, one at a time`
      : `${program.path} gets the listening socket and accepts by itself, one at a time`
  return `${place}: ${what}, ${who}${most}`
}
