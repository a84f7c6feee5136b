import assert from 'node:assert/strict'
import { test } from 'node:test'
import { portOf, run, start } from '../support/process.ts'

test('a replica echoes what send sends it, over UDP and TCP', async t => {
  const replica = start(t, ['echo', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0'])
  const ready = await replica.line('echo replica ready')
  const port = String(portOf((ready.listen as string[])[0]))
  for (const transport of ['--udp', '--tcp']) {
    const { code, stdout } = await run(['send', transport, '--port', port, '127.0.0.1', 'hello', 'again'])
    assert.equal(stdout, '[5 bytes] hello\n[5 bytes] again\n')
    assert.equal(code, 0)
  }
})
