import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { type VerbName, verbs } from '../src/commands/options.ts'
import { resolveOptions } from '../src/commands/resolve-options.ts'
import { UsageError } from '../src/errors.ts'
import { portOf, run, start } from './support/process.ts'

const options = { timeout: 30_000 }
const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))

const wrongUse: readonly [args: readonly string[], env: NodeJS.ProcessEnv, named: readonly string[]][] = [
  [['echo', '--no-such-flag'], {}, ["unknown option '--no-such-flag'"]],
  [['echo', '--tied', '--tiedd'], {}, ["unknown option '--tiedd'"]],
  [['ecko'], {}, ["unknown command 'ecko'"]],
  [['--no-such-flag'], {}, ["unknown option '--no-such-flag'"]],
  [['send', '127.0.0.1'], {}, ["missing required argument 'message'"]],
  [['check'], {}, ["missing required argument 'target'"]],
  [['check', 'udp://127.0.0.1:7', 'more'], {}, ['too many arguments', 'check']],
  [['echo', '--listen'], {}, ['--listen <ADDR:PORT>', 'argument missing']],
  [['dns', '--ttl', 'abc'], {}, ['Cannot parse --ttl "abc": expected an integer from 0 to 2147483647']],
  [['dns'], { ROUNDELAY_TTL: 'abc' }, ['Cannot parse ROUNDELAY_TTL "abc": expected an integer from 0']],
  [
    ['send', '127.0.0.1', 'x'],
    { ROUNDELAY_PORT: 'tcp://10.96.0.1:7007' },
    ['Cannot parse ROUNDELAY_PORT "tcp://10.96.0.1:7007"', 'enableServiceLinks: false'],
  ],
  [['dns', '--listen', '127.0.0.1:0'], {}, ['dns needs at least one --service NAME=SOURCE']],
]

const wrongValues: readonly [VerbName, flags: Record<string, unknown>, NodeJS.ProcessEnv, named: string][] = [
  ['echo', {}, { ROUNDELAY_DRAIN: '7' }, 'ROUNDELAY_DRAIN "7": expected a duration such as'],
  ['echo', { listen: [''] }, {}, '--listen "": expected ADDRESS:PORT'],
  ['echo', { listen: ['127.0.0.1:0', '7007'] }, {}, '--listen "7007": expected ADDRESS:PORT'],
  ['echo', {}, { ROUNDELAY_LISTEN: '127.0.0.1:0  nonsense' }, 'ROUNDELAY_LISTEN "nonsense": expected'],
  ['echo', {}, { ROUNDELAY_TIED: 'yes' }, 'ROUNDELAY_TIED "yes": expected one of true, false'],
  ['echo', { maxConnections: '0' }, {}, '--max-connections "0": expected an integer from 1 to 1000000'],
  ['up', { replicas: '201' }, {}, '--replicas "201": expected an integer from 1 to 200'],
  ['dns', { answers: '0' }, {}, '--answers "0": expected an integer from 1'],
  ['dns', {}, { ROUNDELAY_FAIL: 'half' }, 'ROUNDELAY_FAIL "half": expected one of open, closed'],
  ['dns', { checkInterval: '0s' }, {}, '--check-interval "0s": expected a duration above 0'],
  ['echo', { logLevel: 'loud' }, {}, '--log-level "loud": expected one of trace, debug'],
]

test(
  'an argument that cannot be parsed ends with exit code 2 and one line that names it',
  options,
  async () => {
    // Two at a time: the tests must pass on two cores.
    const left = [...wrongUse]
    const worker = async () => {
      for (let next = left.shift(); next; next = left.shift()) {
        const [args, env, named] = next
        const { code, stdout, stderr } = await run(args, env)
        assert.match(stderr, /^roundelay: [^\n]+\n$/, `${args}: one line`)
        for (const text of named) assert.ok(stderr.includes(text), `${args}: ${stderr} lacks ${text}`)
        assert.deepEqual({ code, stdout }, { code: 2, stdout: '' }, `${args}`)
      }
    }
    await Promise.all([worker(), worker()])
  },
)

test('a wrong value is named as the user gave it, with the flag or the variable it came from', () => {
  for (const [verb, flags, env, named] of wrongValues)
    assert.throws(
      () => resolveOptions(verb, flags, env),
      error => error instanceof UsageError && error.message.startsWith(`Cannot parse ${named}`),
      named,
    )
})

test('--help, of the program and of each verb, and --version are no errors', options, async () => {
  const { code, stdout, stderr } = await run(['--version'])
  assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: `${version}\n`, stderr: '' })
  const whole = await run(['--help'])
  assert.deepEqual([whole.code, whole.stderr], [0, ''])
  const helps = Object.keys(verbs).map(async verb => {
    assert.match(whole.stdout, new RegExp(`^ +${verb}\\b`, 'm'))
    const { code, stdout, stderr } = await run([verb, '--help'])
    assert.deepEqual([code, stderr], [0, ''], verb)
    assert.ok(stdout.startsWith(`Usage: roundelay ${verb} `), stdout)
  })
  await Promise.all(helps)
})

test('without a verb the help is on stderr and the exit code is 2', options, async () => {
  const { code, stdout, stderr } = await run([])
  assert.deepEqual([code, stdout], [2, ''])
  assert.match(stderr, /^Usage: roundelay /)
})

test(
  'a flag goes before the environment, the environment before the default, and empty is not set',
  options,
  async t => {
    const base = ['echo', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0']
    const nameOf = async (args: string[], env: NodeJS.ProcessEnv) => {
      const ready = await start(t, [...base, ...args], env).line('echo replica ready')
      const response = await fetch(`http://127.0.0.1:${portOf(ready.admin)}/whoami`)
      return ((await response.json()) as { name: string }).name
    }
    const env = { ROUNDELAY_NAME: 'environment', POD_NAME: 'default' }
    assert.equal(await nameOf(['--name', 'flag'], env), 'flag')
    assert.equal(await nameOf([], env), 'environment')
    assert.equal(await nameOf([], { ...env, ROUNDELAY_NAME: '' }), 'default')
  },
)

test('a list in the environment is split at white space, and a flag replaces all of it', options, async t => {
  const env = {
    ROUNDELAY_LISTEN: ' 127.0.0.1:0\n[::1]:0 ',
    ROUNDELAY_ADMIN: '127.0.0.1:0',
    ROUNDELAY_DRAIN: '',
  }
  const listen = async (args: string[]) =>
    (await start(t, ['echo', ...args], env).line('echo replica ready')).listen as string[]
  assert.deepEqual(
    (await listen([])).map(text => text.replace(/\d+$/, '')),
    ['127.0.0.1:', '[::1]:'],
  )
  assert.match((await listen(['--listen', '127.0.0.2:0'])).join(' '), /^127\.0\.0\.2:\d+$/)
})
