import assert from 'node:assert/strict'
import { closeSync, openSync } from 'node:fs'
import type { TestContext } from 'node:test'
import { type ProgramLimits, Programs } from '../../src/inetd/programs.ts'
import type { ExitStatus, Spawner } from '../../src/sys/spawn.ts'
import { VirtualClock } from '../support/virtual-clock.ts'
import { test } from './client.ts'

const MINUTE = 60_000
const unlimited: ProgramLimits = { maxChildren: 10, maxPerIp: Infinity, ratePerIp: Infinity }
const orders = { path: '/bin/program', argv: ['program'], account: undefined, env: {} }

/** Programs that exist only here: each runs until the test gives its exit status. */
function fakePrograms(t: TestContext, limits: Partial<ProgramLimits> = {}) {
  const fd = openSync('/dev/null', 'r+')
  t.after(() => closeSync(fd))
  const clock = new VirtualClock()
  const statuses = new Map<number, ExitStatus>()
  const events: string[] = []
  let lastPid = 0
  let error: Error | undefined
  const spawner: Spawner = {
    spawn() {
      if (error) throw error
      // Without a pidfd the end is noticed by asking.
      return { pid: ++lastPid, pidfd: -1 }
    },
    exitStatus: ({ pid }) => statuses.get(pid),
  }
  const programs = new Programs({
    limits: { ...unlimited, ...limits },
    spawner,
    watcher: { watch: () => assert.fail('there is nothing to watch') },
    clock,
    say: (level, message) => events.push(`${level}: ${message}`),
    onFull: full => events.push(full ? 'full' : 'room'),
  })
  return {
    programs,
    clock,
    events,
    failWith(code: string) {
      error = Object.assign(new Error(code), { code })
    },
    start: (ip?: string) =>
      programs.start(orders, fd, ip, {
        ended: failure => events.push(`ended: ${failure ?? 'well'}`),
        cannotRun: (program, { code }) => events.push(`cannot run ${program}: ${code}`),
        notStarted: transient => events.push(`not started, transient: ${transient}`),
      }),
    /** Ends a program, and lets the time pass in which that is noticed. */
    async end(pid: number, status: ExitStatus = { code: 0, signal: null }) {
      statuses.set(pid, status)
      await clock.advance(100)
    },
  }
}

test('the end of a program without a pidfd is noticed by asking for it', async t => {
  const { start, end, clock, events } = fakePrograms(t)
  assert.equal(start(), true)
  assert.equal(start(), true)
  assert.equal(start(), true)
  await clock.advance(10_000)
  assert.deepEqual(events, [], 'they run')
  await end(2, { code: 3, signal: null })
  assert.deepEqual(events, ['ended: exit code 3'])
  await end(1, { code: null, signal: 'SIGKILL' })
  await end(3)
  assert.deepEqual(events.slice(1), ['ended: killed by SIGKILL', 'ended: well'])
  assert.equal(clock.waiting, 0)
})

test('when the last place is taken and when one is free again is reported once each', async t => {
  const { programs, start, end, events } = fakePrograms(t, { maxChildren: 2 })
  start()
  assert.equal(programs.full, false)
  start()
  assert.equal(programs.full, true)
  assert.deepEqual(events, ['warn: process cap reached: further clients wait', 'full'])
  await end(1)
  assert.equal(programs.full, false)
  assert.deepEqual(events.slice(2), ['ended: well', 'room'])
})

test('programs at a time and starts a minute are limited for each address', async t => {
  const { programs, start, end, clock } = fakePrograms(t, { maxPerIp: 1, ratePerIp: 2 })
  await clock.advance(MINUTE)
  assert.ok(programs.admit('192.0.2.1'))
  start('192.0.2.1')
  assert.ok(!programs.admit('192.0.2.1'), 'one runs')
  assert.ok(programs.admit('192.0.2.2'))
  await end(1)
  assert.ok(programs.admit('192.0.2.1'))
  assert.ok(!programs.admit('192.0.2.1'), 'two were started')
  await clock.advance(MINUTE)
  assert.ok(programs.admit('192.0.2.1'))
  for (let i = 0; i < 10; i++) assert.ok(programs.admit(undefined), 'clients of unix sockets have no address')
})

test('a transient error is told apart from a program that cannot be run', async t => {
  for (const [code, transient] of [
    ['EAGAIN', true],
    ['ENOMEM', true],
    ['EMFILE', true],
    ['ENFILE', true],
    ['ENOENT', false],
    ['EACCES', false],
  ] as const) {
    const { start, clock, failWith, events, programs } = fakePrograms(t)
    failWith(code)
    assert.equal(start(), false)
    assert.deepEqual(events, [], 'the caller is told after the call')
    await clock.advance(0)
    assert.deepEqual(events, [`cannot run /bin/program: ${code}`, `not started, transient: ${transient}`])
    assert.equal(programs.full, false)
  }
})

test('close waits for the last program', async t => {
  const { programs, start, end } = fakePrograms(t)
  start()
  start()
  let closed = false
  const closing = programs.close(new AbortController().signal).then(() => {
    closed = true
  })
  await end(1)
  assert.equal(closed, false)
  await end(2)
  await closing
})
