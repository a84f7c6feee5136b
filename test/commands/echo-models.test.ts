import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { run as runEcho } from '../../src/commands/echo.ts'
import { resolveOptions } from '../../src/commands/resolve-options.ts'
import { compileCache } from '../../src/compile-cache.ts'
import { UsageError } from '../../src/errors.ts'
import { modelNames } from '../../src/servers/models.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { attempt } from '../conformance/clients.ts'
import { portOf, run, start } from '../support/process.ts'
import { udpClient } from '../support/udp.ts'

const listen = ['--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0'] as const
const unavailable = (await whyUnavailable()) ?? false
const options = { timeout: 60_000 }

const mistakes: [args: string, line: string][] = [
  [
    '--model prefork --udp',
    'Cannot serve UDP with --model prefork: the models for UDP are iterative, event-loop',
  ],
  [
    '--model concurrent --udp --tcp',
    'Cannot serve UDP with --model concurrent: the models for UDP are iterative, event-loop',
  ],
  [
    '--protocol qotd',
    'Cannot parse --protocol "qotd": expected one of echo, discard, chargen, daytime, time',
  ],
  [
    '--model iterative --tcp',
    'Cannot serve TCP with --model iterative: the models for TCP are concurrent, prefork, event-loop',
  ],
  [
    '--model forking',
    'Cannot parse --model "forking": expected one of iterative, concurrent, prefork, event-loop',
  ],
  ['--max-children 3', 'Cannot use --max-children with --model event-loop: it is for concurrent, prefork'],
  [
    '--model iterative --max-children 3',
    'Cannot use --max-children with --model iterative: it is for concurrent, prefork',
  ],
  [
    '--model prefork --max-connections 3',
    'Cannot use --max-connections with --model prefork: it is for event-loop',
  ],
  ['--model concurrent --start 3', 'Cannot use --start with --model concurrent: it is for prefork'],
  ['--model concurrent --min-spare 3', 'Cannot use --min-spare with --model concurrent: it is for prefork'],
  ['--max-spare 3', 'Cannot use --max-spare with --model event-loop: it is for prefork'],
  ['--max-requests 3', 'Cannot use --max-requests with --model event-loop: it is for prefork'],
  ['--model prefork --min-spare 7', 'Cannot keep --min-spare 7 with --max-spare 6: it must not be more'],
  [
    '--model prefork --min-spare 5 --max-children 4',
    'Cannot keep --min-spare 5 with --max-children 4: it must not be more',
  ],
  [
    '--model prefork --max-children 0',
    'Cannot parse --max-children "0": expected an integer from 1 to 10000',
  ],
  ['--model prefork --min-spare 0', 'Cannot parse --min-spare "0": expected an integer from 1 to 10000'],
]

/** Runs the verb in this process, which is much cheaper; it must fail before it opens anything. */
async function refused(args: string): Promise<string> {
  const flags: Record<string, string | true> = {}
  for (const [, dashed = '', value] of args.matchAll(/--([a-z-]+)(?: ([^-]\S*))?/g))
    flags[dashed.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase())] = value ?? true
  const fail = () => assert.fail(`${args} was accepted`)
  try {
    await runEcho(resolveOptions('echo', flags, {}), [], { version: '', exit: fail, takeSignals: fail })
  } catch (error) {
    assert.ok(error instanceof UsageError, String(error))
    return error.message
  }
  return fail()
}

test('what a model cannot do is refused, and the message names the models that can', options, async () => {
  for (const [args, line] of mistakes) assert.equal(await refused(args), line, args)
})

test('such a mistake is one line and exit code 2', options, async () => {
  const [args, line] = mistakes[0]!
  assert.deepEqual(await run(['echo', ...args.split(' '), ...listen]), {
    code: 2,
    stdout: '',
    stderr: `roundelay: ${line}\n`,
  })
})

test('a port in use is one line and exit code 2, whoever holds it', {
  ...options,
  skip: unavailable,
}, async t => {
  const first = await ready(t, [])
  const lines = await Promise.all(
    modelNames.map(model =>
      run(
        ['echo', '--model', model, '--listen', `127.0.0.1:${first.port}`, '--admin', '127.0.0.1:0'],
        compileCache(),
      ),
    ),
  )
  for (const line of lines)
    assert.deepEqual(line, {
      code: 2,
      stdout: '',
      stderr: `roundelay: Cannot listen on 127.0.0.1:${first.port}: the port is in use\n`,
    })
})

test(
  'variables that mean other models are no mistake: they may stand for other replicas',
  options,
  async t => {
    const { line } = await ready(t, [], {
      ROUNDELAY_MAX_CHILDREN: '3',
      ROUNDELAY_START: '3',
      ROUNDELAY_MIN_SPARE: '9',
      ROUNDELAY_MAX_SPARE: '8',
    })
    assert.equal(line.model, 'event-loop')
  },
)

async function ready(t: TestContext, args: readonly string[], env: NodeJS.ProcessEnv = {}) {
  const replica = start(t, ['echo', ...args, ...listen], { ...compileCache(), ...env })
  const line = await replica.line('echo replica ready')
  return { line, port: portOf((line.listen as string[])[0]) }
}

test('the log says which model serves, over what', { ...options, skip: unavailable }, async t => {
  const cases: [args: string[], env: NodeJS.ProcessEnv, model: string, transports: string[]][] = [
    [[], {}, 'event-loop', ['udp', 'tcp']],
    [['--udp', '--tcp'], {}, 'event-loop', ['udp', 'tcp']],
    [['--model', 'iterative', '--udp'], {}, 'iterative', ['udp']],
    [['--model', 'concurrent'], {}, 'concurrent', ['tcp']],
    [[], { ROUNDELAY_MODEL: 'prefork', ROUNDELAY_START: '1', ROUNDELAY_TCP: 'true' }, 'prefork', ['tcp']],
  ]
  for (const [args, env, model, transports] of cases) {
    const { line } = await ready(t, args, env)
    assert.deepEqual([line.model, line.transports], [model, transports])
  }
})

test('--protocol says what is spoken, and so do the log, /whoami and /state', options, async t => {
  for (const [args, env, protocol] of [
    [[], {}, 'echo'],
    [['--protocol', 'daytime'], { ROUNDELAY_PROTOCOL: 'time' }, 'daytime'],
    [[], { ROUNDELAY_PROTOCOL: 'chargen' }, 'chargen'],
  ] as const) {
    const { line, port } = await ready(t, args, env)
    assert.equal(line.protocol, protocol)
    for (const path of ['/whoami', '/state']) {
      const response = await fetch(`http://127.0.0.1:${portOf(line.admin)}${path}`)
      assert.equal(((await response.json()) as { protocol: string }).protocol, protocol, path)
    }
    const reply = String(await (await udpClient(t)).ask('hello', port))
    const expected = { echo: /^hello$/, chargen: /^ !"#\$$/, daytime: /^.{24}\r\n$/ }[protocol]
    assert.match(reply, expected)
  }
})

test('a transport that was not asked for is not served', options, async t => {
  const [udp, tcp] = await Promise.all([ready(t, ['--udp']), ready(t, ['--tcp'])])
  assert.deepEqual([udp.line.transports, tcp.line.transports], [['udp'], ['tcp']])
  assert.equal(await attempt(t, udp.port), 'ECONNREFUSED')
  assert.equal(String(await (await udpClient(t)).ask('hello', udp.port)), 'hello')
  assert.equal(await attempt(t, tcp.port), 'connected')
  // So the port is free for another's UDP.
  await udpClient(t, '127.0.0.1', tcp.port)
})
