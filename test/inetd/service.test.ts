import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import type { TestContext } from 'node:test'
import { parseInetdConf } from '../../src/inetd/conf.ts'
import type { ProgramEvents } from '../../src/inetd/programs.ts'
import { RunningService } from '../../src/inetd/service.ts'
import { headers } from '../../src/sys/layouts.ts'
import { freePorts } from '../support/ports.ts'
import { VirtualClock } from '../support/virtual-clock.ts'
import { option } from '../sys/kernel.ts'
import { refusal, test } from './client.ts'

const MINUTE = 60_000

/** One service whose watcher and programs are the test's. It listens on a real socket. */
async function serviceFor(t: TestContext, wait: string, socket = 'stream tcp') {
  const [port] = await freePorts(1)
  const conf = `127.0.0.1:${port} ${socket} ${wait} root /bin/program program`
  const { entries } = parseInetdConf(conf, 'inetd.conf', () => undefined)
  const clock = new VirtualClock()
  const watched = new Map<number, () => void>()
  const started: ProgramEvents[] = []
  const said: string[] = []
  const programs = {
    full: false,
    canStart: true,
    admit: () => true,
    start(_orders: object, _stdio: unknown, _ip: unknown, events: ProgramEvents) {
      started.push(events)
      return programs.canStart
    },
    startMultiplexer: () => assert.fail('there is no multiplexer'),
  }
  const service = new RunningService(
    { entry: entries[0]!, at: 'inetd.conf:1', account: () => undefined },
    {
      programs,
      clock,
      watcher: { watch: (fd, readable) => watched.set(fd, readable), forget: fd => void watched.delete(fd) },
      say: (_level, message) => said.push(message),
      protocol: () => assert.fail('there is no internal service'),
      idleMs: MINUTE,
      maxConnections: () => 10,
      blockedPorts: new Set(),
      tcpmuxServices: () => [],
    },
  )
  t.after(() => service.close(AbortSignal.abort()))
  await service.open()
  return {
    service,
    programs,
    clock,
    watched,
    started,
    said,
    port: port!,
    /** A client arrives: the watcher reports it once, and forgets the socket. */
    clientArrives() {
      const [fd, readable] = [...watched][0]!
      watched.delete(fd)
      readable()
    },
  }
}

test('a socket that a program has is not watched, even if places become free meanwhile', async t => {
  const { service, watched, started, clientArrives } = await serviceFor(t, 'wait')
  clientArrives()
  assert.equal(service.row().state, 'waiting')
  service.pause()
  service.resume()
  assert.equal(watched.size, 0)
  started[0]!.ended(undefined)
  assert.equal(watched.size, 1)
  assert.equal(service.row().state, 'listening')
})

test('a socket whose program is about to fail is not watched before that is known', async t => {
  const { service, watched, started, programs, clientArrives } = await serviceFor(t, 'wait')
  programs.canStart = false
  clientArrives()
  service.pause()
  service.resume()
  assert.equal(watched.size, 0, 'or a second attempt would run beside the first')
  started[0]!.notStarted?.(false)
  assert.equal(watched.size, 1)
  assert.deepEqual([service.row().started, service.row().running], [0, 0])
})

test('after a transient error a program is tried again a second later', async t => {
  const { service, watched, started, programs, clock, clientArrives } = await serviceFor(t, 'wait')
  programs.canStart = false
  clientArrives()
  started[0]!.notStarted?.(true)
  await clock.advance(999)
  assert.equal(watched.size, 0)
  await clock.advance(1)
  assert.equal(watched.size, 1)
  programs.canStart = true
  clientArrives()
  assert.equal(service.row().running, 1)
})

test('a program that can never be started ends in the service being switched off, for ten minutes', async t => {
  const { service, started, programs, clock, said, port, clientArrives } = await serviceFor(t, 'wait.3')
  programs.canStart = false
  for (let i = 0; i < 3; i++) {
    clientArrives()
    started[i]!.notStarted?.(false)
  }
  assert.equal(service.row().state, 'listening')
  clientArrives()
  assert.equal(service.row().state, 'off')
  assert.deepEqual(said, [`${port}/tcp server failing (looping), service terminated`])
  assert.equal(await refusal(port), 'ECONNREFUSED')
  await clock.advance(10 * MINUTE - 1)
  assert.equal(service.row().state, 'off')
  await clock.advance(1)
  assert.equal(service.row().state, 'listening')
  assert.equal(await refusal(port), undefined)
})

test('without room for another program a client waits until there is room', async t => {
  const { service, watched, started, programs, clientArrives } = await serviceFor(t, 'wait')
  programs.full = true
  clientArrives()
  assert.equal(started.length, 0)
  assert.equal(watched.size, 0)
  programs.full = false
  service.resume()
  clientArrives()
  assert.equal(started.length, 1)
})

test('a service that was closed does not watch its socket again', async t => {
  const { service, watched, started, clientArrives } = await serviceFor(t, 'wait')
  clientArrives()
  await service.close(AbortSignal.abort())
  started[0]!.ended(undefined)
  assert.equal(watched.size, 0)
})

test('a UDP socket has a receive buffer of 256 KiB, as far as the system allows', async t => {
  const { watched } = await serviceFor(t, 'wait', 'dgram udp')
  const [fd] = watched.keys()
  const most = Number(readFileSync('/proc/sys/net/core/rmem_max', 'utf8'))
  // The kernel doubles the size: socket(7).
  assert.equal(option(fd!, headers.SOL_SOCKET, headers.SO_RCVBUF), 2 * Math.min(256 * 1024, most))
})
