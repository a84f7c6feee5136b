import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Shutdown, type ShutdownOptions } from '../../src/ops/shutdown.ts'
import { start } from '../support/process.ts'
import { VirtualClock } from '../support/virtual-clock.ts'
import { echoes, get, openConnection, replica, roundTrip, status } from './replica.ts'

const options = { timeout: 60_000 }

/** A shutdown in virtual time, and what it did. */
function inVirtualTime(more: Partial<ShutdownOptions> = {}) {
  const clock = new VirtualClock()
  const lines: string[] = []
  const exits: number[] = []
  const write = (details: object, message: string) =>
    void lines.push(`${message.split(':')[0]} ${JSON.stringify(details)}`)
  const shutdown = new Shutdown(
    {
      log: { info: write, warn: write, error: write } as ShutdownOptions['log'],
      close: async () => {},
      drainMs: 60_000,
      graceMs: 60_000,
      exit: code => void exits.push(code),
      ...more,
    },
    clock,
  )
  return { shutdown, clock, lines, exits }
}

/** Whether a promise has settled by now. */
function watch(promise: Promise<unknown>): { settled: boolean } {
  const watched = { settled: false }
  promise.then(() => {
    watched.settled = true
  })
  return watched
}

for (const { signal, drainMs, graceMs } of [
  { signal: 'SIGTERM', drainMs: 60_000, graceMs: 60_000 },
  { signal: 'SIGINT', drainMs: 0, graceMs: 500 },
  { signal: 'SIGHUP', drainMs: 0, graceMs: 500 },
  { signal: 'SIGQUIT', drainMs: 0, graceMs: 500 },
] as const)
  test(`after ${signal}, a drain and a grace of a minute each are ${drainMs} and ${graceMs} ms`, async () => {
    let deadline: AbortSignal | undefined
    const close = (signal: AbortSignal) => {
      deadline = signal
      return once(signal, 'abort').then(() => {})
    }
    const { shutdown, clock } = inVirtualTime({ close })
    assert.equal(shutdown.draining, false)
    shutdown.receive(signal)
    assert.equal(shutdown.draining, true)

    const drained = watch(shutdown.drain())
    await clock.advance(Math.max(0, drainMs - 1))
    assert.equal(drained.settled, drainMs === 0)
    await clock.advance(1)
    assert.equal(drained.settled, true)

    const closed = watch(shutdown.close())
    await clock.advance(graceMs - 1)
    assert.deepEqual([deadline?.aborted, closed.settled], [false, false])
    await clock.advance(1)
    assert.deepEqual([deadline?.aborted, closed.settled], [true, true])
    assert.equal(clock.waiting, 0)
  })

test('the grace time ends with the close hook, and a short one stays short after SIGINT', async () => {
  const early = inVirtualTime()
  early.shutdown.receive('SIGTERM')
  const closed = watch(early.shutdown.close())
  await early.clock.advance(0)
  assert.deepEqual([closed.settled, early.clock.waiting], [true, 0])

  const short = inVirtualTime({ graceMs: 100 })
  short.shutdown.receive('SIGINT')
  await short.shutdown.close()
  assert.deepEqual(short.lines, ['closing {"graceMs":100}'])
})

test('a close hook that hangs is given up half a second after its deadline', async () => {
  const { shutdown, clock, lines } = inVirtualTime({ close: () => new Promise(() => {}), graceMs: 2000 })
  shutdown.receive('SIGTERM')
  const closed = watch(shutdown.close())
  await clock.advance(2499)
  assert.equal(closed.settled, false)
  await clock.advance(1)
  assert.equal(closed.settled, true)
  assert.deepEqual(lines, ['closing {"graceMs":2000}', 'closing takes too long {"graceMs":2000}'])
})

test('a close hook that fails fails the shutdown', async () => {
  const { shutdown } = inVirtualTime({ close: () => Promise.reject(new Error('cannot close')) })
  shutdown.receive('SIGTERM')
  await assert.rejects(shutdown.close(), /cannot close/)
})

test('two signals of one kind within 300 ms are one, any other second signal ends at once', async () => {
  const { shutdown, clock, exits } = inVirtualTime()
  shutdown.receive('SIGINT')
  await clock.advance(300)
  shutdown.receive('SIGINT')
  assert.deepEqual(exits, [])
  await clock.advance(1)
  shutdown.receive('SIGINT')
  assert.deepEqual(exits, [130])
  shutdown.receive('SIGTERM')
  assert.deepEqual(exits, [130, 143])
})

test('a process whose close hook hangs still ends, with code 0', options, async t => {
  const program = fileURLToPath(new URL('hanging-close.ts', import.meta.url))
  const child = spawn(process.execPath, [program], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.after(() => child.kill('SIGKILL'))
  let output = ''
  const ready = new Promise<void>(resolve => {
    child.stdout.setEncoding('utf8').on('data', text => {
      output += text
      if (output.includes('"ready"')) resolve()
    })
  })
  await ready
  const ended = once(child, 'close')
  child.kill('SIGTERM')
  // 200 ms of grace and 500 ms to cut; the rest is for a machine that is busy.
  const late = sleep(20_000, ['still alive'], { ref: false })
  assert.deepEqual(await Promise.race([ended, late]), [0, null])
  assert.match(output, /closing takes too long/)
  assert.match(output, /"ended"/)
})

test(
  'SIGTERM: not ready at once, still alive and serving, then closed in order, exit code 0',
  options,
  async t => {
    const server = await replica(t, ['--drain', '3s', '--grace', '50s'])
    const early = await openConnection(t, server)
    server.process.kill('SIGTERM')
    await server.line('draining')
    assert.deepEqual(await status(server, '/readyz?probe'), [503, { status: 'draining' }])
    assert.deepEqual(await status(server, '/livez'), [200, { status: 'ok' }])
    assert.deepEqual(await status(server, '/readyz'), [503, { status: 'draining' }])
    assert.ok(await echoes(server, 'udp'))
    assert.ok(await echoes(server, 'tcp'))
    const late = await openConnection(t, server)
    assert.equal((await get(server, '/metrics')).statusCode, 200)

    await server.line('closing')
    assert.ok(!(await echoes(server, 'udp')))
    assert.ok(!(await echoes(server, 'tcp')))
    for (const socket of [early, late]) await roundTrip(socket, 'still served')
    const rest: Buffer[] = []
    late.on('data', data => rest.push(data as Buffer))
    late.end('to the last octet')
    await once(late, 'end')
    assert.equal(String(Buffer.concat(rest)), 'to the last octet')
    early.resume().end()
    // Long before the end of the grace time.
    assert.deepEqual(await server.ended, { code: 0, signal: null })
    assert.equal(server.stderr(), '')
    const said = server.lines.map(({ msg }) => msg.split(':')[0])
    assert.deepEqual(said, ['echo replica ready', 'draining', 'closing', 'ended'])
  },
)

test(
  'a connection that is still open when the grace time is over is cut off, and the exit code is 0',
  options,
  async t => {
    const server = await replica(t, ['--drain', '0', '--grace', '300ms'])
    const socket = await openConnection(t, server)
    server.process.kill('SIGTERM')
    await once(socket.resume(), 'end')
    assert.deepEqual(await server.ended, { code: 0, signal: null })
  },
)

test('SIGINT does not wait for caches, whatever --drain and --grace say', options, async t => {
  const server = await replica(t, ['--drain', '1m', '--grace', '1m'])
  await openConnection(t, server)
  const killed = performance.now()
  server.process.kill('SIGINT')
  assert.deepEqual(await server.ended, { code: 0, signal: null })
  t.diagnostic(`${(performance.now() - killed).toFixed()} ms`)
  assert.equal((await server.line('draining')).drainMs, 0)
  assert.equal((await server.line('closing')).graceMs, 500)
})

test('one Ctrl-C that arrives twice, from npm and from the terminal, is one signal', options, async t => {
  for (let attempt = 1; ; attempt++) {
    const server = await replica(t, ['--drain', '1m', '--grace', '1m'])
    await openConnection(t, server)
    server.process.kill('SIGINT')
    const first = await server.line('draining')
    server.process.kill('SIGINT')
    const { code } = await server.ended
    const second = server.lines.find(({ msg }) => msg.includes('second signal'))
    if (!second) return assert.equal(code, 0)
    // On a busy machine the two signals may have come too far apart: try again.
    const apartMs = Date.parse(String(second.time)) - Date.parse(String(first.time))
    assert.ok(apartMs > 250 && attempt < 5, `taken for two within ${apartMs} ms`)
  }
})

for (const [first, second, code, wait] of [
  ['SIGTERM', 'SIGINT', 130, 0],
  ['SIGTERM', 'SIGTERM', 143, 400],
] as const)
  test(`${second} after ${first}${wait ? ' and some time' : ''} ends at once`, options, async t => {
    const server = await replica(t, ['--drain', '5m', '--grace', '5m'])
    server.process.kill(first)
    await server.line('draining')
    // Longer than the time within which two signals of one kind are one.
    await sleep(wait)
    server.process.kill(second)
    assert.deepEqual(await server.ended, { code, signal: null })
    assert.equal(server.lines.at(-1)?.signal, second)
  })

test('a tied replica ends at once with the standard input, an untied one does not', options, async t => {
  const tied = await replica(t, ['--tied', '--drain', '5m'])
  const untied = await replica(t)
  await openConnection(t, tied)
  for (const { process } of [untied, tied]) process.stdin?.end()
  assert.deepEqual(await tied.ended, { code: 0, signal: null })
  assert.deepEqual(await status(untied, '/livez'), [200, { status: 'ok' }])
})

for (const signal of ['SIGHUP', 'SIGQUIT'] as const)
  test(`${signal} ends a replica as SIGINT does, with exit code 0`, options, async t => {
    const server = await replica(t, ['--drain', '1m', '--grace', '1m'])
    await openConnection(t, server)
    server.process.kill(signal)
    assert.deepEqual(await server.ended, { code: 0, signal: null })
    assert.equal((await server.line('closing')).graceMs, 500)
  })

test('SIGUSR1 and SIGUSR2 neither open the inspector of a replica nor end it', options, async t => {
  const server = await replica(t)
  server.process.kill('SIGUSR1')
  server.process.kill('SIGUSR2')
  assert.ok(await echoes(server, 'udp'))
  server.process.kill('SIGTERM')
  await server.line('draining')
  server.process.kill('SIGUSR1')
  server.process.kill('SIGINT')
  await server.ended
  assert.equal(server.stderr(), '')
})

for (const [signal, code] of [
  ['SIGHUP', 129],
  ['SIGQUIT', 131],
] as const)
  test(`${signal} ends a command that does not handle it with exit code ${code}`, options, async t => {
    const silent = createSocket('udp4').bind(0, '127.0.0.1')
    t.after(() => void silent.close())
    await once(silent, 'listening')
    const asked = once(silent, 'message')
    const port = String(silent.address().port)
    const command = start(t, ['send', '--timeout', '50s', '--port', port, '127.0.0.1', 'hello'])
    await asked
    command.process.kill(signal)
    assert.deepEqual(await command.ended, { code, signal: null })
  })
