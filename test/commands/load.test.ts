import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { type TestContext, test } from 'node:test'
import { stripVTControlCharacters } from 'node:util'
import type { toJson } from '../../src/client/report.ts'
import { eventLoop } from '../../src/servers/event-loop.ts'
import { echo } from '../support/echo.ts'
import { freePort } from '../support/ports.ts'
import { cli, has, run, start } from '../support/process.ts'

const options = { timeout: 60_000 }
/** Longer than a label may be: no resolver of the machine is asked. */
const noName = 'x'.repeat(64)
const SHORT = ['--duration', '300ms']
const NAME = 'echo.roundelay.test'
const replicas = ['127.0.5.1', '127.0.5.2', '127.0.5.3'] as const

type Json = ReturnType<typeof toJson>
const { parse } = JSON as { parse(text: string): Json }

async function echoServers(t: TestContext, addresses: readonly string[], port: number) {
  const listen = addresses.map(address => ({ address, port }))
  const server = await eventLoop(echo, { listen, maxConnections: 999, idleMs: 9e4, say: () => {} })
  t.after(() => server.close(AbortSignal.abort()))
  return { port: `${server.addresses[0]!.port}`, counters: server.counters }
}

/** A DNS server for `NAME` over these addresses, whether anybody is there or not. */
async function startDns(t: TestContext, addresses: readonly string[]): Promise<string> {
  const server = start(t, [
    ...['dns', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', '--check', 'none', '--ttl', '60'],
    ...['--service', `echo=static:${addresses}`],
  ])
  const ready = await server.line('DNS server is listening')
  await server.line('service ready')
  return (ready.listen as string[])[0]!
}

/** A UDP server that answers or not; `asked` resolves with the `enough`th datagram. */
async function udpServer(t: TestContext, answers: boolean, enough = 1) {
  const socket = createSocket('udp4').bind(0, '127.0.0.1')
  let count = 0
  socket.on('message', (message, { port, address }) => {
    if (answers) socket.send(message, port, address)
    if (++count === enough) socket.emit('enough')
  })
  const asked = once(socket, 'enough')
  await once(socket, 'listening')
  t.after(() => void socket.close())
  return { port: `${socket.address().port}`, asked }
}

test('--json prints one object whose numbers add up, and nothing else', options, async t => {
  const { port, counters } = await echoServers(t, ['127.0.0.1'], 0)
  for (const transport of ['udp', 'tcp']) {
    const args = [
      `--${transport}`,
      '--connections',
      '3',
      '--outstanding',
      '2',
      '--size',
      '100',
      '--seed',
      '7',
    ]
    const result = await run(['load', ...args, ...SHORT, '--json', '--port', port, '127.0.0.1'])
    assert.deepEqual([result.code, result.stderr], [0, ''])
    assert.match(result.stdout, /^\{[^\n]+\}\n$/)
    const json = parse(result.stdout)
    const asked = { transport, host: '127.0.0.1', port: Number(port), connections: 3, outstanding: 2 }
    assert.partialDeepStrictEqual(json, { ...asked, sizeOctets: 100, seed: 7, durationMs: 300, dns: null })
    assert.partialDeepStrictEqual(json, { lost: 0, wrong: 0, late: 0, failed: 0, behind: 0, unsent: 0 })
    const [replica] = json.replicas
    assert.deepEqual([json.replicas.length, replica!.connections, replica!.done], [1, 3, json.done])
    assert.equal(replica!.shareOfOperations, 1)
    assert.ok(json.done > 0 && json.elapsedMs >= 290)
    assert.ok(Math.abs(json.operationsPerSecond - (json.done * 1000) / json.elapsedMs) < 1)
    const { p50, p90, p99, p999, max } = json.latencyMs as NonNullable<Json['latencyMs']>
    const ascending = [0, p50, p90, p99, p999, max]
    assert.deepEqual(
      ascending.toSorted((a, b) => a - b),
      ascending,
    )
    if (transport === 'udp') assert.equal(counters.datagrams, json.done)
    else assert.equal(counters.connections, 3)
  }
})

test(
  'each spreads connections as DNS does; once and ttl pin all of them to one replica',
  options,
  async t => {
    const port = await freePort(...replicas)
    await echoServers(t, replicas, port)
    const dns = ['--dns', await startDns(t, replicas), '--port', `${port}`]
    const load = async (...args: string[]) => {
      const { code, stdout } = await run(['load', ...dns, ...SHORT, '--rate', '300', ...args, '--json', NAME])
      const json = parse(stdout)
      assert.deepEqual([code, json.replicas.map(({ address }) => address)], [0, [...replicas]])
      return { ...json, counts: json.replicas.map(({ connections }) => connections) }
    }
    for (const transport of ['--udp', '--tcp']) {
      const each = await load(transport, '--connections', '9')
      assert.deepEqual(each.counts, [3, 3, 3])
      assert.deepEqual(each.evennessOfConnections, { chiSquare: 0, degreesOfFreedom: 2, maxOverMean: 1 })
      for (const mode of ['once', 'ttl']) {
        const one = await load(transport, '--connections', '9', '--resolve', mode)
        assert.deepEqual(one.counts.toSorted(), [0, 0, 9], mode)
        assert.deepEqual(one.replicas.map(({ shareOfOperations }) => shareOfOperations).toSorted(), [0, 0, 1])
        assert.equal(one.evennessOfConnections?.chiSquare, 18)
      }
      const { counts } = await load(transport, '--connections', '3', '--new-connection')
      assert.ok(Math.max(...counts) - Math.min(...counts) <= 3, `${counts}`)
    }
  },
)

test('a replica that is not there fails, and its clients ask anew and go on', options, async t => {
  const port = await freePort(...replicas)
  const dns = ['--dns', await startDns(t, replicas), '--port', `${port}`]
  await echoServers(t, replicas.slice(1), port)
  const args = ['--tcp', '--connections', '6', '--rate', '300', '--duration', '1s', '--json']
  const { code, stdout } = await run(['load', ...dns, ...args, NAME])
  const [dead, ...well] = parse(stdout).replicas
  assert.equal(code, 0)
  assert.ok(dead!.failed >= 2 && dead!.failed === dead!.connections && dead!.done === 0, stdout)
  assert.equal(well[0]!.connections + well[1]!.connections, 6)
  assert.ok(well.every(({ done, failed }) => done > 0 && failed === 0))
})

test('the table is for people: what was run, how it went, a line for each replica', options, async t => {
  const { port } = await echoServers(t, ['127.0.0.1'], 0)
  const args = ['--rate', '200', '--connections', '4', '--outstanding', '50', '--duration', '500ms']
  const { code, stdout, stderr } = await run(['load', ...args, '--port', port, '127.0.0.1'])
  const [what, how, behind, latency, , header, replica, , even] = stdout.split('\n')
  assert.match(what!, new RegExp(`^udp 127\\.0\\.0\\.1 port ${port}, 32 octets, open loop of 200/s, 4 conn`))
  assert.match(how!, /^\d+ operations\/s for 0\.5 s: 100 done, 0 lost, 0 wrong, 0 late, 0 failed$/)
  assert.match(behind!, /^\d+ were sent more than 1 ms after they were due, 0 never$/)
  assert.match(latency!, /^latency in ms: p50 .* p99\.9 .* max /)
  assert.match(header!, /^replica +connections +operations +share % +p50 ms +p99 ms +max ms$/)
  assert.match(replica!, /^127\.0\.0\.1 +4 +100 +100\.0 /)
  assert.match(even!, /^evenness of connections: χ² 0\.00 \(degrees of freedom: 0\), max\/mean 1\.00$/)
  assert.deepEqual([code, stderr], [0, ''])
})

for (const [signal, answers, code] of [
  ['SIGINT', true, 0],
  ['SIGTERM', false, 1],
] as const)
  test(`${signal} ends the run, prints what there is, and the exit code is ${code}`, options, async t => {
    // With one in flight on each of 64 connections, the 65th is sent after a reply.
    const { port, asked } = await udpServer(t, answers, answers ? 65 : 1)
    const load = start(t, ['load', '--duration', '1h', '--timeout', '1h', '--port', port, '127.0.0.1'])
    await asked
    load.process.kill(signal)
    assert.deepEqual(await load.ended, { code, signal: null })
    await load.line(({ msg }) => msg.includes(answers ? ' 0 lost' : ': 0 done, 0 lost, 0 wrong'))
    await load.line('evenness of connections')
    assert.equal(load.stderr(), '')
  })

test('what is lost, and nothing done at all, makes exit code 1', options, async t => {
  const { port } = await udpServer(t, false)
  const silent = await run(['load', '--duration', '100ms', '--timeout', '100ms', '--port', port, '127.0.0.1'])
  assert.match(silent.stdout, / 0 done, 64 lost,/)
  assert.deepEqual([silent.code, silent.stderr], [1, ''])
  const refused = await run(['load', '--tcp', ...SHORT, '--port', port, '127.0.0.1'])
  assert.match(refused.stdout, / 0 done, 0 lost, 0 wrong, 0 late, [1-9]\d+ failed\n/)
  assert.equal(refused.code, 1)
})

test('a name that cannot be looked up at the start is one line', options, async () => {
  const { code, stdout, stderr } = await run(['load', noName])
  assert.match(stderr, /^roundelay: getaddrinfo .*x{64}\n$/)
  assert.deepEqual([code, stdout], [1, ''])
})

test('what does not go together is one line that says so, exit code 2', options, async () => {
  const cases: [args: string[], stderr: string][] = [
    [['--udp', '--tcp'], 'Cannot send over both transports: expected --udp or --tcp'],
    [['--tcp', '--size', '0'], 'Cannot use --size 0 over TCP: nothing would be sent; expected at least 1'],
    [['--size', '65508'], 'Cannot parse --size "65508": expected an integer from 0 to 65507'],
    [['--duration', '0'], 'Cannot parse --duration "0": expected a duration above 0 such as 500ms, 7s or 1m'],
    [['--resolve', 'never'], 'Cannot parse --resolve "never": expected one of each, once, ttl'],
    [
      ['--new-connection', '--outstanding', '2'],
      'Cannot use --outstanding 2 with --new-connection: a connection then carries one operation',
    ],
  ]
  for (const [args, stderr] of cases)
    assert.deepEqual(await run(['load', ...args, '127.0.0.1']), {
      code: 2,
      stdout: '',
      stderr: `roundelay: ${stderr}\n`,
    })
})

const skip = has('script') ? false : 'needs script (Debian: bsdutils)'

test('on a terminal a line of progress is rewritten each second and cleared at the end', {
  ...options,
  skip,
}, async t => {
  const { port } = await udpServer(t, true)
  const command = `'${process.execPath}' '${cli}' load --duration 1500ms --port ${port} 127.0.0.1`
  const terminal = spawn('script', ['-qec', `exec ${command}`, '/dev/null'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  t.after(() => terminal.kill('SIGKILL'))
  let shown = ''
  terminal.stdout.setEncoding('utf8').on('data', text => {
    shown += text
  })
  const [code] = await once(terminal, 'close')
  assert.equal(code, 0, shown)
  const [progress, ...rest] = shown.split('\r\x1b[K')
  assert.match(stripVTControlCharacters(progress!), /^\r1 s: [\d,]+ operations\/s; [\d,]+ done, 0 lost, /)
  assert.match(rest.join(''), /^udp 127\.0\.0\.1 /)
})
