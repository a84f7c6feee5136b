/** `roundelay inetd`: the internet superserver. */
import { readdirSync, readFileSync } from 'node:fs'
import { userInfo } from 'node:os'
import { formatAddress } from '../address.ts'
import { systemClock } from '../clock.ts'
import { UsageError } from '../errors.ts'
import { type LookUp, parseInetdConf, parseServices } from '../inetd/conf.ts'
import { describe, type Entry, leaveToLast } from '../inetd/entry.ts'
import type { Inetd } from '../inetd/inetd.ts'
import type { Configured } from '../inetd/service.ts'
import { type Account, findAccount } from '../inetd/users.ts'
import { serveHttp } from '../ops/http.ts'
import { createLog } from '../ops/log.ts'
import { Metrics, type Sample } from '../ops/metrics.ts'
import { endOnSignals, endSignalsOfInetd, Shutdown } from '../ops/shutdown.ts'
import { protocol, protocolNames } from '../protocols.ts'
import { whyUnavailable } from '../sys/available.ts'
import type { Run } from './options.ts'

const DEFAULT_FILE = '/etc/inetd.conf'

export const run: Run<'inetd'> = async (options, args, { version, exit, takeSignals }) => {
  const files = args.length > 0 ? args : [DEFAULT_FILE]
  if (options.verify) {
    const { lines, problems } = readOrExplain(files, true)
    if (lines.length === 0) process.stdout.write('no services\n')
    for (const { text } of lines) process.stdout.write(`${text}\n`)
    if (problems.length > 0) exit(1)
    return
  }
  const why = await whyUnavailable()
  if (why) throw new UsageError(`Cannot run inetd here: it needs Linux' socket API, and ${why}`)
  const first = readOrExplain(files)
  const log = await createLog({ level: options.logLevel, name: 'inetd' })
  const { startInetd } = await import('../inetd/inetd.ts')
  await hideDescriptorsFromPrograms()
  // One file after the other: the version that was written last is the one that counts.
  const { promise: begun, resolve: begin } = Promise.withResolvers<void>()
  let applying = begun.then(() => apply(first))
  let applied = false
  takeSignals(undefined, ['SIGHUP'])
  process.on('SIGHUP', () => {
    applying = applying.then(async () => {
      try {
        await apply(readConfiguration(files))
      } catch (err) {
        log.error({ err }, 'cannot read the configuration: everything stays as it is')
      }
    })
  })
  const inetd = await startInetd({
    protocol: name => protocol(name, systemClock),
    maxChildren: options.maxChildren,
    maxPerIp: options.maxPerIp || Infinity,
    ratePerIp: options.ratePerIp || Infinity,
    maxConnections: options.maxConnections,
    idleMs: options.idleTimeout,
    clock: systemClock,
    say: (level, message, details) => log[level](details, message),
  })
  const apply = async ({ configured, problems, warnings }: Read) => {
    for (const message of problems) log.error(message)
    for (const message of warnings) log.warn(message)
    await inetd.apply(configured)
    if (inetd.closing) return
    log.info({ files, services: configured.length, bad: problems.length }, 'configuration read')
  }
  const services = () => inetd.rows()
  const shutdown = new Shutdown({
    log,
    close: deadline => inetd.close(deadline),
    // No DNS answers send clients here, so there are no caches that must forget it first.
    drainMs: 0,
    graceMs: options.drain,
    exit,
  })
  const metrics = new Metrics('inetd', version)
  const site = {
    draining: () => shutdown.draining,
    notReady: () => (applied ? undefined : 'starting'),
    connections: () => services().reduce((sum, { running }) => sum + running, 0),
    metrics: () => metrics.expose(samples(inetd)),
    documents: { '/state': () => ({ files, services: services() }) },
  }
  const admin = await serveHttp(options.admin, site, log)
  endOnSignals(admin.server, shutdown, log, takeSignals, endSignalsOfInetd)
  begin()
  await applying
  applied = true
  log.info({ admin: formatAddress(admin.address), version }, 'inetd ready')
}

interface Read {
  readonly configured: readonly Configured[]
  /** One sentence for each mistake. */
  readonly problems: readonly string[]
  /** One sentence for each line that works, but probably not as it is meant. */
  readonly warnings: readonly string[]
  /** All entries, problems and warnings in words, in the order of the files. */
  readonly lines: readonly Line[]
}

interface Line {
  readonly file: number
  readonly line: number
  readonly kind: 'entry' | 'problem' | 'warning'
  readonly text: string
}

/** At the start, a file that cannot be read is the user's mistake. */
function readOrExplain(files: readonly string[], verifyOnly = false): Read {
  try {
    return readConfiguration(files, verifyOnly)
  } catch (error) {
    throw new UsageError(`Cannot read the configuration: ${(error as Error).message}`)
  }
}

/** `verifyOnly`: entries are accepted even if this user may not start their programs. */
function readConfiguration(files: readonly string[], verifyOnly = false): Read {
  const lookUp = servicesDatabase()
  const lines: Line[] = []
  const runnable: { readonly file: number; readonly entry: Entry; readonly at: string }[] = []
  for (const [file, path] of files.entries()) {
    const text = readFileSync(path, 'utf8').replace(/^\uFEFF/, '')
    const { entries, problems, warnings } = parseInetdConf(text, path, lookUp)
    for (const { line, message } of problems) lines.push({ file, line, kind: 'problem', text: message })
    for (const { line, message } of warnings) lines.push({ file, line, kind: 'warning', text: message })
    for (const entry of entries) {
      const at = `${path}:${entry.line}`
      try {
        accountOf(entry, verifyOnly)
        runnable.push({ file, entry, at })
      } catch (error) {
        const text = `${at}: Cannot run ${entry.service}: ${(error as Error).message}`
        lines.push({ file, line: entry.line, kind: 'problem', text })
      }
    }
  }
  const configured: Configured[] = []
  for (const [i, { left, lost }] of leaveToLast(runnable.map(({ entry }) => entry)).entries()) {
    const { file, entry, at } = runnable[i]!
    for (const { name, to } of lost.slice(0, 1)) {
      const text = `${at}: Cannot run ${entry.service}: ${runnable[to]!.at} is used for the socket ${name}`
      lines.push({ file, line: entry.line, kind: 'problem', text })
    }
    if (!left) continue
    configured.push({ entry: left, at, account: () => accountOf(left) })
    lines.push({ file, line: entry.line, kind: 'entry', text: `${at}: ${describe(left)}` })
  }
  const textsOf = (kind: Line['kind']) => lines.filter(line => line.kind === kind).map(({ text }) => text)
  lines.sort((a, b) => a.file - b.file || a.line - b.line)
  return { configured, problems: textsOf('problem'), warnings: textsOf('warning'), lines }
}

/**
 * Undefined for the user of inetd. Throws an Error if the user does not exist or we may not run programs as
 * them.
 */
function accountOf(entry: Entry, verifyOnly = false): Account | undefined {
  if (entry.kind === 'internal' || entry.kind === 'multiplexer') return undefined
  const self = userInfo()
  if (entry.user === self.username && entry.group === undefined) return undefined
  const account = findAccount(readIfAny('/etc/passwd'), readIfAny('/etc/group'), entry.user, entry.group)
  if (account.uid === self.uid && account.gid === self.gid) return undefined
  if (self.uid !== 0 && !verifyOnly)
    throw new Error(`only root may start programs as ${entry.user}, and this is ${self.username}`)
  return account
}

/** Slim images have no /etc/services: the names of the internal services are always known. */
function servicesDatabase(): LookUp {
  const fromFile = parseServices(readIfAny('/etc/services'))
  const own = new Map([
    ...protocolNames.map(name => [name as string, protocol(name, systemClock).port] as const),
    ['tcpmux', 1],
  ])
  return (name, protocol) => fromFile(name, protocol) ?? own.get(name)
}

function readIfAny(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

/** The kernel passes inherited descriptors on to programs unless they are close-on-exec. */
async function hideDescriptorsFromPrograms(): Promise<void> {
  const { closeOnExec } = await import('../sys/libc.ts')
  for (const fd of readdirSync('/proc/self/fd').map(Number)) if (fd > 2) closeOnExec(fd)
}

const samples = (inetd: Inetd): Sample[] =>
  inetd.rows().flatMap(({ service, sockets, state, started, running, failed, refused }): Sample[] => [
    ['roundelay_inetd_started_total', { service, sockets }, started],
    ['roundelay_inetd_running', { service, sockets }, running],
    ['roundelay_inetd_failed_total', { service, sockets }, failed],
    ['roundelay_inetd_refused_total', { service, sockets }, refused],
    ['roundelay_inetd_service_up', { service, sockets }, state === 'off' ? 0 : 1],
  ])
