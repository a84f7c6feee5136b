import assert from 'node:assert/strict'
import { once } from 'node:events'
import { get as httpGetRaw } from 'node:http'
import { type TestContext, test } from 'node:test'
import { answer, isLocalHost, type Site, serveHttp } from '../../src/ops/http.ts'
import { metrics } from '../../src/ops/metrics.ts'
import { portOf, run, start } from '../support/process.ts'
import { echoes, get, openConnection, replica, status } from './replica.ts'

const options = { timeout: 60_000 }

/** The admin server of a process that has two documents. */
function site(more: Partial<Site> = {}): Site {
  return {
    draining: () => false,
    notReady: () => undefined,
    connections: () => 0,
    metrics: async () => ({ contentType: 'text/plain; version=0.0.4', text: 'a 1\n' }),
    documents: { '/whoami': () => ({ name: 'a' }), '/state': () => ({ b: [1] }) },
    ...more,
  }
}

async function serve(t: TestContext, more: Partial<Site> = {}) {
  const errors: unknown[] = []
  const log = { error: (details: unknown) => void errors.push(details) }
  const { server, address } = await serveHttp({ address: '127.0.0.1', port: 0 }, site(more), log as never)
  t.after(() => void server.close())
  return { adminPort: address.port, errors }
}

test('/readyz has the load or why the process is not ready; draining precedes other reasons', async () => {
  const ask = async (more: Partial<Site>) => {
    const { status, body } = await answer('GET', '/readyz', site(more))
    return [status, JSON.parse(body)]
  }
  assert.deepEqual(await ask({ connections: () => 7 }), [200, { status: 'ok', connections: 7 }])
  assert.deepEqual(await ask({ notReady: () => 'starting' }), [503, { status: 'starting' }])
  const both = { draining: () => true, notReady: () => 'starting' }
  assert.deepEqual(await ask(both), [503, { status: 'draining' }])
  assert.equal((await answer('GET', '/livez', site(both))).status, 200)
})

test('HEAD is GET without the body, other methods are 405, and a 404 lists the paths', async t => {
  const server = await serve(t)
  const ask = (method: string, path: string) =>
    fetch(`http://127.0.0.1:${server.adminPort}${path}`, {
      method,
      ...(method === 'POST' && { body: 'x'.repeat(100_000) }),
    })
  for (const path of ['/livez', '/readyz', '/readyz?verbose', '/metrics', '/whoami', '/state']) {
    const head = await ask('HEAD', path)
    assert.deepEqual([head.status, await head.text()], [200, ''], path)
    const whole = await ask('GET', path)
    assert.deepEqual([whole.status, (await whole.text()).endsWith('\n')], [200, true], path)
    for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) {
      const response = await ask(method, path)
      assert.deepEqual([response.status, await response.text()], [405, 'only GET and HEAD\n'], method + path)
      assert.equal(response.headers.get('allow'), 'GET, HEAD')
    }
  }
  for (const path of ['/', '/livez/', '/LIVEZ', '//livez', '/states', '/__proto__', '/constructor', '/%']) {
    const { statusCode, body } = await get(server, path)
    const expected = `no ${path} here; there are /livez /readyz /metrics /whoami /state\n`
    assert.deepEqual([statusCode, body], [404, expected])
  }
})

test('a document that throws is 500 and an error in the log, and the server goes on serving', async t => {
  const broken = () => {
    throw new Error('broken')
  }
  const server = await serve(t, { documents: { '/broken': broken } })
  assert.equal((await get(server, '/broken')).statusCode, 500)
  assert.equal(server.errors.length, 1)
  assert.equal((await get(server, '/livez')).statusCode, 200)
})

test('a browser neither guesses the type of a reply nor shows it in a frame', async t => {
  const server = await serve(t)
  for (const path of ['/livez', '/metrics', '/state', '/nothing']) {
    const { headers } = await fetch(`http://127.0.0.1:${server.adminPort}${path}`)
    assert.equal(headers.get('x-content-type-options'), 'nosniff')
    assert.equal(headers.get('content-security-policy'), "default-src 'none'; frame-ancestors 'none'")
  }
})

test('a request target in absolute form is served as its path', async () => {
  const ask = async (url: string) => (await answer('GET', url, site())).status
  for (const url of ['http://a.test/livez', 'HTTP://127.0.0.1:8080/livez?b', 'https://[::1]/state'])
    assert.equal(await ask(url), 200, url)
  for (const url of ['http://a.test', 'http://a.test/livezz', 'ftp://a.test/livez'])
    assert.equal(await ask(url), 404, url)
})

test('a name other than localhost is not local, whether it is in Host or in the request target', () => {
  const local = [
    'localhost',
    'LOCALHOST:8080',
    '127.0.0.1',
    '127.0.0.1:8080',
    '[::1]',
    '[::1]:8080',
    undefined,
  ]
  for (const host of local) assert.ok(isLocalHost(host, '/livez'), String(host))
  for (const host of ['evil.test', 'localhost.evil.test:8080', '127.0.0.1.evil.test', '', '[evil]'])
    assert.ok(!isLocalHost(host, '/livez'), host)
  assert.ok(!isLocalHost('127.0.0.1', 'http://evil.test/livez'))
  assert.ok(isLocalHost('evil.test', 'http://127.0.0.1:1/livez'))
})

test('an admin port on loopback refuses a Host that is another name', async t => {
  const server = await serve(t)
  const ask = (host: string) =>
    new Promise<number | undefined>((resolve, reject) => {
      const to = { host: '127.0.0.1', port: server.adminPort, path: '/livez', headers: { host } }
      httpGetRaw(to, response => resolve(response.resume().statusCode)).on('error', reject)
    })
  assert.equal(await ask('evil.test'), 403)
  assert.equal(await ask('localhost'), 200)
  assert.equal(await ask('10.0.0.1:8080'), 200)
})

type Samples = Map<string, number>

/** Every line must be of the text format 0.0.4. It writes numbers as Go does, with NaN in any case. */
function parseMetrics(text: string): { types: Map<string, string>; samples: Samples } {
  const types = new Map<string, string>()
  const samples: Samples = new Map()
  assert.ok(text.endsWith('\n'))
  for (const line of text.trimEnd().split('\n')) {
    const comment = /^# (HELP|TYPE) ([a-z0-9_]+) (.+)$/.exec(line)
    if (comment) {
      const [, kind, name, rest] = comment
      if (kind === 'HELP') continue
      assert.ok(!types.has(name!), `${name} appears twice`)
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
      assert.ok(!samples.has(name + labels), `${name}${labels} appears twice`)
      samples.set(name + labels, Number(value))
    }
  }
  return { types, samples }
}

test('/metrics is well formed, has every metric of the role, and its values change', options, async t => {
  const server = await replica(t)
  const scrape = async () => parseMetrics((await get(server, '/metrics')).body)
  const before = await scrape()
  for (const [name, { type, role }] of Object.entries(metrics)) {
    assert.equal(before.types.get(name), ['echo', 'every'].includes(role) ? type : undefined, name)
    // The names follow the roles; the metrics of services, endpoints and sources are those of dns.
    const [, prefix = 'dns'] = /^roundelay_(echo|inetd)_/.exec(name) ?? []
    assert.equal(role, name === 'roundelay_build_info' ? 'every' : prefix, name)
  }
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
  const sockets = [await openConnection(t, server), await openConnection(t, server)]
  for (let i = 0; i < 3; i++) assert.ok(await echoes(server, 'udp'))
  const busy = {
    ...none,
    'datagrams_total{result="echoed"}': 3,
    connections_total: 2,
    connections_active: 2,
  }
  // Two scrapes at once and one more: a sampled counter is not summed over scrapes.
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
  const adminPort = portOf((await server.line('DNS server is listening')).admin)
  await server.line('service ready')
  const { types, samples } = parseMetrics((await get({ adminPort }, '/metrics')).body)
  for (const [name, { type, role }] of Object.entries(metrics))
    assert.equal(types.get(name), ['dns', 'every'].includes(role) ? type : undefined, name)
  const service = 'service="echo.roundelay.test"'
  assert.equal(samples.get(`roundelay_service_ready{${service}}`), 1)
  assert.equal(samples.get(`roundelay_endpoint_answered{${service},address="127.0.0.2"}`), 1)
})

test(
  '/whoami shows who the replica is, where it runs and its counters; its probes are ok',
  options,
  async t => {
    const env = { POD_NAME: 'echo-1', POD_IP: '10.0.0.1', NODE_NAME: 'node-a' }
    const server = await replica(t, [], env)
    const ready = await server.line('echo replica ready')
    assert.ok(await echoes(server, 'udp'))
    const { uptimeSeconds, ...who } = JSON.parse((await get(server, '/whoami')).body)
    assert.ok(uptimeSeconds >= 0 && uptimeSeconds < 60)
    assert.deepEqual(who, {
      name: 'echo-1',
      model: 'event-loop',
      protocol: 'echo',
      version: ready.version,
      addresses: ready.listen,
      pod: 'echo-1',
      podIp: '10.0.0.1',
      node: 'node-a',
      pid: server.pid,
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
    const idle = await openConnection(t, server)
    for (const query of ['', '?', '?verbose', '?a=/livez&b=1']) {
      assert.deepEqual(await status(server, `/readyz${query}`), [200, { status: 'ok', connections: 1 }])
      assert.deepEqual(await status(server, `/livez${query}`), [200, { status: 'ok' }])
    }
    const known = await get(server, '/')
    assert.equal(known.body, 'no / here; there are /livez /readyz /metrics /whoami /state\n')
    idle.destroy()
  },
)

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
  const attempts = cases.map(([listen, admin]) => run(['echo', '--listen', listen!, '--admin', admin!]))
  for (const [i, result] of (await Promise.all(attempts)).entries())
    assert.deepEqual(result, { code: 2, stdout: '', stderr: `roundelay: ${cases[i]?.[2]}\n` })
  const dns = ['dns', '--service', 'echo=static:127.0.0.1', '--listen', `127.0.0.1:${server.port}`]
  const expected = { code: 2, stdout: '', stderr: `roundelay: ${inUse(server.port)}\n` }
  assert.deepEqual(await run([...dns, '--admin', any]), expected)
  assert.ok(await echoes(server, 'udp'))
})
