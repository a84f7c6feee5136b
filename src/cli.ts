#!/usr/bin/env node
/** Runs the command that the arguments name. This is the only file that calls process.exit. */
import { readFileSync } from 'node:fs'
import { enableCompileCache } from 'node:module'
import { Argument, Command, CommanderError, Option } from 'commander'
import { formatAddress } from './address.ts'
import {
  type Context,
  envText,
  type Flag,
  type FlagName,
  flags,
  flagText,
  helpText,
  type Run,
  type VerbName,
  verbs,
} from './commands/options.ts'
import { resolveOptions } from './commands/resolve-options.ts'
import { compileCacheFolder } from './compile-cache.ts'
import { UsageError } from './errors.ts'

// Without a listener of ours, SIGUSR1 opens Node's inspector to every user of this machine.
for (const signal of ['SIGUSR1', 'SIGUSR2'] as const) process.on(signal, () => {})
// PID 1 of a container has no default action for signals: without a handler they would be ignored.
const die = (_signal: string, number: number) => process.exit(128 + number)
const endSignals = ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT'] as const
for (const signal of endSignals) process.on(signal, die)
const takeSignals: Context['takeSignals'] = (onSignal, signals = endSignals) => {
  for (const signal of signals) {
    process.off(signal, die)
    if (onSignal) process.on(signal, onSignal)
  }
}

const cacheFolder = compileCacheFolder()
if (cacheFolder !== undefined) enableCompileCache(cacheFolder)
// `roundelay send … | head -1`: a reader that has left has seen enough. Other lost output is a failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1))
const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))

/** Reasons why an address cannot be listened on. As with a wrong flag, the user must fix them. */
const BIND_CODES = new Set(['EADDRINUSE', 'EADDRNOTAVAIL', 'EACCES', 'EAFNOSUPPORT', 'EPERM'])

/** Each is loaded when it is called, so that `check` in a container does not load the DNS server. */
const commands: { readonly [V in VerbName]: () => Promise<{ run: Run<V> }> } = {
  up: () => import('./commands/up.ts'),
  echo: () => import('./commands/echo.ts'),
  dns: () => import('./commands/dns.ts'),
  inetd: () => import('./commands/inetd.ts'),
  send: () => import('./commands/send.ts'),
  load: () => import('./commands/load.ts'),
  check: () => import('./commands/check.ts'),
}

function buildVerb<V extends VerbName>(name: V): Command {
  const { summary, args, flags: defaults } = verbs[name]
  const verb = new Command(name).description(summary)
  for (const arg of args) verb.addArgument(new Argument(arg.name, arg.help))
  for (const [key, fallback] of Object.entries<string | null>(defaults))
    verb.addOption(buildOption(name, key as FlagName, fallback))
  const values = Object.keys(defaults).map(key => (flags as Record<string, Flag>)[key]?.value)
  if (values.includes('TIME')) verb.addHelpText('after', '\nTIME is a number with a unit: 500ms, 5s, 1m, 2h.')
  return verb.action(async () => {
    const options = resolveOptions(name, verb.opts(), process.env)
    const { run } = await commands[name]()
    await run(options, verb.args, { version, exit: code => process.exit(code), takeSignals })
  })
}

function buildOption(verb: VerbName, name: FlagName, fallback: string | null): Option {
  const { short, value, repeat }: Flag = flags[name]
  const long = `${short ? `${short}, ` : ''}${flagText(name)}`
  const shown = fallback === null || !value ? '' : ` [default: ${fallback}]`
  const again = repeat ? ', repeatable' : ''
  const option = new Option(
    value ? `${long} <${value}>` : long,
    `${helpText(verb, name)}${again}${shown} (${envText(name)})`,
  )
  return repeat
    ? option.argParser((text: string, before: string[] | undefined) => [...(before ?? []), text])
    : option
}

const program = new Command('roundelay')
  .description('A farm of TCP/UDP echo servers that take turns behind their own authoritative DNS server.')
  .version(version)
  .helpCommand(false)
  .addHelpText(
    'after',
    `
Start with: roundelay up
The flags of a command: roundelay up --help
Each flag can also be set by an environment variable: --ttl 5 is ROUNDELAY_TTL=5.`,
  )
for (const name of Object.keys(verbs) as VerbName[]) program.addCommand(buildVerb(name))
for (const command of [program, ...program.commands])
  command
    .exitOverride()
    .configureOutput({ outputError: () => {} })
    .configureHelp({ helpWidth: 100 })

try {
  await program.parseAsync()
} catch (error) {
  const [code, line] = explain(error as NodeJS.ErrnoException)
  if (line) process.stderr.write(`roundelay: ${line}\n`)
  if (code !== 0) process.exit(code)
}

/** One line and the exit code: 2 for what the user can fix, 1 for what fails at run time. */
function explain(
  error: NodeJS.ErrnoException & { address?: string; port?: number },
): [code: number, line: string] {
  if (error instanceof UsageError) return [2, error.message]
  if (error instanceof CommanderError) {
    if (error.exitCode === 0 || error.code === 'commander.help') return [error.exitCode && 2, '']
    return [2, error.message.replace(/^error: /, '').replace(/\s*\n\s*/g, ' ')]
  }
  if (BIND_CODES.has(error.code ?? '') && (error.syscall === 'listen' || error.syscall === 'bind'))
    return [2, explainBind(error)]
  return [1, error.message]
}

function explainBind({
  code,
  address,
  port,
}: NodeJS.ErrnoException & { address?: string; port?: number }): string {
  const where = formatAddress({ address: address ?? '', port: port ?? 0 })
  const reason = {
    EADDRINUSE: 'the port is in use',
    EACCES: 'ports below 1024 need a privilege here',
    EADDRNOTAVAIL: 'this machine has no such address',
  }[code ?? '']
  const alias = `; on macOS add it with: sudo ifconfig lo0 alias ${address}`
  const hint = code === 'EADDRNOTAVAIL' && address?.startsWith('127.') ? alias : ''
  return `Cannot listen on ${where}: ${reason ?? code}${hint}`
}
