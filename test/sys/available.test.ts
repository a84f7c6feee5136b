import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import { whyUnavailable } from '../../src/sys/available.ts'
import { portOf, runProcess, start } from '../support/process.ts'
import { test } from './kernel.ts'

/** An environment in which Node runs this module first. */
const first = (code: string) => ({
  NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(code)}`,
})
const elsewhere = (property: 'platform' | 'arch', value: string) =>
  first(`Object.defineProperty(process, '${property}', { value: '${value}' })`)
const withoutKoffi = first(`import { registerHooks } from 'node:module'
  registerHooks({
    resolve(name, context, next) {
      if (name === 'koffi') throw new Error('there is no koffi')
      return next(name, context)
    },
  })`)

const on = (t: TestContext, property: 'platform' | 'arch', value: string) => {
  t.mock.property(process, property, value as never)
  const why = whyUnavailable()
  t.mock.restoreAll()
  return why
}

test('the socket API can be called here, and where it cannot there is a reason', async t => {
  assert.equal(await whyUnavailable(), undefined)
  for (const platform of ['darwin', 'win32', 'android'])
    assert.equal(await on(t, 'platform', platform), `this is ${platform}, not Linux`)
  for (const arch of ['x64', 'arm64']) assert.equal(await on(t, 'arch', arch), undefined)
  for (const arch of ['arm', 'ia32', 'riscv64', 's390x'])
    assert.match((await on(t, 'arch', arch)) ?? '', new RegExp(`layouts of ${arch} are not known`))
})

for (const [where, model, env, why] of [
  ['another platform', 'prefork', elsewhere('platform', 'darwin'), 'this is darwin, not Linux'],
  [
    'another architecture',
    'concurrent',
    elsewhere('arch', 'ia32'),
    'the layouts of ia32 are not known, only those of x64 and arm64',
  ],
  ['a machine without koffi', 'iterative', withoutKoffi, 'koffi cannot be loaded: there is no koffi'],
] as const) {
  test(`on ${where} --model ${model} is refused in one line that says why`, async () => {
    assert.deepEqual(await runProcess(['echo', '--model', model, '--listen', '127.0.0.1:0'], env), {
      code: 2,
      stdout: '',
      stderr: `roundelay: Cannot run --model ${model} here: it needs Linux' socket API, and ${why}\n`,
    })
  })

  test(`on ${where} --model event-loop echoes over TCP and UDP`, async t => {
    const flags = ['--model', 'event-loop', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0']
    const replica = start(t, ['echo', ...flags], env)
    const { listen } = await replica.line('echo replica ready')
    const port = String(portOf((listen as string[])[0]))
    for (const transport of ['--udp', '--tcp']) {
      const { code, stdout } = await runProcess(
        ['send', transport, '--port', port, '127.0.0.1', 'hello'],
        env,
      )
      assert.deepEqual([code, stdout], [0, '[5 bytes] hello\n'])
    }
  })
}
