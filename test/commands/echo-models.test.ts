import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { modelNames } from '../../src/servers/models.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { attempt, udpClient, udpEcho } from '../conformance/clients.ts'
import { portOf, run, start } from '../process.ts'

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

test('what a model cannot do is one line and exit code 2', options, async () => {
  const todo = [...mistakes]
  const two = Array.from({ length: 2 }, async () => {
    for (let next = todo.shift(); next; next = todo.shift()) {
      const [args, line] = next
      const { code, stdout, stderr } = await run(['echo', ...args.split(' '), ...listen])
      assert.deepEqual(
        { code, stdout, stderr },
        { code: 2, stdout: '', stderr: `roundelay: ${line}\n` },
        args,
      )
    }
  })
  await Promise.all(two)
})

test('a port in use is one line and exit code 2, whoever holds it', {
  ...options,
  skip: unavailable,
}, async t => {
  const first = await ready(t, [])
  const lines = await Promise.all(
    modelNames.map(model =>
      run(['echo', '--model', model, '--listen', `127.0.0.1:${first.port}`, '--admin', '127.0.0.1:0']),
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
  const replica = start(t, ['echo', ...args, ...listen], env)
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

test('a transport that was not asked for is not served', options, async t => {
  const [udp, tcp] = await Promise.all([ready(t, ['--udp']), ready(t, ['--tcp'])])
  assert.deepEqual([udp.line.transports, tcp.line.transports], [['udp'], ['tcp']])
  assert.equal(await attempt(t, udp.port), 'ECONNREFUSED')
  assert.equal(String(await udpEcho(await udpClient(t), 'hello', udp.port)), 'hello')
  assert.equal(await attempt(t, tcp.port), 'connected')
  // So the port is free for another's UDP.
  await udpClient(t, '127.0.0.1', tcp.port)
})
