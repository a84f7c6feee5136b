import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { Resolver } from 'node:dns/promises'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { type TestContext, test } from 'node:test'
import { stripVTControlCharacters } from 'node:util'
import { freePorts } from '../support/ports.ts'
import { cli, has, type Line, type Running, run, start } from '../support/process.ts'
import { until } from '../support/until.ts'

const hosts = ['127.0.0.1', '127.0.1.1', '127.0.1.2', '127.0.1.3']

async function farmArgs(replicas = 3) {
  const [port, adminPort, dns, admin] = await freePorts(4, ...hosts)
  const args = ['up', '--replicas', replicas, '--port', port, '--admin-port', adminPort]
  return {
    dns,
    admin,
    adminPort,
    args: [...args, '--listen', `127.0.0.1:${dns}`, '--admin', `127.0.0.1:${admin}`].map(String),
  }
}

async function startFarm(t: TestContext, replicas?: number, more: readonly string[] = []) {
  const { args, dns, admin, adminPort } = await farmArgs(replicas)
  const farm = start(t, [...args, ...more])
  await farm.line('service ready')
  // A query that is sent again would take a turn of its own.
  const resolver = new Resolver({ timeout: 20_000, tries: 1 })
  resolver.setServers([`127.0.0.1:${dns}`])
  const pids = () =>
    farm.lines.filter(line => line.msg === 'echo replica ready').map(line => line.pid as number)
  const look = () => resolver.resolve4('echo.roundelay.test')
  return { farm, look, pids, admin, adminPort }
}

const alive = (pid: number) => {
  // A zombie has ended; its parent has only not read the exit code yet.
  const status = existsSync(`/proc/${pid}/stat`) ? readFileSync(`/proc/${pid}/stat`, 'utf8') : ''
  return status !== '' && !/\) Z /.test(status)
}

const isDown = (address: string) => (line: Line) => line.endpoint === address && line.to === 'down'

test('up starts three replicas that take exact turns in front', async t => {
  // On a busy machine no replica may fail a check: that would change the turns.
  const { look } = await startFarm(t, 3, ['--check-timeout', '20s'])
  const firsts: Record<string, number> = {}
  for (let i = 0; i < 300; i++) {
    const [first, ...others] = await look()
    assert.equal(others.length, 2)
    firsts[first!] = (firsts[first!] ?? 0) + 1
  }
  assert.deepEqual(firsts, { '127.0.1.1': 100, '127.0.1.2': 100, '127.0.1.3': 100 })
})

test('a killed replica leaves the answer, is not restarted, and returns when started by hand', async t => {
  const { farm, look, pids } = await startFarm(t)
  const [victim] = pids()
  const address = farm.lines.find(line => line.msg === 'echo replica ready' && line.pid === victim)?.listen
  const gone = String(address).split(':')[0]
  process.kill(victim!, 'SIGKILL')
  const ended = await farm.line(`replica ${gone} ended`)
  assert.equal(ended.by, 'SIGKILL')
  await farm.line(isDown(gone!))
  await until('the replica has left the answer', async () => !(await look()).includes(gone!))
  assert.equal((await look()).length, 2)
  assert.equal(pids().length, 3)

  const [, , ...args] = String(ended.startAgain).split(' ')
  const again = start(t, args)
  await again.line('echo replica ready')
  await until('the replica is in the answer again', async () => (await look()).includes(gone!))
})

for (const signal of ['SIGTERM', 'SIGINT'] as const)
  test(`${signal} ends up and all its replicas with exit code 0`, async t => {
    const { farm, pids } = await startFarm(t, 2)
    farm.process.kill(signal)
    assert.deepEqual(await farm.ended, { code: 0, signal: null })
    assert.equal(pids().length, 2)
    assert.deepEqual(pids().filter(alive), [])
  })

test('the replicas end when up is killed with SIGKILL', {
  skip: existsSync('/proc') ? false : 'needs /proc',
}, async t => {
  const { farm, pids } = await startFarm(t, 2)
  assert.deepEqual(pids().map(alive), [true, true])
  farm.process.kill('SIGKILL')
  await until('all replicas have ended', () => !pids().some(alive))
})

test('a port in use is an error before anything is started: one line and exit code 2', async () => {
  const attempt = async (host: string, which: 'adminPort' | 'dns' | 'admin') => {
    const { args, ...ports } = await farmArgs()
    const port = ports[which]
    const taken = createServer().listen({ host, port })
    await once(taken, 'listening')
    const { code, stdout, stderr } = await run(args)
    assert.equal(stderr, `roundelay: Cannot listen on ${host}:${port}: the port is in use\n`)
    assert.equal(stdout, '')
    assert.equal(code, 2)
    taken.close()
  }
  await Promise.all([
    attempt('127.0.1.2', 'adminPort'),
    attempt('127.0.0.1', 'dns'),
    attempt('127.0.0.1', 'admin'),
  ])
})

test('options that do not go together are an error before anything is started', async () => {
  const { args } = await farmArgs()
  const { code, stdout, stderr } = await run([...args, '--policy', 'least-loaded', '--check', 'udp:7007'])
  assert.match(stderr, /^roundelay: Cannot use --policy least-loaded: .*\n$/)
  assert.equal(stdout, '')
  assert.equal(code, 2)
})

test('up listens on both wildcards of one port, as dns does', async t => {
  const { args, dns, admin } = await farmArgs(1)
  const others = args.filter((arg, i) => arg !== '--listen' && args[i - 1] !== '--listen')
  const farm = start(t, [...others, '--listen', `0.0.0.0:${dns}`, '--listen', `[::]:${dns}`])
  await farm.line('service ready')
  assert.equal((await fetch(`http://127.0.0.1:${admin}/readyz`)).status, 200)
})

test('one port for two uses, and a name too long, are errors before anything is started', async () => {
  const long = Array(4).fill('a'.repeat(55)).join('.')
  const zone = 'b'.repeat(60)
  const [twice, named, service] = await Promise.all([
    run(['up', '--port', '9999', '--admin-port', '9999']),
    run(['up', '--zone', long]),
    run([
      ...['dns', '--zone', `${zone}.${long}`.slice(0, 240)],
      ...['--service', `${zone}=static:127.0.0.1`],
    ]),
  ])
  assert.match(twice.stderr, /^roundelay: Cannot use 9999 as --port and as --admin-port: .*\n$/)
  assert.match(
    named.stderr,
    /^roundelay: Cannot serve --service echo\.a{55}.*: names of endpoints below it .*\n$/,
  )
  assert.match(
    service.stderr,
    /^roundelay: Cannot parse --service "b{60}\.b{60}.*": expected a domain name .*\n$/,
  )
  assert.deepEqual([twice.code, named.code, service.code], [2, 2, 2])
})

test('a replica does not take its flags from the environment of up', async t => {
  const { args } = await farmArgs(1)
  const farm = start(t, args, { ROUNDELAY_DRAIN: 'abc', ROUNDELAY_IDLE_TIMEOUT: 'abc' })
  await farm.line('service ready')
})

test('up starts at most 200 replicas', async () => {
  const { code, stderr } = await run(['up', '--replicas', '201'])
  assert.equal(stderr, 'roundelay: Cannot parse --replicas "201": expected an integer from 1 to 200\n')
  assert.equal(code, 2)
})

const noPty = has('script') ? false : 'needs script (Debian: bsdutils)'
test('on a terminal, up shows what to try and a live table, and Ctrl-C ends everything', {
  skip: noPty,
}, async t => {
  const { args, dns, admin } = await farmArgs()
  const command = [process.execPath, cli, ...args].map(word => `'${word}'`).join(' ')
  const terminal = spawn('script', ['-qec', `stty cols 100 rows 40; exec ${command}`, '/dev/null'])
  t.after(() => terminal.kill('SIGKILL'))
  let written = ''
  terminal.stdout.setEncoding('utf8').on('data', text => {
    written += text
  })
  const shown = () => stripVTControlCharacters(written).replaceAll('\r', '')
  await until(
    'the table shows three replicas and their counts',
    () => /^127\.0\.1\.3 +up /m.test(shown()) && /^127\.0\.1\.1 +up +\d+ +[1-9]\d* /m.test(shown()),
  )
  assert.match(shown(), /rotation: {2}dig @127\.0\.0\.1 -p \d+ echo\.roundelay\.test \+short/)
  assert.match(shown(), /echo: {6}.* send --tcp /)
  const pid = Number(/failure: {3}kill -9 (\d+)/.exec(shown())?.[1])
  assert.ok(alive(pid))
  const resolver = new Resolver()
  resolver.setServers([`127.0.0.1:${dns}`])
  await resolver.resolve4('echo.roundelay.test')
  await until(
    'the table shows the query',
    () => /^DNS answers: 1$/m.test(shown()) && /^127\.0\.1\.1 +up +1 /m.test(shown()),
  )
  for (const column of ['replica', 'state', 'first', 'datagrams', 'connections', 'checks'])
    assert.ok(shown().includes(column), column)

  // The event hub tells the table that the replica has ended.
  process.kill(pid, 'SIGKILL')
  const restart = /restart 127\.0\.1\.1: (.* echo --listen 127\.0\.1\.1:\d+ --admin 127\.0\.1\.1:\d+)/
  await until(
    'the table shows how to restart the replica',
    () => restart.test(shown()) && /^127\.0\.1\.1 +down /m.test(shown()),
  )
  const next = Number(/.*failure: {3}kill -9 (\d+)/s.exec(shown())?.[1])
  assert.notEqual(next, pid)
  terminal.stdin.write('\x03')
  const [code] = await once(terminal, 'close')
  assert.equal(code, 0)
  assert.ok(!alive(next))
  await assert.rejects(fetch(`http://127.0.0.1:${admin}/livez`))
})

test('/state shows every replica, and the metrics show which address came first', async t => {
  const { farm, look, admin } = await startFarm(t, 2)
  await look()
  await look()
  await look()
  const state = await (await fetch(`http://127.0.0.1:${admin}/state`)).json()
  const [service] = (state as { services: { service: string; endpoints: Endpoint[] }[] }).services
  assert.equal(service!.service, 'echo.roundelay.test')
  assert.deepEqual(
    service!.endpoints.map(e => [e.address, e.state, e.first]),
    [
      ['127.0.1.1', 'up', 2],
      ['127.0.1.2', 'up', 1],
    ],
  )
  const metrics = await (await fetch(`http://127.0.0.1:${admin}/metrics`)).text()
  const label = 'name="echo.roundelay.test",type="A",address="127.0.1.1"'
  assert.ok(metrics.includes(`roundelay_dns_first_total{${label}} 2\n`))
  assert.ok(metrics.includes('roundelay_service_endpoints{service="echo.roundelay.test",state="up"} 2\n'))
  assert.equal(stackTraces(farm), 0)
})

type Endpoint = { address: string; state: string; first: number }

const stackTraces = ({ lines }: Running) =>
  lines.filter(line => JSON.stringify(line).includes('    at ')).length
