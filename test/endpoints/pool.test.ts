import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import { type TestContext, test } from 'node:test'
import { type Endpoint, endpoint, type Sink, type Source } from '../../src/endpoints/endpoint.ts'
import { type EndpointStatus, type PoolEvents, type Snapshot, startPool } from '../../src/endpoints/pool.ts'
import { echo } from '../../src/protocols.ts'
import { eventLoop } from '../../src/servers/event-loop.ts'
import { commonPort } from '../common-port.ts'

type Options = Partial<Parameters<typeof startPool>[0]>
type Mood = 'up' | 'down' | 'draining' | 'mute'

/** A pool whose source is in the test's hand; all that it tells of is kept. */
function pooled(t: TestContext, options: Options = {}) {
  const snapshots: Snapshot[] = []
  const states: string[] = []
  const sources: (string | undefined)[] = []
  let checks = 0
  let wake = () => {}
  let sink: Sink | undefined
  const events: PoolEvents = {
    snapshot(snapshot) {
      snapshots.push(snapshot)
      wake()
    },
    state(address, from, to) {
      states.push(`${address} ${from}>${to}`)
      wake()
    },
    checked() {
      checks++
      wake()
    },
    source(error) {
      sources.push(error?.message)
      wake()
    },
  }
  const source: Source = async (given, signal) => {
    sink = given
    if (!signal.aborted) await once(signal, 'abort')
  }
  const defaults = { service: 'echo', source, checks: [], rise: 1, fall: 1, fail: 'open' } as const
  const pool = startPool({ intervalMs: 20, timeoutMs: 20_000, ...defaults, ...options }, events)
  t.after(() => pool.close())
  const until = async (fits: () => boolean) => {
    while (!fits())
      await new Promise<void>(resolve => {
        wake = resolve
      })
  }
  const publish = (...endpoints: Endpoint[]) => sink?.publish(endpoints)
  const fail = (text: string) => sink?.fail(new Error(text))
  return { pool, snapshots, states, sources, until, publish, fail, count: () => checks }
}

/**
 * Replicas that are as well as `moods` says, at 127.0.5.1 and on, with an HTTP check for them. A mute one
 * answers when `release` makes it well.
 */
async function replicas(t: TestContext, ...initial: Mood[]) {
  const moods = [...initial]
  const addresses = moods.map((_, i) => `127.0.5.${1 + i}`)
  const port = await commonPort(...addresses)
  const answers = { up: [200, 'ok'], down: [500, 'ill'], draining: [503, '{"status":"draining"}'] } as const
  const held: ServerResponse[] = []
  for (const [i, host] of addresses.entries()) {
    const server = createServer((_request, response) => {
      const mood = moods[i]
      if (mood === 'mute') held.push(response)
      else response.writeHead(answers[mood!][0]).end(answers[mood!][1])
    }).listen({ host, port })
    await once(server, 'listening')
    t.after(() => {
      server.close()
      server.closeAllConnections()
    })
  }
  const release = () => {
    for (const i of moods.keys()) if (moods[i] === 'mute') moods[i] = 'up'
    for (const response of held.splice(0)) response.end('ok')
  }
  return { moods, addresses, release, checks: [{ kind: 'http', port, path: '/' }] as const }
}

const answered = ({ endpoints }: Snapshot) => endpoints.filter(e => e.answered).map(e => e.address)
const turn = () => new Promise(resolve => setImmediate(resolve))

test('a publish makes a new Snapshot when it changes something, and only then', async t => {
  const { pool, snapshots, publish } = pooled(t)
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
    await turn()
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
  // What is published within one turn of the event loop is one change.
  const count = snapshots.length
  for (const list of [[a!], [b!], [a!, b!], [c!]]) publish(...list)
  await turn()
  assert.deepEqual(snapshots.slice(count).map(answered), [['::1']])
})

test('comings and goings are told of by address, a change of order or weight is not', async t => {
  const { states, publish } = pooled(t)
  const [a, b] = [endpoint('10.0.0.1'), endpoint('10.0.0.2')]
  publish(a, b)
  publish(b, { ...a, weight: 2 })
  publish(b)
  assert.deepEqual(states, ['10.0.0.1 absent>up', '10.0.0.2 absent>up', '10.0.0.1 up>absent'])
})

test('a Snapshot is frozen to the bottom', async t => {
  const { pool, until, publish } = pooled(t)
  const isFrozen = () =>
    [pool.snapshot, pool.snapshot.endpoints, ...pool.snapshot.endpoints].every(part => Object.isFrozen(part))
  assert.ok(isFrozen())
  publish(endpoint('10.0.0.1'))
  await until(() => pool.snapshot.endpoints.length === 1)
  assert.ok(isFrozen())
  assert.throws(() => Object.assign(pool.snapshot.endpoints[0]!, { answered: false }), TypeError)
})

test('a source that rejects is started again; its last good answer stays; each failure is told of once', async t => {
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
  const { pool, snapshots, sources, until } = pooled(t, { source })
  await until(() => sources.length === 2)
  assert.deepEqual(sources, ['first', undefined])
  assert.equal(starts, 3)
  await turn()
  assert.equal(snapshots.length, 1)
  assert.deepEqual(answered(pool.snapshot), ['10.0.0.1'])
})

test('a pool whose source never published is not ready, whatever else happens', async t => {
  const { pool, sources, until, fail, publish } = pooled(t)
  fail('no resolver')
  await until(() => sources.length === 1)
  await turn()
  assert.deepEqual([pool.snapshot.ready, pool.snapshot.endpoints], [false, []])
  publish()
  await turn()
  assert.deepEqual([pool.snapshot.ready, sources], [true, ['no resolver', undefined]])
})

test('closing a pool is no failure of its source, and nothing is told of after it', async t => {
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
  await turn()
  assert.deepEqual([late.snapshots, late.states, late.sources], [[], [], []])
})

test('a pool is ready after the first check of each of its first endpoints, not before', async t => {
  const { moods, addresses, release, checks } = await replicas(t, 'up', 'down', 'mute')
  const { pool, snapshots, states, until, publish } = pooled(t, { checks })
  const endpoints = addresses.map(address => endpoint(address))
  const checked = ({ endpoints: list }: Snapshot) => list.filter(({ state }) => state !== 'checking').length
  publish(...endpoints)
  await until(() => checked(pool.snapshot) === 2)
  release()
  await until(() => pool.snapshot.ready)
  for (const snapshot of snapshots) assert.equal(snapshot.ready, checked(snapshot) === 3)
  assert.deepEqual(answered(pool.snapshot), [addresses[0], addresses[2]])

  // Later ones do not take the readiness back.
  const count = snapshots.length
  moods[2] = 'down'
  publish(endpoints[0]!)
  publish(...endpoints)
  await until(() => states.includes(`${addresses[2]} checking>down`))
  assert.ok(snapshots.slice(count).every(({ ready }) => ready))

  // One that the source takes back is not waited for.
  moods[2] = 'mute'
  const other = pooled(t, { checks })
  other.publish(...endpoints)
  await other.until(() => checked(other.pool.snapshot) === 2)
  assert.equal(other.pool.snapshot.ready, false)
  other.publish(endpoints[0]!, endpoints[1]!)
  await other.until(() => other.pool.snapshot.ready)
})

test('results that change nothing make no Snapshot', async t => {
  const { moods, addresses, checks } = await replicas(t, 'up', 'down')
  const { pool, snapshots, until, publish, count } = pooled(t, { checks })
  publish(...addresses.map(address => endpoint(address)))
  await until(() => pool.snapshot.ready)
  const [before, ready] = [snapshots.length, count()]
  await until(() => count() >= ready + 10)
  await turn()
  assert.equal(snapshots.length, before)
  moods[0] = 'draining'
  await until(() => pool.snapshot.endpoints[0]!.state === 'draining')
  assert.equal(snapshots.length, before + 1)
})

test('an added replica serves only after its first pass, one that came back after rise', async t => {
  const { moods, addresses, checks } = await replicas(t, 'up', 'down')
  const [a, b] = addresses.map(address => endpoint(address))
  const { pool, snapshots, states, until, publish } = pooled(t, { checks, rise: 3, fall: 2 })
  publish(a!)
  await until(() => answered(pool.snapshot).length === 1)
  publish(a!, b!)
  await until(() => states.includes(`${b!.address} checking>down`))
  moods[1] = 'up'
  await until(() => answered(pool.snapshot).length === 2)
  assert.deepEqual(states.at(-1), `${b!.address} down>up`)
  for (const snapshot of snapshots.slice(0, -1))
    assert.deepEqual(answered(snapshot), snapshot.ready ? [a!.address] : [])

  // A first result that is a pass needs no rise. Even alone, it is not answered before.
  publish()
  publish(b!)
  const count = snapshots.length
  await until(() => answered(pool.snapshot).includes(b!.address) && snapshots.length > count + 1)
  assert.deepEqual(snapshots.slice(count).map(answered), [[], [b!.address]])
})

test('a drain removes at once, without fall; it ends with a rise, or as down after a fall', async t => {
  const { moods, addresses, checks } = await replicas(t, 'up', 'up')
  const { pool, states, until, publish } = pooled(t, { checks, rise: 2, fall: 20 })
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

test('who is answered: the ready, else those that end but serve, else (fail open) the undrained, else all', async t => {
  // One letter an endpoint: its health (Up, Down, draining L) and what the source says of it: "" ready,
  // "n" not ready, "t" terminating and serving, "x" terminating and not serving. Expected: open, closed.
  const table: readonly (readonly [string, string, string?])[] = [
    ['U U D', 'U U', 'U U'],
    ['U L D', 'U', 'U'],
    ['U Ut Lt', 'U', 'U'],
    ['Un Ut D', 'Ut', 'Ut'],
    ['D Ut Lt', 'Ut Lt', 'Ut Lt'],
    ['D L Lt', 'Lt', 'Lt'],
    ['Un Ux D', 'Un D!', ''],
    ['D D D', 'D D D!', ''],
    ['D L D', 'D D!', ''],
    ['D L Dt', 'D!', ''],
    ['Dn L Ux', 'Dn!', ''],
    ['L L L', 'L L L!', ''],
    ['Dt Dx Dx', 'Dt Dx Dx!', ''],
    ['L Dt Dx', 'Dt Dx!', ''],
    ['L Lx L', 'Lx', 'Lx'],
    ['Lx Lx D', 'Lx Lx', 'Lx Lx'],
    ['U', 'U', 'U'],
    ['L', 'L!', ''],
    ['D', 'D!', ''],
  ]
  const health = { U: 'up', D: 'down', L: 'draining' } as const
  const { moods, addresses, checks } = await replicas(t, 'up', 'up', 'up')
  for (const [given, open, closed] of table) {
    const marks = given.split(' ')
    for (const [i, [letter]] of marks.entries()) moods[i] = health[letter as 'U']
    const endpoints = marks.map(([, said], i) => ({
      address: addresses[i]!,
      weight: 1,
      ready: said === undefined,
      serving: said !== 'x' && said !== 'n',
      terminating: said === 't' || said === 'x',
    }))
    const pools = (['open', 'closed'] as const).map(fail => pooled(t, { checks, fail }))
    for (const { pool, until, publish } of pools) {
      publish(...endpoints)
      await until(() => pool.snapshot.ready)
      await pool.close()
    }
    const [found, foundClosed] = pools.map(({ pool: { snapshot } }) => {
      const chosen = marks.filter((_, i) => snapshot.endpoints[i]!.answered).join(' ')
      return snapshot.failedOpen ? `${chosen}!` : chosen
    })
    assert.deepEqual([found, foundClosed], [open, closed], given)
  }
})

/** Runs a pool of its own in a process that is not told to end: it must come to its end by itself. */
const SOAK = `
  import { readdirSync } from 'node:fs'
  import { startPool } from '${new URL('../../src/endpoints/pool.ts', import.meta.url)}'
  import { endpoint } from '${new URL('../../src/endpoints/endpoint.ts', import.meta.url)}'
  const { addresses, port, ms } = JSON.parse(process.env.SOAK)
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
  const before = measure()
  const pool = startPool(
    { service: 's', source, fail: 'open', checks: [{ kind: 'udp', port }, { kind: 'tcp', port }],
      intervalMs: 200, timeoutMs: 150, rise: 2, fall: 2 },
    { snapshot() {}, state() {}, source() {}, checked: (_, ok) => counts[ok ? 'passed' : 'failed']++ },
  )
  const at = async when => {
    await new Promise(resolve => setTimeout(resolve, when))
    return measure()
  }
  // Comings and goings in the middle of checks.
  const churn = setInterval(() => publish(endpoints.filter(() => Math.random() < 0.9)), 100)
  const early = await at(ms / 3)
  const late = await at(ms * 2 / 3)
  clearInterval(churn)
  // The checks of those that have just gone are to end as well.
  publish(endpoints.slice(0, 120))
  await pool.close()
  // A closed socket is gone in the turn after.
  await new Promise(resolve => setImmediate(resolve))
  const left = process.getActiveResourcesInfo().filter(kind => !/Pipe|TTY/.test(kind))
  console.log(JSON.stringify({ ...counts, before, early, late, closed: measure(), left }))
`

test('200 endpoints checked again and again leak nothing, and a closed pool lets the process end', async t => {
  const addresses = Array.from({ length: 200 }, (_, i) => `127.0.6.${i + 1}`)
  // Half of them answer, a quarter is silent, at a quarter there is nobody.
  const port = await commonPort(...addresses)
  const listen = (some: string[]) => some.map(address => ({ address, port }))
  const common = { maxConnections: 1e6, idleMs: 60_000, say: () => assert.fail() }
  const silent = { ...echo, stream() {}, datagram: () => -1 }
  const servers = [
    await eventLoop(echo, { ...common, listen: listen(addresses.slice(0, 100)) }),
    await eventLoop(silent, { ...common, listen: listen(addresses.slice(100, 150)) }),
  ]
  t.after(() => Promise.all(servers.map(server => server.close(AbortSignal.abort()))))
  const child = spawn(process.execPath, ['--expose-gc', '--input-type=module', '-e', SOAK], {
    env: { ...process.env, SOAK: JSON.stringify({ addresses, port, ms: 4500 }) },
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
