import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { type TestContext, test } from 'node:test'
import type { ProbeResult, ProbeTarget } from '../../src/client/probe.ts'
import { type Endpoint, endpoint, type Sink, type Source } from '../../src/endpoints/endpoint.ts'
import { type EndpointStatus, type PoolEvents, type Snapshot, startPool } from '../../src/endpoints/pool.ts'
import { eventLoop } from '../../src/servers/event-loop.ts'
import { echo } from '../support/echo.ts'
import { freePort } from '../support/ports.ts'
import { VirtualClock } from '../support/virtual-clock.ts'

type Options = Partial<Parameters<typeof startPool>[0]>
/** How a replica answers its checks; a mute one answers when `release` is called. */
type Mood = 'up' | 'down' | 'draining' | 'mute'

const INTERVAL_MS = 1000
/** The pool's own: what happens within it makes one Snapshot. */
const GATHER_MS = 10
const CHECK = [{ kind: 'udp', port: 7 }] as const

/** A pool in virtual time, whose source is controlled by the test. All its events are kept. */
function pooled(t: TestContext, options: Options = {}) {
  const clock = new VirtualClock()
  const snapshots: Snapshot[] = []
  const states: string[] = []
  const sources: (string | undefined)[] = []
  let results = 0
  let sink: Sink | undefined
  const events: PoolEvents = {
    snapshot: snapshot => void snapshots.push(snapshot),
    state: (address, from, to) => void states.push(`${address} ${from}>${to}`),
    checked: () => void results++,
    source: error => void sources.push(error?.message),
    note: () => assert.fail('no note was expected'),
  }
  const source: Source = async (given, signal) => {
    sink = given
    if (!signal.aborted) await once(signal, 'abort')
  }
  const defaults = { service: 'echo', source, checks: [], rise: 1, fall: 1, fail: 'open' } as const
  const times = { intervalMs: INTERVAL_MS, timeoutMs: 500, watchLoad: false, clock, random: () => 0 }
  const probe = () => assert.fail('no check was expected')
  const pool = startPool({ ...defaults, ...times, probe, ...options }, events)
  t.after(() => pool.close())
  const until = async (fits: () => boolean) => {
    const startedMs = clock.now()
    while (!fits()) {
      assert.ok(clock.now() - startedMs < 60_000, 'nothing came within a minute of virtual time')
      await clock.advance(GATHER_MS)
    }
  }
  const publish = (...endpoints: Endpoint[]) => sink?.publish(endpoints)
  const fail = (text: string) => sink?.fail(new Error(text))
  return {
    ...{ clock, pool, snapshots, states, sources, until, publish, fail },
    /** The results of checks so far. */
    results: () => results,
    /** Until a Snapshot has what has happened up to now. */
    gathered: () => clock.advance(GATHER_MS),
  }
}

/** A probe of replicas at 127.0.5.1 and on, which answer by their `moods`. */
function replicas(t: TestContext, ...initial: Mood[]) {
  const moods = [...initial]
  const addresses = moods.map((_, i) => `127.0.5.${1 + i}`)
  const held: (() => void)[] = []
  const probe = async ({ address }: ProbeTarget): Promise<ProbeResult> => {
    const i = addresses.indexOf(address)
    if (moods[i] === 'mute') await new Promise<void>(resolve => held.push(resolve))
    const mood = moods[i]
    if (mood === 'up') return { ok: true, detail: 'passed' }
    return { ok: false, detail: `is ${mood}`, draining: mood === 'draining' }
  }
  const release = () => {
    for (const i of moods.keys()) if (moods[i] === 'mute') moods[i] = 'up'
    for (const resolve of held.splice(0)) resolve()
  }
  // A pool waits for the checks that have begun, when it closes.
  t.after(release)
  return { moods, addresses, release, options: { checks: CHECK, probe } }
}

const answered = ({ endpoints }: Snapshot) => endpoints.filter(e => e.answered).map(e => e.address)

test('a publish makes a new Snapshot when it changes something, and only then', async t => {
  const { pool, snapshots, publish, gathered } = pooled(t)
  const [a, b, c] = ['10.0.0.1', '10.0.0.2', '::1'].map(address => endpoint(address))
  const many = Array.from({ length: 1000 }, (_, i) => endpoint(`10.1.${i >> 8}.${i & 255}`))
  const steps: readonly (readonly [string, Endpoint[], Endpoint[] | 'the same'])[] = [
    ['the first, though empty: it makes the pool ready', [], []],
    ['none again', [], 'the same'],
    ['add', [a!, b!], [a!, b!]],
    ['the same', [a!, b!], 'the same'],
    ['equal, not identical', [endpoint('10.0.0.1'), { ...b! }], 'the same'],
    ['reorder', [b!, a!], [b!, a!]],
    ['replace', [b!, c!], [b!, c!]],
    ['weight', [{ ...b!, weight: 3 }, c!], [{ ...b!, weight: 3 }, c!]],
    ['duplicates in one publish', [{ ...b!, weight: 3 }, c!, c!, { ...b!, weight: 3 }], 'the same'],
    ['remove one', [c!], [c!]],
    ['not ready', [{ ...c!, ready: false }], [c!]],
    ['terminating', [{ ...c!, ready: false, terminating: true }], [{ ...c!, terminating: true }]],
    ['serving', [{ ...c!, ready: false, terminating: true, serving: false }], [{ ...c!, terminating: true }]],
    ['a thousand', many, many],
    ['a thousand again', [...many], 'the same'],
    ['a thousand but one', many.slice(1), many.slice(1)],
    ['none', [], []],
  ]
  for (const [what, given, expected] of steps) {
    const [before, count] = [pool.snapshot, snapshots.length]
    publish(...given)
    await gathered()
    assert.equal(snapshots.length, count + (expected === 'the same' ? 0 : 1), what)
    assert.equal(pool.snapshot, expected === 'the same' ? before : snapshots.at(-1), what)
    if (expected === 'the same') continue
    const view = ({ address, weight, terminating }: Endpoint | EndpointStatus) => ({
      address,
      weight,
      terminating,
    })
    assert.deepEqual(pool.snapshot.endpoints.map(view), expected.map(view), what)
  }
})

test('what is published within 10 ms is one change, and waits no longer than that', async t => {
  const { clock, snapshots, publish } = pooled(t)
  const [a, b, c] = [endpoint('10.0.0.1'), endpoint('10.0.0.2'), endpoint('::1')]
  for (const list of [[a], [b], [a, b]]) {
    publish(...list)
    await clock.advance(3)
  }
  publish(c)
  assert.equal(snapshots.length, 0)
  await clock.advance(1)
  assert.deepEqual(snapshots.map(answered), [['::1']])
  publish(a)
  await clock.advance(9)
  assert.equal(snapshots.length, 1)
  await clock.advance(1)
  assert.deepEqual(snapshots.map(answered), [['::1'], ['10.0.0.1']])
})

test('endpoints that come and go are reported by address, a change of order or weight is not', async t => {
  const { states, publish } = pooled(t)
  const [a, b] = [endpoint('10.0.0.1'), endpoint('10.0.0.2')]
  publish(a, b)
  publish(b, { ...a, weight: 2 })
  publish(b)
  assert.deepEqual(states, ['10.0.0.1 absent>up', '10.0.0.2 absent>up', '10.0.0.1 up>absent'])
})

test('a Snapshot and all that is in it is frozen', async t => {
  const { pool, gathered, publish } = pooled(t)
  const isFrozen = () =>
    [pool.snapshot, pool.snapshot.endpoints, ...pool.snapshot.endpoints].every(part => Object.isFrozen(part))
  assert.ok(isFrozen())
  publish(endpoint('10.0.0.1'))
  await gathered()
  assert.equal(pool.snapshot.endpoints.length, 1)
  assert.ok(isFrozen())
  assert.throws(() => Object.assign(pool.snapshot.endpoints[0]!, { answered: false }), TypeError)
})

test('an endpoint that has not changed is the same object in the next Snapshot', async t => {
  const { moods, addresses, options } = replicas(t, 'up', 'up')
  const { pool, until, publish } = pooled(t, options)
  publish(...addresses.map(address => endpoint(address)))
  await until(() => pool.snapshot.ready)
  const [first, second] = pool.snapshot.endpoints
  moods[1] = 'down'
  await until(() => pool.snapshot.endpoints[1]!.state === 'down')
  assert.equal(pool.snapshot.endpoints[0], first)
  assert.notEqual(pool.snapshot.endpoints[1], second)
})

test('a source that rejects is started again; its last good answer stays; each failure is reported once', async t => {
  let starts = 0
  const source: Source = async ({ publish, fail }, signal) => {
    starts++
    if (starts === 2) throw new Error('second')
    publish([endpoint('10.0.0.1')])
    if (starts === 1) {
      fail(new Error('first'))
      fail(new Error('first, again'))
      throw new Error('thrown')
    }
    await once(signal, 'abort')
  }
  const { clock, pool, snapshots, sources } = pooled(t, { source })
  await clock.advance(999)
  assert.deepEqual([starts, sources], [1, ['first']])
  await clock.advance(1)
  assert.deepEqual([starts, sources], [2, ['first']])
  await clock.advance(1000)
  assert.deepEqual([starts, sources], [3, ['first', undefined]])
  await clock.advance(10_000)
  assert.equal(starts, 3)
  assert.equal(snapshots.length, 1)
  assert.deepEqual(answered(pool.snapshot), ['10.0.0.1'])
})

test('a pool whose source never published is not ready, whatever else happens', async t => {
  const { clock, pool, sources, gathered, fail, publish } = pooled(t)
  fail('no resolver')
  await clock.advance(60_000)
  assert.deepEqual([pool.snapshot.ready, pool.snapshot.endpoints, sources], [false, [], ['no resolver']])
  publish()
  await gathered()
  assert.deepEqual([pool.snapshot.ready, sources], [true, ['no resolver', undefined]])
})

test('closing a pool is not a failure of its source, and nothing is reported after it', async t => {
  const source: Source = async (_sink, signal) => {
    await once(signal, 'abort')
    signal.throwIfAborted()
  }
  const { pool, sources } = pooled(t, { source })
  await pool.close()
  assert.deepEqual(sources, [])

  const late = pooled(t)
  await late.pool.close()
  late.publish(endpoint('10.0.0.1'))
  late.fail('too late')
  await late.clock.advance(60_000)
  assert.deepEqual([late.snapshots, late.states, late.sources], [[], [], []])

  // A change that waits for its Snapshot is dropped, and so is the result of a check that has begun.
  const { addresses, release, options } = replicas(t, 'mute')
  const busy = pooled(t, options)
  busy.publish(endpoint(addresses[0]!))
  await busy.clock.advance(0)
  const closed = busy.pool.close()
  release()
  await closed
  await busy.clock.advance(60_000)
  assert.deepEqual([busy.snapshots, busy.results(), busy.clock.waiting], [[], 0, 0])
})

test('a pool is ready after the first check of each of its first endpoints, not before', async t => {
  const { moods, addresses, release, options } = replicas(t, 'up', 'down', 'mute')
  const { pool, snapshots, states, until, publish } = pooled(t, options)
  const endpoints = addresses.map(address => endpoint(address))
  const checked = ({ endpoints: list }: Snapshot) => list.filter(({ state }) => state !== 'checking').length
  publish(...endpoints)
  await until(() => checked(pool.snapshot) === 2)
  release()
  await until(() => pool.snapshot.ready)
  for (const snapshot of snapshots) assert.equal(snapshot.ready, checked(snapshot) === 3)
  assert.deepEqual(answered(pool.snapshot), [addresses[0], addresses[2]])

  // Endpoints that are added later do not make the pool unready.
  const count = snapshots.length
  moods[2] = 'down'
  publish(endpoints[0]!)
  publish(...endpoints)
  await until(() => states.includes(`${addresses[2]} checking>down`))
  assert.ok(snapshots.slice(count).every(({ ready }) => ready))

  // An endpoint that the source removes is not waited for.
  moods[2] = 'mute'
  const other = pooled(t, options)
  other.publish(...endpoints)
  await other.until(() => checked(other.pool.snapshot) === 2)
  assert.equal(other.pool.snapshot.ready, false)
  other.publish(endpoints[0]!, endpoints[1]!)
  await other.until(() => other.pool.snapshot.ready)
})

test('results that change nothing make no Snapshot', async t => {
  const { moods, addresses, options } = replicas(t, 'up', 'down')
  const { clock, pool, snapshots, until, publish, results } = pooled(t, options)
  publish(...addresses.map(address => endpoint(address)))
  await until(() => pool.snapshot.ready)
  const [before, ready] = [snapshots.length, results()]
  await clock.advance(5 * INTERVAL_MS)
  assert.equal(results(), ready + 10)
  assert.equal(snapshots.length, before)
  moods[0] = 'draining'
  await until(() => pool.snapshot.endpoints[0]!.state === 'draining')
  assert.equal(snapshots.length, before + 1)
})

test('the results of 1,000 endpoints are gathered: 200 that come together make one Snapshot', async t => {
  const addresses = Array.from({ length: 1000 }, (_, i) => `10.1.${i >> 8}.${i & 255}`)
  const down = new Set<string>()
  const probe = async ({ address }: ProbeTarget): Promise<ProbeResult> =>
    down.has(address) ? { ok: false, detail: 'failed', draining: false } : { ok: true, detail: 'passed' }
  const run = async (random: () => number) => {
    const { clock, pool, snapshots, publish, results } = pooled(t, { checks: CHECK, probe, random })
    publish(...addresses.map(address => endpoint(address)))
    await clock.advance(INTERVAL_MS - 1)
    await clock.advance(GATHER_MS)
    const counts = [snapshots.length]
    assert.deepEqual([pool.snapshot.ready, answered(pool.snapshot).length], [true, 1000])
    for (const address of addresses.slice(0, 200)) down.add(address)
    await clock.advance(INTERVAL_MS + GATHER_MS)
    counts.push(snapshots.length - counts[0]!)
    assert.equal(answered(pool.snapshot).length, 800)
    down.clear()
    assert.ok(results() >= 2000)
    return counts
  }
  // All at once: they are added, checked and fail.
  assert.deepEqual(await run(() => 0), [1, 1])
  // One result a millisecond: at most a Snapshot each 10 ms.
  let given = 0
  const [first, second] = await run(() => (given++ % 1000) / 1000)
  assert.ok(first! <= 101, `${first} Snapshots in the first round`)
  assert.ok(second! <= 21, `${second} Snapshots for 200 failures`)
})

test('a change of the load alone makes a Snapshot only where the load is watched', async t => {
  for (const watchLoad of [false, true]) {
    let load = 0
    const probe = async (): Promise<ProbeResult> => ({ ok: true, detail: 'ok', activeConnections: load })
    const { clock, pool, snapshots, until, publish } = pooled(t, { checks: CHECK, probe, watchLoad })
    publish(endpoint('10.0.0.1'))
    await until(() => pool.snapshot.ready)
    const before = snapshots.length
    load = 7
    await clock.advance(2 * INTERVAL_MS)
    assert.equal(snapshots.length, before + Number(watchLoad))
    // A Snapshot that is created for another reason has the current load.
    publish(endpoint('10.0.0.1', 2))
    await clock.advance(GATHER_MS)
    assert.deepEqual(
      [pool.snapshot.endpoints[0]!.activeConnections, snapshots.length],
      [7, before + 1 + Number(watchLoad)],
    )
  }
})

test('an added replica serves only after its first pass, one that came back after rise', async t => {
  const { moods, addresses, release, options } = replicas(t, 'up', 'down')
  const [a, b] = addresses.map(address => endpoint(address))
  const { pool, snapshots, states, until, publish } = pooled(t, { ...options, rise: 3, fall: 2 })
  publish(a!)
  await until(() => answered(pool.snapshot).length === 1)
  publish(a!, b!)
  await until(() => states.includes(`${b!.address} checking>down`))
  moods[1] = 'up'
  await until(() => answered(pool.snapshot).length === 2)
  assert.deepEqual(states.at(-1), `${b!.address} down>up`)
  for (const snapshot of snapshots.slice(0, -1))
    assert.deepEqual(answered(snapshot), snapshot.ready ? [a!.address] : [])

  // A first result that is a pass needs no rise. Even alone, the endpoint is not answered before it.
  publish()
  publish(b!)
  const count = snapshots.length
  moods[1] = 'mute'
  await until(() => snapshots.length > count)
  release()
  await until(() => answered(pool.snapshot).includes(b!.address))
  assert.deepEqual(snapshots.slice(count).map(answered), [[], [b!.address]])
})

test('a drain removes at once, without fall; it ends with a rise, or as down after a fall', async t => {
  const { moods, addresses, options } = replicas(t, 'up', 'up')
  const { pool, states, until, publish } = pooled(t, { ...options, rise: 2, fall: 20 })
  publish(...addresses.map(address => endpoint(address)))
  await until(() => answered(pool.snapshot).length === 2)
  moods[1] = 'draining'
  await until(() => answered(pool.snapshot).length === 1)
  moods[1] = 'up'
  await until(() => answered(pool.snapshot).length === 2)
  moods[1] = 'draining'
  await until(() => answered(pool.snapshot).length === 1)
  moods[1] = 'down'
  await until(() => states.at(-1)?.endsWith('>down') === true)
  const second = states.filter(state => state.startsWith(addresses[1]!))
  const course = [
    'absent>checking',
    'checking>up',
    'up>draining',
    'draining>up',
    'up>draining',
    'draining>down',
  ]
  assert.deepEqual(
    second,
    course.map(step => `${addresses[1]} ${step}`),
  )
})

/** Runs a pool in a process of its own, which must end by itself. */
const SOAK = `
  import { readdirSync } from 'node:fs'
  import { probe } from '${new URL('../../src/client/probe.ts', import.meta.url)}'
  import { systemClock as clock } from '${new URL('../../src/clock.ts', import.meta.url)}'
  import { startPool } from '${new URL('../../src/endpoints/pool.ts', import.meta.url)}'
  import { endpoint } from '${new URL('../../src/endpoints/endpoint.ts', import.meta.url)}'
  const { addresses, port, rounds } = JSON.parse(process.env.SOAK)
  const endpoints = addresses.map(address => endpoint(address))
  const measure = () => {
    gc()
    const { heapUsed, external } = process.memoryUsage()
    return { octets: heapUsed + external, descriptors: readdirSync('/proc/self/fd').length }
  }
  let publish
  const source = async sink => {
    publish = sink.publish
    publish(endpoints)
  }
  const counts = { passed: 0, failed: 0 }
  let wanted = 0
  let reached
  const checked = (_, ok) => {
    const results = ++counts[ok ? 'passed' : 'failed'] + counts[ok ? 'failed' : 'passed']
    // Endpoints come and go in the middle of checks.
    if (results % 100 === 0) publish(endpoints.filter(() => Math.random() < 0.9))
    if (results >= wanted) reached?.()
  }
  const at = results => new Promise(resolve => {
    wanted = results
    reached = () => resolve(measure())
  })
  const before = measure()
  const pool = startPool(
    { service: 's', source, fail: 'open', checks: [{ kind: 'udp', port }, { kind: 'tcp', port }], watchLoad: false,
      intervalMs: 200, timeoutMs: 2000, rise: 2, fall: 2, clock, random: Math.random, probe },
    { snapshot() {}, state() {}, source() {}, checked },
  )
  const early = await at(rounds * addresses.length)
  const late = await at(2 * rounds * addresses.length)
  // The checks of endpoints that were just removed must end as well.
  publish(endpoints.slice(0, 120))
  await pool.close()
  // A socket is released in the turn of the loop after it was closed.
  await new Promise(resolve => setImmediate(resolve))
  const left = process.getActiveResourcesInfo().filter(kind => !/Pipe|TTY/.test(kind))
  console.log(JSON.stringify({ ...counts, before, early, late, closed: measure(), left }))
`

test('200 endpoints checked again and again leak nothing, and a closed pool lets the process end', async t => {
  const addresses = Array.from({ length: 200 }, (_, i) => `127.0.6.${i + 1}`)
  // Half of them answer, a quarter is silent, at a quarter nothing listens.
  const port = await freePort(...addresses)
  const listen = (some: string[]) => some.map(address => ({ address, port }))
  const common = { maxConnections: 1e6, idleMs: 60_000, say: () => assert.fail() }
  const silent = { ...echo, stream() {}, datagram: () => -1 }
  const servers = [
    await eventLoop(echo, { ...common, listen: listen(addresses.slice(0, 100)) }),
    await eventLoop(silent, { ...common, listen: listen(addresses.slice(100, 150)) }),
  ]
  t.after(() => Promise.all(servers.map(server => server.close(AbortSignal.abort()))))
  const child = spawn(process.execPath, ['--expose-gc', '--input-type=module', '-e', SOAK], {
    env: { ...process.env, SOAK: JSON.stringify({ addresses, port, rounds: 3 }) },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.after(() => child.kill('SIGKILL'))
  let text = ''
  child.stdout.setEncoding('utf8').on('data', chunk => {
    text += chunk
  })
  assert.deepEqual(await once(child, 'close'), [0, null])
  const { passed, failed, before, early, late, closed, left } = JSON.parse(text)
  t.diagnostic(text.trim())
  assert.ok(passed > 200 && failed > 200)
  assert.ok(late.octets - early.octets < 4 * 2 ** 20)
  // At most two sockets of each endpoint are open at a time.
  assert.ok(late.descriptors <= before.descriptors + 2 * addresses.length)
  assert.deepEqual(left, [])
  assert.equal(closed.descriptors, before.descriptors)
})
