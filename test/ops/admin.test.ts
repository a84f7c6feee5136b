import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { type TestContext, test } from 'node:test'
import { httpGet } from '../../src/client/http.ts'
import { probe } from '../../src/client/probe.ts'
import { metrics } from '../../src/ops/metrics.ts'
import { portOf, type Running, run, start } from '../process.ts'

const options = { timeout: 60_000 }
const LONG_MS = 20_000

interface Replica extends Running {
  readonly port: number
  readonly adminPort: number
}

async function replica(t: TestContext, ...args: string[]): Promise<Replica> {
  const running = start(t, ['echo', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', ...args])
  const ready = await running.line('echo replica ready')
  return { ...running, port: portOf((ready.listen as string[])[0]), adminPort: portOf(ready.admin) }
}

const get = ({ adminPort }: { adminPort: number }, path: string) =>
  httpGet({ address: '127.0.0.1', port: adminPort }, path, AbortSignal.timeout(LONG_MS))

const echoes = async ({ port }: Replica, kind: 'udp' | 'tcp'): Promise<boolean> =>
  (await probe({ kind, address: '127.0.0.1', port }, LONG_MS)).ok

/** A connection in the midst of its work. */
async function open(t: TestContext, { port }: Replica): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true })
  t.after(() => void socket.destroy())
  await roundTrip(
    socket.on('error', () => {}),
    'open',
  )
  return socket
}

async function roundTrip(socket: Socket, text: string): Promise<void> {
  socket.write(text)
  assert.equal(String((await once(socket, 'data'))[0]), text)
}

const status = async (replica: Replica, path: string) => {
  const { statusCode, body } = await get(replica, path)
  return [statusCode, JSON.parse(body)]
}

test('the probes say ok, with a query string too, and only /readyz says the load', options, async t => {
  const server = await replica(t)
  const idle = await open(t, server)
  // In turns: what one says must not stay for the other.
  for (const query of ['', '?', '?verbose', '?a=/livez&b=1']) {
    assert.deepEqual(await status(server, `/readyz${query}`), [200, { status: 'ok', connections: 1 }])
    assert.deepEqual(await status(server, `/livez${query}`), [200, { status: 'ok' }])
  }
  idle.destroy()
})

test(
  'HEAD is GET without the body, all else is 405, and a wrong path is told the right ones',
  options,
  async t => {
    const server = await replica(t)
    const ask = (method: string, path: string) =>
      fetch(`http://127.0.0.1:${server.adminPort}${path}`, {
        method,
        ...(method === 'POST' && { body: 'x'.repeat(100_000) }),
      })
    for (const path of ['/livez', '/readyz', '/readyz?verbose', '/metrics', '/whoami', '/state']) {
      const head = await ask('HEAD', path)
      assert.deepEqual([head.status, await head.text()], [200, ''], path)
      for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) {
        const response = await ask(method, path)
        assert.deepEqual(
          [response.status, await response.text()],
          [405, 'only GET and HEAD\n'],
          method + path,
        )
        assert.equal(response.headers.get('allow'), 'GET, HEAD')
      }
    }
    for (const path of ['/', '/livez/', '/LIVEZ', '//livez', '/states', '/__proto__', '/constructor', '/%']) {
      const { statusCode, body } = await get(server, path)
      const expected = `no ${path} here; there are /livez /readyz /metrics /whoami /state\n`
      assert.deepEqual([statusCode, body], [404, expected])
    }
  },
)

type Samples = Map<string, number>

/** Every line of the text format 0.0.4 (its numbers are those of Go: NaN in any case), or a failed assertion. */
function parseMetrics(text: string): { types: Map<string, string>; samples: Samples } {
  const types = new Map<string, string>()
  const samples: Samples = new Map()
  assert.ok(text.endsWith('\n'))
  for (const line of text.trimEnd().split('\n')) {
    const comment = /^# (HELP|TYPE) ([a-z0-9_]+) (.+)$/.exec(line)
    if (comment) {
      const [, kind, name, rest] = comment
      if (kind === 'HELP') continue
      assert.ok(!types.has(name!), `${name} stands twice`)
      assert.match(rest!, /^(counter|gauge|histogram|summary)$/)
      types.set(name!, rest!)
    } else if (line) {
      const sample =
        /^([a-z0-9_]+)(\{(?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)*\})? (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|[+-]Inf|[Nn]a[Nn])$/.exec(
          line,
        )
      assert.ok(sample, `not a sample: ${line}`)
      const [, name, labels = '', value] = sample
      const base = name!.replace(/_(bucket|sum|count)$/, '')
      assert.ok(types.has(name!) || types.has(base), `${name} has no TYPE before it`)
      assert.ok(!samples.has(name + labels), `${name}${labels} stands twice`)
      samples.set(name + labels, Number(value))
    }
  }
  return { types, samples }
}

test('/metrics is well formed, has every metric of the role, and its values move', options, async t => {
  const server = await replica(t)
  const scrape = async () => parseMetrics((await get(server, '/metrics')).body)
  const before = await scrape()
  for (const [name, { type }] of Object.entries(metrics))
    assert.equal(
      before.types.get(name),
      name.startsWith('roundelay_echo_') || name === 'roundelay_build_info' ? type : undefined,
      name,
    )
  assert.ok(before.types.has('process_cpu_seconds_total'))
  const ours = ({ samples }: { samples: Samples }) =>
    Object.fromEntries(
      [...samples].filter(([name]) => /^roundelay_echo/.test(name)).map(([k, v]) => [k.slice(15), v]),
    )
  const none = {
    'datagrams_total{result="echoed"}': 0,
    'datagrams_total{result="dropped_loop"}': 0,
    'datagrams_total{result="dropped_overload"}': 0,
    'datagrams_total{result="failed"}': 0,
    connections_total: 0,
    connections_active: 0,
    connections_waiting: 0,
    'children{state="starting"}': 0,
    'children{state="idle"}': 0,
    'children{state="busy"}': 0,
    'children{state="stopping"}': 0,
    forks_total: 0,
    child_failures_total: 0,
  }
  assert.deepEqual(ours(before), none)
  const sockets = [await open(t, server), await open(t, server)]
  for (let i = 0; i < 3; i++) assert.ok(await echoes(server, 'udp'))
  const busy = {
    ...none,
    'datagrams_total{result="echoed"}': 3,
    connections_total: 2,
    connections_active: 2,
  }
  // Two at once and one more: a sampled counter is not added up.
  for (const scraped of [...(await Promise.all([scrape(), scrape()])), await scrape()])
    assert.deepEqual(ours(scraped), busy)
  for (const socket of sockets) {
    socket.resume().end()
    await once(socket, 'close')
  }
  assert.deepEqual(ours(await scrape()), { ...busy, connections_active: 0 })
})

test('/metrics of the DNS server is well formed too, and has the metrics of its role', options, async t => {
  const server = start(t, [
    ...['dns', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', '--check', 'none'],
    ...['--service', 'echo=static:127.0.0.1,127.0.0.2'],
  ])
  const adminPort = portOf((await server.line('dns server listens')).admin)
  await server.line('service ready')
  const { types, samples } = parseMetrics((await get({ adminPort }, '/metrics')).body)
  for (const [name, { type }] of Object.entries(metrics))
    assert.equal(types.get(name), /^roundelay_(echo|inetd)_/.test(name) ? undefined : type, name)
  const service = 'service="echo.roundelay.test"'
  assert.equal(samples.get(`roundelay_service_ready{${service}}`), 1)
  assert.equal(samples.get(`roundelay_endpoint_answered{${service},address="127.0.0.2"}`), 1)
})

test('/whoami says who the replica is, where it runs and what it has done', options, async t => {
  const env = { POD_NAME: 'echo-1', POD_IP: '10.0.0.1', NODE_NAME: 'node-a' }
  const running = start(t, ['echo', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0'], env)
  const ready = await running.line('echo replica ready')
  const server = { ...running, port: portOf((ready.listen as string[])[0]), adminPort: portOf(ready.admin) }
  assert.ok(await echoes(server, 'udp'))
  const { uptimeSeconds, ...who } = JSON.parse((await get(server, '/whoami')).body)
  assert.ok(uptimeSeconds >= 0 && uptimeSeconds < 60)
  assert.deepEqual(who, {
    name: 'echo-1',
    model: 'event-loop',
    version: ready.version,
    addresses: ready.listen,
    pod: 'echo-1',
    podIp: '10.0.0.1',
    node: 'node-a',
    pid: running.pid,
    counters: {
      datagrams: 1,
      datagramsLoopDropped: 0,
      datagramsOverloadDropped: 0,
      datagramsFailed: 0,
      connections: 0,
      active: 0,
      waiting: 0,
    },
  })
})

test(
  'SIGTERM: not ready at once, still alive and serving, then closed in good order, exit code 0',
  options,
  async t => {
    const server = await replica(t, '--drain', '3s', '--grace', '50s')
    const early = await open(t, server)
    server.process.kill('SIGTERM')
    await server.line('draining')
    assert.deepEqual(await status(server, '/readyz?probe'), [503, { status: 'draining' }])
    assert.deepEqual(await status(server, '/livez'), [200, { status: 'ok' }])
    assert.deepEqual(await status(server, '/readyz'), [503, { status: 'draining' }])
    assert.ok(await echoes(server, 'udp'))
    assert.ok(await echoes(server, 'tcp'))
    const late = await open(t, server)
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
  'what is still open when the grace time is over is cut off, and the exit code is 0',
  options,
  async t => {
    const server = await replica(t, '--drain', '0', '--grace', '300ms')
    const socket = await open(t, server)
    server.process.kill('SIGTERM')
    await once(socket.resume(), 'end')
    assert.deepEqual(await server.ended, { code: 0, signal: null })
  },
)

test(
  'SIGINT does not wait for caches: it ends within 2 s, whatever --drain and --grace say',
  options,
  async t => {
    const server = await replica(t, '--drain', '1m', '--grace', '1m')
    await open(t, server)
    const killed = performance.now()
    server.process.kill('SIGINT')
    assert.deepEqual(await server.ended, { code: 0, signal: null })
    const took = performance.now() - killed
    t.diagnostic(`${took.toFixed()} ms`)
    // Without the short cut it would be two minutes; the 2 s are printed, not asserted to the millisecond.
    assert.ok(took < 15_000)
  },
)

test('one Ctrl-C that arrives twice, from npm and from the terminal, is one', options, async t => {
  for (let attempt = 1; ; attempt++) {
    const server = await replica(t, '--drain', '1m', '--grace', '1m')
    await open(t, server)
    server.process.kill('SIGINT')
    const first = await server.line('draining')
    server.process.kill('SIGINT')
    const { code } = await server.ended
    const second = server.lines.find(({ msg }) => msg.includes('second signal'))
    if (!second) return assert.equal(code, 0)
    // A machine so busy that the two came far apart showed nothing: once more.
    const apartMs = Date.parse(String(second.time)) - Date.parse(String(first.time))
    assert.ok(apartMs > 250 && attempt < 5, `taken for two within ${apartMs} ms`)
  }
})

for (const [first, second, code, wait] of [
  ['SIGTERM', 'SIGINT', 130, 0],
  ['SIGTERM', 'SIGTERM', 143, 400],
] as const)
  test(`${second} after ${first}${wait ? ' and some time' : ''} ends at once`, options, async t => {
    const server = await replica(t, '--drain', '5m', '--grace', '5m')
    server.process.kill(first)
    await server.line('draining')
    // Longer than the time within which two of a kind are one.
    await new Promise(resolve => setTimeout(resolve, wait))
    server.process.kill(second)
    assert.deepEqual(await server.ended, { code, signal: null })
    assert.equal(server.lines.at(-1)?.signal, second)
  })

test('a tied replica ends at once with the standard input, an untied one does not', options, async t => {
  const tied = await replica(t, '--tied', '--drain', '5m')
  const untied = await replica(t)
  await open(t, tied)
  for (const { process } of [untied, tied]) process.stdin?.end()
  assert.deepEqual(await tied.ended, { code: 0, signal: null })
  assert.deepEqual(await status(untied, '/livez'), [200, { status: 'ok' }])
})

test('an address that cannot be listened on is one line and exit code 2', options, async t => {
  const server = await replica(t)
  const any = '127.0.0.1:0'
  const inUse = (port: number) => `Cannot listen on 127.0.0.1:${port}: the port is in use`
  const noSuch = 'this machine has no such address'
  const cases = [
    [`127.0.0.1:${server.port}`, any, inUse(server.port)],
    [any, `127.0.0.1:${server.adminPort}`, inUse(server.adminPort)],
    ['192.0.2.1:7007', any, `Cannot listen on 192.0.2.1:7007: ${noSuch}`],
    ['[2001:db8::1]:7007', any, `Cannot listen on [2001:db8::1]:7007: ${noSuch}`],
    [any, '192.0.2.1:8080', `Cannot listen on 192.0.2.1:8080: ${noSuch}`],
  ]
  for (const [listen, admin, line] of cases) {
    const result = await run(['echo', '--listen', listen!, '--admin', admin!])
    assert.deepEqual(result, { code: 2, stdout: '', stderr: `roundelay: ${line}\n` })
  }
  const dns = ['dns', '--service', 'echo=static:127.0.0.1', '--listen', `127.0.0.1:${server.port}`]
  const expected = { code: 2, stdout: '', stderr: `roundelay: ${inUse(server.port)}\n` }
  assert.deepEqual(await run([...dns, '--admin', any]), expected)
  assert.ok(await echoes(server, 'udp'))
})
