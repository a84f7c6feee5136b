import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, openSync } from 'node:fs'
import { test } from 'node:test'
import { freePorts } from '../support/ports.ts'
import { cli, start } from '../support/process.ts'
import { until } from '../support/until.ts'

const full = { skip: existsSync('/dev/full') ? false : 'needs /dev/full' }

test('a log that cannot be written costs its lines, not the service', full, async t => {
  const [port, admin] = (await freePorts(2, '127.0.0.7')).map(number => `127.0.0.7:${number}`) as [
    string,
    string,
  ]
  const args = [cli, 'echo', '--listen', port, '--admin', admin, '--drain', '0', '--grace', '0']
  const replica = spawn(process.execPath, args, { stdio: ['ignore', openSync('/dev/full', 'w'), 'inherit'] })
  t.after(() => replica.kill('SIGKILL'))
  const ended = once(replica, 'exit')
  const ready = () =>
    fetch(`http://${admin}/readyz`).then(
      response => response.ok,
      () => false,
    )
  await until('the replica is ready', ready)
  replica.kill('SIGTERM')
  assert.deepEqual(await ended, [0, null])
})

test('the lines of a process are in the order in which it wrote them, to the last', async t => {
  const args = ['echo', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', '--drain', '0', '--grace', '1s']
  const attempt = async () => {
    const replica = start(t, args)
    await replica.line('echo replica ready')
    replica.process.kill('SIGTERM')
    await replica.ended
    const messages = replica.lines.map(({ msg }) => msg.split(':')[0])
    assert.deepEqual(messages, ['echo replica ready', 'draining', 'closing', 'ended'])
  }
  await Promise.all(Array.from({ length: 5 }, attempt))
})
