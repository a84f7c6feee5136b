import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EventHub, type FarmEvent, type Present, type ServiceView } from '../../src/ops/events.ts'
import { logSubscriber } from '../../src/ops/log.ts'
import { Metrics, metricsSubscriber } from '../../src/ops/metrics.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

const service = 'echo.roundelay.test'

const snapshot = (ready: boolean, failedOpen = false): { type: 'snapshot'; snapshot: ServiceView } => ({
  type: 'snapshot',
  snapshot: {
    service,
    ready,
    failedOpen,
    endpoints: [{ address: '127.0.1.1', state: 'up', answered: true, detail: 'HTTP 200' }],
  },
})

const endpoint = (number: number, to: 'up' | 'down' = 'up'): FarmEvent => ({
  type: 'endpoint',
  service,
  address: `127.0.1.${number}`,
  from: 'checking',
  to,
  detail: '',
})

const check: FarmEvent = { type: 'check', service, ok: true, seconds: 0.001 }
const failed: FarmEvent = { type: 'source', service, source: 'dns:a', error: 'no answer' }
const recovered: FarmEvent = { type: 'source', service, source: 'dns:a' }

/** A hub, and what a subscriber of it received. */
function subscribed(options = {}, hub = new EventHub(new VirtualClock())) {
  const received: (FarmEvent | Present)[] = []
  const unsubscribe = hub.subscribe(event => received.push(event), options)
  const present = received[0]
  assert.ok(present?.type === 'present')
  return { hub, received, present, unsubscribe }
}

test('a subscriber receives the present state first, then each difference once', () => {
  const hub = new EventHub(new VirtualClock())
  for (const event of [snapshot(false), failed, endpoint(1)]) hub.publish(event)
  const { received, present, unsubscribe } = subscribed({}, hub)
  assert.deepEqual([...present.state.services.keys()], [service])
  assert.deepEqual([...present.state.failingSources], [[service, 'no answer']])
  assert.deepEqual(
    present.history.map(({ event }) => event),
    [failed, endpoint(1)],
  )

  hub.publish(recovered)
  hub.publish(endpoint(1, 'down'))
  unsubscribe()
  hub.publish(endpoint(1))
  assert.deepEqual(received.slice(1), [recovered, endpoint(1, 'down')])
  assert.deepEqual([...hub.state.failingSources], [])
  // The state that was handed out earlier is a value: it does not change.
  assert.equal(present.state.failingSources.size, 1)
})

test('a subscriber that is added during an event has it in the present state, not twice', () => {
  const hub = new EventHub(new VirtualClock())
  let late: (FarmEvent | Present)[] = []
  hub.subscribe(({ type }) => {
    if (type === 'source') ({ received: late } = subscribed({}, hub))
  })
  hub.publish(failed)
  assert.equal(late.length, 1)
  assert.ok(late[0]?.type === 'present' && late[0].state.failingSources.has(service))
})

test('the first ready Snapshot and each turn of "failed open" are events of their own', () => {
  const { hub, received } = subscribed()
  for (const event of [
    ...[snapshot(false), snapshot(false, true), snapshot(true)],
    ...[snapshot(true), snapshot(true, true), snapshot(true)],
  ])
    hub.publish(event)
  assert.deepEqual(
    received.filter(({ type }) => type !== 'snapshot' && type !== 'present'),
    [
      { type: 'ready', service, endpoints: 1 },
      { type: 'failed-open', service, failedOpen: true },
      { type: 'failed-open', service, failedOpen: false },
    ],
  )
})

test('the history keeps the last 1,000 events, without Snapshots, checks and tallies', async () => {
  const clock = new VirtualClock(1_800_000_000)
  const hub = new EventHub(clock)
  hub.tallyWith(() => ({ answers: 1, firsts: [] }))
  hub.subscribe(() => {}, { tallies: true })
  for (let i = 0; i < 1001; i++) {
    hub.publish(endpoint(i))
    hub.publish(check)
    hub.publish(snapshot(false))
    await clock.advance(1)
  }
  const { present } = subscribed({}, hub)
  assert.equal(present.history.length, 1000)
  assert.deepEqual(present.history[0], { atSeconds: 1_800_000_000.001, event: endpoint(1) })
  assert.deepEqual(present.history[999], { atSeconds: 1_800_000_001, event: endpoint(1000) })
})

test('tallies are read once a second, and only while a subscriber wants them', async () => {
  const clock = new VirtualClock()
  const hub = new EventHub(clock)
  let reads = 0
  hub.tallyWith(() => ({ answers: ++reads, firsts: [] }))
  const { received: without } = subscribed({}, hub)
  await clock.advance(10_000)
  assert.deepEqual([reads, clock.waiting], [0, 0])

  const first = subscribed({ tallies: true }, hub)
  assert.equal(first.present.state.tallies.answers, 1)
  await clock.advance(1000)
  const second = subscribed({ tallies: true }, hub)
  assert.equal(second.present.state.tallies.answers, 2)
  await clock.advance(2000)
  assert.equal(reads, 4)
  assert.equal(first.received.length, 4)
  assert.equal(second.received.length, 3)

  first.unsubscribe()
  await clock.advance(1000)
  assert.deepEqual([reads, first.received.length, second.received.length], [5, 4, 4])
  second.unsubscribe()
  await clock.advance(10_000)
  assert.deepEqual([reads, clock.waiting, without.length], [5, 0, 1])
})

test('the log has a line for what an operator must know, as a warning where it is bad', () => {
  const hub = new EventHub(new VirtualClock())
  const lines: string[] = []
  const write = (level: string) => (_details: object, message: string) => lines.push(`${level} ${message}`)
  const log = { debug: write('debug'), info: write('info'), warn: write('warn') }
  hub.subscribe(logSubscriber(log as never))
  const state = (
    from: 'absent' | 'checking' | 'up',
    to: 'absent' | 'checking' | 'up' | 'down' | 'draining',
  ) => hub.publish({ type: 'endpoint', service, address: '::1', from, to, detail: '' })
  state('absent', 'checking')
  state('checking', 'down')
  state('checking', 'up')
  state('up', 'down')
  state('up', 'draining')
  state('up', 'absent')
  const replica = { type: 'replica', address: '127.0.1.1', pid: 1, startAgain: 'echo' } as const
  const ended: FarmEvent = { ...replica, ended: 'SIGKILL' }
  const notChecked: FarmEvent = { type: 'not-checked', service, address: '::1', error: 'connect EMFILE' }
  const family = { type: 'source-family', service, source: 'dns:a', family: 'AAAA' } as const
  const warning = {
    type: 'source-warning',
    service,
    source: 'dns:a',
    message: 'a warning',
    details: {},
  } as const
  const notes: FarmEvent[] = [{ ...family, error: 'no answer' }, family, warning]
  for (const event of [snapshot(true), snapshot(true), check, failed, recovered, ...notes, replica, ended])
    hub.publish(event)
  for (const event of [snapshot(true, true), snapshot(true, true), snapshot(true)]) hub.publish(event)
  // At most once a minute.
  for (const event of [notChecked, notChecked]) hub.publish(event)
  assert.deepEqual(lines, [
    'debug endpoint ::1 is checking',
    'info endpoint ::1 is down',
    'info endpoint ::1 is up',
    'warn endpoint ::1 is down',
    'warn endpoint ::1 is draining',
    'info endpoint ::1 is removed',
    'info service ready: the first round of checks is over',
    'warn source failed: the last good answer stays in use',
    'info source recovered',
    'warn source failed for AAAA: the last good answer for AAAA stays in use',
    'info source recovered for AAAA',
    'warn a warning',
    'warn replica 127.0.1.1 ended',
    'warn no endpoint is healthy: all are answered (--fail open)',
    'info an endpoint is healthy again',
    'warn cannot check endpoints: an error of this machine, which changes no health',
  ])
})

test('the metrics count checks and failures of sources', async () => {
  const hub = new EventHub(new VirtualClock())
  const metrics = new Metrics('dns', '1.2.3')
  hub.subscribe(metricsSubscriber(metrics))
  for (const event of [check, check, { ...check, ok: false }, failed, recovered]) hub.publish(event)
  const { text } = await metrics.expose([])
  for (const line of [
    `roundelay_checks_total{service="${service}",result="pass"} 2`,
    `roundelay_checks_total{service="${service}",result="fail"} 1`,
    `roundelay_check_duration_seconds_count{service="${service}"} 3`,
    `roundelay_source_failures_total{service="${service}"} 1`,
    'roundelay_build_info{version="1.2.3"} 1',
  ])
    assert.ok(text.includes(`${line}\n`), line)
})
