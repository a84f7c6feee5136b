/**
 * Parses /etc/inetd.conf into entries and /etc/services into a look-up. Pure. The format is that of inetd(8)
 * of Debian (openbsd-inetd), OpenBSD, NetBSD, FreeBSD and GNU inetutils, and of services(5). Where those
 * disagree:
 * - `tcp` and `udp` mean both families on Debian, and IPv4 elsewhere, where files have a second line for
 *   `tcp6`. Here they mean both, but an IPv6 address is left to the line for `tcp6` or `udp6` that names it
 *   too.
 * - `tcp6` means IPv6 only, but both families on GNU. `tcp46` means both in one IPv6 socket; here in two, as
 *   for `tcp`.
 * - MAX is starts a minute: 256 on Debian, OpenBSD and FreeBSD, 40 on NetBSD and GNU. Here 256, after "." or
 *   NetBSD's ":"; 0 means no limit, as for FreeBSD's -R. FreeBSD's "/MAX" limits children at a time and is
 *   refused.
 * - `dgram nowait` with a program is in the manuals of OpenBSD and NetBSD; BUGS of Debian's describes the
 *   consequences. It is refused, as on FreeBSD and GNU. Internal services accept either word over UDP, and
 *   `nowait` over TCP.
 * - OpenBSD, NetBSD and GNU look host names up. They are refused here, since DNS at that moment would decide
 *   where we listen.
 * - Only NetBSD has quotes, around whole arguments; here they join words anywhere, as in a shell. "\" does
 *   not escape.
 * - After `internal` FreeBSD writes the name of the service, the others `internal`. Both are accepted, so
 *   that a service given by its port can have a name, too.
 * - A line that begins with white space continues the entry above it. All BSDs do this, but only BUGS of
 *   NetBSD's mentions it. A line whose first other character is "#" is a comment all the same, and ends the
 *   entry, as an empty line does.
 * - What only some of them have is refused: RPC, faithd, IPsec, buffer sizes, accept filters, login classes,
 *   `.include`, key-values.
 */

import { isIpv6, portNumber, socketAddress } from '../address.ts'
import { Expected } from '../errors.ts'
import {
  type Draft,
  type Entry,
  type InetSockets,
  internalNames,
  leaveToLast,
  type SocketProtocol,
  socketName,
  socketNames,
  socketProtocols,
  type UnixSocket,
  WILDCARDS,
} from './entry.ts'

/** The name of the multiplexer, which only TCP has. */
const MULTIPLEXER = 'tcpmux'

/** What is wrong with an entry. The other entries work. */
export interface Problem {
  readonly file: string
  readonly line: number
  /** As inetd(8) names it: `service`, `socket type`, …; `line` where the whole line is wrong. */
  readonly field: string
  /** A whole sentence: `inetd.conf:12: Cannot parse protocol "sctp": expected one of tcp, udp, …` */
  readonly message: string
}

/** A line that works, but probably not as it is meant. */
export interface Warning {
  readonly line: number
  /** A whole sentence, as that of a problem. */
  readonly message: string
}

/** The port of a service, by its name or an alias. */
export type LookUp = (name: string, protocol: 'tcp' | 'udp') => number | undefined

const MAX_PER_MINUTE = 256

/**
 * Characters of an entry with its continuations: enough for any command line, and a bound for files of
 * another kind.
 */
const MAX_ENTRY_LENGTH = 8192

/** A continuation line that GNU's inetd would read as an entry of its own: service, type, protocol, wait. */
const LOOKS_LIKE_ENTRY = /^\s+\S+\s+(stream|dgram|raw|rdm|seqpacket)\s+\S+\s+(no)?wait\S*\s/

/** unix(7): the length of `sun_path` on Linux, without its final zero. */
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

/** What to add to the message about a text that another inetd understands. */
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

/** Parses `*`, or addresses separated by commas. Duplicates are removed. */
function listenAddresses(text: string): readonly string[] {
  if (text === '*') return WILDCARDS
  try {
    // Debian's inetds accept IPv6 addresses with and without brackets.
    const bracketed = (part: string) => (isIpv6(part) && !part.startsWith('[') ? `[${part}]` : part)
    return [...new Set(text.split(',').map(part => socketAddress(`${bracketed(part)}:0`).address))]
  } catch {
    throw new Expected('* or IP addresses such as 127.0.0.1,[::1] (names are not looked up)')
  }
}

function waitAndLimit(text: string): { wait: boolean; maxPerMinute: number } {
  const match = /^(no)?wait(?:[.:](\d{1,9}))?$/.exec(text)
  if (!match) throw new Expected(`wait or nowait, and .MAX for starts a minute${hint(text)}`)
  return { wait: !match[1], maxPerMinute: Number(match[2] ?? MAX_PER_MINUTE) || Number.POSITIVE_INFINITY }
}

/** The name of a user may contain "." only if ":" is the separator. */
function userAndGroup(text: string): { user: string; group?: string } {
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

/** What earlier lines of the file say about the entries after them. */
interface Context {
  readonly lookUp: LookUp
  /**
   * The last line that is only an address, and its addresses: the default of the entries after it. If that
   * line is bad it has no addresses, and entries without addresses of their own are refused: they must not
   * listen anywhere else.
   */
  defaultAddresses: { readonly line: number; readonly addresses?: readonly string[] }
  /** The line of the IPsec policy in force, under which no entry may serve; 0 if there is none. */
  policyLine: number
}

/** A service of the multiplexer, or the sockets of any other. */
type ServiceField =
  | { readonly kind: 'tcpmux'; readonly service: string; readonly name: string; readonly plus: boolean }
  | { readonly kind: 'sockets'; readonly service: string; readonly sockets: InetSockets | UnixSocket }

/** Throws `BadField`. */
function parseService(text: string, protocol: SocketProtocol, context: Context): ServiceField {
  // A path may contain ":", and an address never contains "/".
  const [, prefix, service = ''] = /^(?:([^/]*):)?(.*)$/s.exec(text) ?? []
  if (protocol === 'unix') return { kind: 'sockets', service, sockets: unixSocket(service) }
  const [, plus, name] = /^tcpmux\/(\+?)(.+)$/.exec(service) ?? []
  if (name !== undefined) {
    if (protocol !== 'tcp') throw new BadField('protocol', protocol, 'tcp for a service of tcpmux')
    if (prefix !== undefined)
      throw new BadField('address', prefix, 'none for a service of tcpmux: it has no socket of its own')
    const lowerCase = name.toLowerCase()
    if (lowerCase === 'help')
      throw new BadField('service', service, 'another name: tcpmux itself answers to help')
    return { kind: 'tcpmux', service, name: lowerCase, plus: plus === '+' }
  }
  return { kind: 'sockets', service, sockets: inetSockets(service, prefix, protocol, context) }
}

function unixSocket(path: string): UnixSocket {
  // inetd(8) of OpenBSD: addresses before the path are "meaningless and ignored".
  const octets = new TextEncoder().encode(path).length
  if (path.startsWith('/') && octets <= MAX_PATH_OCTETS) return { family: 'unix', path }
  throw new BadField('service', path, `an absolute path of at most ${MAX_PATH_OCTETS} octets`)
}

function inetSockets(
  service: string,
  prefix: string | undefined,
  protocol: SocketProtocol,
  context: Context,
): InetSockets {
  const transport = protocol.startsWith('udp') ? 'udp' : 'tcp'
  const port = parseField('service', service, name => {
    if (/^\d+$/.test(name)) return portNumber(name)
    const found = context.lookUp(name, transport)
    if (found !== undefined) return found
    throw new Expected(`a port or the name of a ${transport.toUpperCase()} service`)
  })
  const all =
    prefix === undefined ? context.defaultAddresses.addresses : parseField('address', prefix, listenAddresses)
  if (!all)
    throw new BadField(
      'address',
      '',
      `one here, as the default of line ${context.defaultAddresses.line} is bad`,
    )
  const family = /^...([46])$/.exec(protocol)?.[1]
  const own = all.filter(address => !family || isIpv6(address) === (family === '6'))
  if (own.length === 0)
    throw new BadField('address', prefix ?? all.join(','), `an IPv${family} one for ${protocol}`)
  return { family: 'inet', transport, addresses: own.map(address => ({ address, port })) }
}

/** Throws `BadField`. */
function parseEntry(line: number, text: string, context: Context): Draft {
  const [serviceText, type, protocolText, waitText, owner, path, ...args] = split(text)
  if (serviceText === '.include') throw new BadField('line', text, 'an entry (.include is not supported)')
  if (path === undefined)
    throw new BadField('line', text, 'service, socket type, protocol, wait/nowait, user and program')
  if (context.policyLine > 0)
    throw new BadField('line', text, `no IPsec policy in force, as that of line ${context.policyLine} is`)
  const socketType = parseField('socket type', type!, keyword('stream', 'dgram'))
  const protocol = parseField('protocol', protocolText!, keyword(...socketProtocols))
  const fitting = protocol.startsWith('udp') ? 'dgram' : 'stream'
  if (socketType !== fitting) throw new BadField('socket type', type!, `${fitting} for ${protocol}`)
  const { service, ...where } = parseService(serviceText!, protocol, context)
  const { wait, maxPerMinute } = parseField('wait/nowait', waitText!, waitAndLimit)
  const common = { line, service, protocol, maxPerMinute, ...parseField('user', owner!, userAndGroup) }
  const program = { path, argv: args.length > 0 ? args : [path] }
  const mustSay = (expected: string) => new BadField('wait/nowait', waitText!, expected)
  if (where.kind === 'tcpmux') {
    if (wait) throw mustSay('nowait for a service of tcpmux')
    if (!path.startsWith('/')) throw new BadField('program', path, 'an absolute path')
    return { ...common, ...where, program }
  }
  const { sockets } = where
  if (path !== 'internal') {
    if (!path.startsWith('/')) throw new BadField('program', path, 'an absolute path or internal')
    if (fitting === 'dgram' && !wait) throw mustSay('wait (or one datagram starts the program for ever)')
    return { ...common, kind: 'exec', sockets, wait, program }
  }
  if (fitting === 'stream' && wait) throw mustSay('nowait for an internal service')
  if (args.length > 1)
    throw new BadField('arguments', args.join(' '), 'at most the name of the internal service')
  const written = args[0] === undefined || args[0] === 'internal' ? service : args[0]
  const names = fitting === 'stream' ? ([...internalNames, MULTIPLEXER] as const) : internalNames
  const name = parseField('internal service', written, keyword(...names))
  return name === MULTIPLEXER
    ? { ...common, kind: 'multiplexer', sockets }
    : { ...common, kind: 'internal', name, sockets }
}

/** Yields each entry or `#@` line with its number. Continuation lines are joined to it by \n. */
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

/**
 * Names of sockets that `tcp6` and `udp6` lines ask for: a line for plain `tcp` or `udp` leaves those to
 * them.
 */
const claimedBy6 = (drafts: readonly Draft[]): ReadonlySet<string> =>
  new Set(drafts.filter(({ protocol }) => /^...6$/.test(protocol)).flatMap(socketNames))

/** Without the addresses that belong to lines for one family, unless none would be left. */
function withoutClaimed(draft: Draft, claimed: ReadonlySet<string>): Draft {
  const plain = draft.protocol === 'tcp' || draft.protocol === 'udp'
  if (!plain || draft.kind === 'tcpmux' || draft.sockets.family === 'unix') return draft
  const { sockets } = draft
  const left = sockets.addresses.filter(address => !claimed.has(socketName(sockets.transport, address)))
  return left.length > 0 ? { ...draft, sockets: { ...sockets, addresses: left } } : draft
}

/**
 * Parses inetd.conf into lists in the order of lines: a bad entry is a problem, and the others work. Of two
 * entries for one socket the last is used, as on OpenBSD and GNU. Throws only what `lookUp` throws. `file` is
 * the name that problems mention.
 */
export function parseInetdConf(
  text: string,
  file: string,
  lookUp: LookUp,
): {
  readonly entries: readonly Entry[]
  readonly problems: readonly Problem[]
  readonly warnings: readonly Warning[]
} {
  const context: Context = { lookUp, defaultAddresses: { line: 0, addresses: WILDCARDS }, policyLine: 0 }
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
  const warnings: Warning[] = []
  for (const { line, text: written } of textsOf(text)) {
    for (const [i, continuation] of written.split('\n').slice(1).entries())
      if (LOOKS_LIKE_ENTRY.test(continuation)) {
        const at = line + 1 + i
        const message = `${file}:${at}: This line continues the entry of line ${line}, as it is indented`
        warnings.push({ line: at, message })
      }
    attempt(line, () => {
      const addressLine = /^([^/#]*):\s*$/.exec(written)?.[1]
      // Until its addresses turn out to be good.
      if (addressLine !== undefined) context.defaultAddresses = { line }
      if (written.length > MAX_ENTRY_LENGTH)
        throw new BadField('line', written, `at most ${MAX_ENTRY_LENGTH} characters`)
      if (/(?![\t\n])\p{Cc}|\uFFFD/u.test(written))
        throw new BadField('line', written, 'UTF-8 text without control characters')
      if (addressLine !== undefined) {
        const addresses = parseField('address', addressLine.trim(), listenAddresses)
        context.defaultAddresses = { line, addresses }
      } else if (!written.startsWith('#@')) drafts.push(parseEntry(line, written, context))
      else {
        // FreeBSD and NetBSD take any text for a policy; "#@" alone ends one.
        context.policyLine = written.slice(2).trim() === '' ? 0 : line
        if (context.policyLine > 0) throw new BadField('line', written, 'no IPsec policy (not supported)')
      }
    })
  }

  const claimed = claimedBy6(drafts)
  const entries: Entry[] = []
  const own = drafts.map(draft => withoutClaimed(draft, claimed))
  for (const [i, { left, lost }] of leaveToLast(own).entries()) {
    if (left) entries.push(left)
    const { line, service } = own[i]!
    attempt(line, () => {
      const [first] = lost
      if (!first) return
      const used = own[first.to]!.line
      throw new BadField('service', service, `another socket (${first.name}: line ${used} is used)`)
    })
  }
  return { entries, problems: problems.sort((a, b) => a.line - b.line), warnings }
}

/**
 * Parses services(5): `name port/protocol alias… # comment`. The first line that has a name decides. Lines of
 * another form are ignored.
 */
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
