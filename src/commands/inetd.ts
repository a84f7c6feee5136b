/** `roundelay inetd`: the internet superserver. */
import { readFileSync } from 'node:fs'
import { userInfo } from 'node:os'
import { formatAddress } from '../address.ts'
import { systemClock } from '../clock.ts'
import { UsageError } from '../errors.ts'
import { describe, type Entry, type LookUp, parseInetdConf, parseServices } from '../inetd/conf.ts'
import type { Configured, Inetd } from '../inetd/inetd.ts'
import { type Account, findAccount } from '../inetd/users.ts'
import { startAdmin } from '../ops/admin.ts'
import { createLog } from '../ops/log.ts'
import { Metrics, type Sample } from '../ops/metrics.ts'
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
  const { Inetd } = await import('../inetd/inetd.ts')
  const inetd: Inetd = new Inetd({
    protocols: protocolNames.map(name => protocol(name, systemClock)),
    maxChildren: options.maxChildren,
    maxPerIp: options.maxPerIp || Infinity,
    ratePerIp: options.ratePerIp || Infinity,
    maxConnections: options.maxConnections,
    idleMs: options.idleTimeout,
    clock: systemClock,
    say: (level, message, details) => log[level](details, message),
  })
  const apply = async ({ configured, problems }: Read) => {
    for (const message of problems) log.error(message)
    await inetd.apply(configured)
    if (inetd.closing) return
    log.info({ files, services: configured.length, bad: problems.length }, 'configuration read')
  }
  const services = () => inetd.rows()
  // One after the other: the file that was written last is the one that counts.
  const { promise: begun, resolve: begin } = Promise.withResolvers<void>()
  let applying = begun.then(() => apply(first))
  let applied = false
  process.on('SIGHUP', () => {
    applying = applying.then(async () => {
      try {
        await apply(readConfiguration(files))
      } catch (err) {
        log.error({ err }, 'cannot read the configuration: everything stays as it is')
      }
    })
  })
  const admin = await startAdmin({
    listen: options.admin,
    log,
    metrics: new Metrics('inetd', version),
    samples: () => samples(inetd),
    documents: { '/state': () => ({ files, services: services() }) },
    notReady: () => (applied ? undefined : 'starting'),
    connections: () => services().reduce((sum, { running }) => sum + running, 0),
    close: deadline => inetd.close(deadline),
    // Its clients are not sent here by answers that it could leave first.
    drainMs: 0,
    graceMs: options.drain,
    exit,
    takeSignals,
  })
  begin()
  await applying
  applied = true
  log.info({ admin: formatAddress(admin), version }, 'inetd ready')
}

interface Read {
  readonly configured: readonly Configured[]
  /** What is wrong, as whole lines. */
  readonly problems: readonly string[]
  /** All entries and problems in plain words, in the order of the files. */
  readonly lines: readonly { readonly line: number; readonly text: string }[]
}

/** At the start a file that cannot be read is the user's to mend. */
function readOrExplain(files: readonly string[], verifyOnly = false): Read {
  try {
    return readConfiguration(files, verifyOnly)
  } catch (error) {
    throw new UsageError(`Cannot read the configuration: ${(error as Error).message}`)
  }
}

/** `verifyOnly`: it need not be for us to start the programs. */
function readConfiguration(files: readonly string[], verifyOnly = false): Read {
  const lookUp = servicesDatabase()
  const [passwd, group] = [readIfAny('/etc/passwd'), readIfAny('/etc/group')]
  const known = new Map<string, string>()
  const read = files.map(file => {
    const { entries, problems } = parseInetdConf(
      readFileSync(file, 'utf8').replace(/^\uFEFF/, ''),
      file,
      lookUp,
    )
    const lines = problems.map(({ line, message }) => ({ line, text: message, bad: true }))
    const configured: Configured[] = []
    for (const entry of entries) {
      const at = `${file}:${entry.line}`
      try {
        const sockets = entry.key.split(', ')
        const taken = sockets.find(socket => known.has(socket))
        if (taken) throw new Error(`${known.get(taken)} has the socket ${taken} already`)
        configured.push({ entry, account: accountOf(entry, passwd, group, verifyOnly) })
        for (const socket of sockets) known.set(socket, at)
        lines.push({ line: entry.line, text: `${at}: ${describe(entry)}`, bad: false })
      } catch (error) {
        lines.push({
          line: entry.line,
          text: `${at}: Cannot run ${entry.service}: ${(error as Error).message}`,
          bad: true,
        })
      }
    }
    return { configured, lines: lines.sort((a, b) => a.line - b.line) }
  })
  const lines = read.flatMap(({ lines }) => lines)
  return {
    configured: read.flatMap(({ configured }) => configured),
    problems: lines.filter(({ bad }) => bad).map(({ text }) => text),
    lines,
  }
}

/** Undefined for whoever runs inetd; throws an Error for a user that does not exist or that we may not become. */
function accountOf(entry: Entry, passwd: string, group: string, verifyOnly: boolean): Account | undefined {
  if (entry.program.kind === 'internal') return undefined
  const self = userInfo()
  if (entry.user === self.username && entry.group === undefined) return undefined
  const account = findAccount(passwd, group, entry.user, entry.group)
  if (account.uid === self.uid && account.gid === self.gid) return undefined
  if (self.uid !== 0 && !verifyOnly)
    throw new Error(`only root may start programs as ${entry.user}, and this is ${self.username}`)
  return account
}

/** Slim images have no database: then the names of our own services stand. */
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

const samples = (inetd: Inetd): Sample[] =>
  inetd.rows().flatMap(({ service, sockets, state, started, running, failed, refused }): Sample[] => [
    ['roundelay_inetd_started_total', { service, sockets }, started],
    ['roundelay_inetd_running', { service, sockets }, running],
    ['roundelay_inetd_failed_total', { service, sockets }, failed],
    ['roundelay_inetd_refused_total', { service, sockets }, refused],
    ['roundelay_inetd_service_up', { service, sockets }, state === 'off' ? 0 : 1],
  ])
