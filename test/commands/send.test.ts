import assert from 'node:assert/strict'
import { createSocket, type RemoteInfo, type Socket as UdpSocket } from 'node:dgram'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { type TestContext, test } from 'node:test'
import { eventLoop } from '../../src/servers/event-loop.ts'
import { echo } from '../support/echo.ts'
import { portOf, run, start } from '../support/process.ts'

const options = { timeout: 30_000 }
/** Longer than a label may be: no resolver of the machine is asked. */
const noName = 'x'.repeat(64)
/** Echoes must arrive within it on a loaded machine too; a reply that never comes takes all of it. */
const TIMEOUT = ['--timeout', '2s']

type Answer = (message: Buffer, reply: (text: string | Buffer) => void, peer?: RemoteInfo) => void

/** Answers each datagram as `answer` says. */
async function udpServer(t: TestContext, answer: Answer): Promise<{ port: string; socket: UdpSocket }> {
  const socket = createSocket('udp4').bind(0, '127.0.0.1')
  socket.on('message', (message, peer) =>
    answer(message, text => socket.send(text, peer.port, peer.address), peer),
  )
  await once(socket, 'listening')
  t.after(() => void socket.close())
  return { port: `${socket.address().port}`, socket }
}

async function tcpServer(t: TestContext, serve: (socket: Socket, nth: number) => void) {
  const sockets: Socket[] = []
  const server = createServer(socket => {
    serve(
      socket.on('error', () => {}),
      sockets.push(socket),
    )
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return `${(server.address() as AddressInfo).port}`
}

async function echoServer(t: TestContext, address: string) {
  const listen = [{ address, port: 0 }]
  const server = await eventLoop(echo, { listen, maxConnections: 9, idleMs: 9e4, say: () => {} })
  t.after(() => server.close(AbortSignal.abort()))
  return { port: `${server.addresses[0]!.port}`, counters: server.counters }
}

test('each message comes back in a line of its own, over UDP unless --tcp is given', options, async t => {
  const messages = ['hello', '', 'grüße 🌍', '--udp', 'two words', 'x'.repeat(60_000)]
  const lines = messages.map(message => `[${Buffer.byteLength(message)} bytes] ${message}\n`)
  for (const address of ['127.0.0.1', '::1']) {
    const { port, counters } = await echoServer(t, address)
    for (const flag of [[], ['--udp'], ['--tcp']]) {
      const result = await run(['send', ...flag, '--port', port, '--', address, ...messages])
      assert.deepEqual(result, { code: 0, stdout: lines.join(''), stderr: '' })
    }
    assert.deepEqual([counters.datagrams, counters.connections], [2 * messages.length, 1])
  }
})

test('white space is a message too, and the environment sets what flags do not', options, async t => {
  const { port } = await echoServer(t, '127.0.0.1')
  const { code, stdout } = await run(['send', '127.0.0.1', ' ', '\n'], {
    ROUNDELAY_PORT: port,
    ROUNDELAY_TCP: 'true',
    ROUNDELAY_VERBOSE: 'true',
  })
  const details = String.raw`  from 127\.0\.0\.1:${port} tcp in \d+\.\d{3} ms\n`
  assert.match(stdout, new RegExp(`^\\[1 bytes\\]  ${details}\\[1 bytes\\] \n${details}$`))
  assert.equal(code, 0)
})

test('-v says which address answered, over what, and how fast', options, async t => {
  const { port } = await echoServer(t, '::1')
  const { stdout } = await run(['send', '-v', '--port', port, '::1', 'hello'])
  const expected = `^\\[5 bytes\\] hello  from \\[::1\\]:${port} udp in \\d+\\.\\d{3} ms\n$`
  assert.match(stdout, new RegExp(expected))
})

test('a UDP server that never answers is a failure, in one line that says so', options, async t => {
  const { port } = await udpServer(t, () => {})
  assert.deepEqual(await run(['send', '--timeout', '100ms', '--port', port, '127.0.0.1', 'hello']), {
    code: 1,
    stdout: '',
    stderr: `roundelay: no echo of "hello" from 127.0.0.1:${port} udp: no reply within 100 ms\n`,
  })
})

test('one missing reply of three is a failure, and the others are printed', options, async t => {
  const { port } = await udpServer(
    t,
    (message, reply) => message.equals(Buffer.from('two')) || reply(message),
  )
  assert.deepEqual(await run(['send', ...TIMEOUT, '--port', port, '127.0.0.1', 'one', 'two', 'three']), {
    code: 1,
    stdout: '[3 bytes] one\n[5 bytes] three\n',
    stderr: `roundelay: no echo of "two" from 127.0.0.1:${port} udp: no reply within 2000 ms\n`,
  })
})

test('a late reply of one message is not taken for the reply of the next', options, async t => {
  const peers: RemoteInfo[] = []
  const udp = await udpServer(t, (message, reply, peer) => {
    if (peers.push(peer as RemoteInfo) === 1) return
    udp.socket.send('one', peers[0]!.port, peers[0]!.address, () => reply(message))
  })
  const tcp = await tcpServer(t, (socket, nth) => {
    if (nth === 2) socket.pipe(socket)
  })
  for (const [transport, port] of [
    ['udp', udp.port],
    ['tcp', tcp],
  ] as const)
    assert.deepEqual(
      await run(['send', ...TIMEOUT, `--${transport}`, '--port', port, '127.0.0.1', 'one', 'two']),
      {
        code: 1,
        stdout: '[3 bytes] two\n',
        stderr: `roundelay: no echo of "one" from 127.0.0.1:${port} ${transport}: no reply within 2000 ms\n`,
      },
    )
  assert.equal(peers.length, 2)
})

test('a reply that differs is printed, told and a failure', options, async t => {
  const shout: Answer = (message, reply) => reply(message.toString().toUpperCase())
  const udp = await udpServer(t, shout)
  const tcp = await tcpServer(t, socket => {
    socket.on('data', (data: Buffer) => shout(data, text => socket.write(text)))
  })
  for (const [transport, port] of [
    ['udp', udp.port],
    ['tcp', tcp],
  ] as const)
    assert.deepEqual(await run(['send', `--${transport}`, '--port', port, '127.0.0.1', 'hello', 'SAME']), {
      code: 1,
      stdout: '[5 bytes] HELLO\n[4 bytes] SAME\n',
      stderr: 'roundelay: the reply differs from "hello"\n',
    })
  for (const wrong of ['', 'hello!']) {
    const { port } = await udpServer(t, (_message, reply) => reply(wrong))
    const { code, stdout, stderr } = await run(['send', '--port', port, '127.0.0.1', 'hello'])
    assert.deepEqual([code, stderr], [1, 'roundelay: the reply differs from "hello"\n'])
    assert.match(stdout, new RegExp(`^\\[${wrong.length} bytes\\] .*\n$`))
  }
})

test(
  'a TCP server that closes early is a failure for that message, and the next is tried anew',
  options,
  async t => {
    const port = await tcpServer(t, (socket, nth) => {
      if (nth === 1) socket.end('hel')
      else socket.pipe(socket)
    })
    assert.deepEqual(await run(['send', '--tcp', '--port', port, '127.0.0.1', 'hello', 'again']), {
      code: 1,
      stdout: '[5 bytes] again\n',
      stderr: `roundelay: no echo of "hello" from 127.0.0.1:${port} tcp: connection closed after 3 of 5 bytes\n`,
    })
  },
)

test(
  'nobody there, a message too long for UDP and a name that does not exist are failures of one line',
  options,
  async t => {
    const { port, socket } = await udpServer(t, () => {})
    const free = await tcpServer(t, socket => void socket.pipe(socket))
    const long = 'x'.repeat(65_508)
    const cases: [args: string[], stderr: RegExp][] = [
      [['--tcp', '--port', port, '127.0.0.1', 'hello'], /^roundelay: no echo of "hello" .*ECONNREFUSED.*\n$/],
      [['--udp', '--port', free, '127.0.0.1', 'hello'], /^roundelay: no echo of "hello" .*ECONNREFUSED.*\n$/],
      [['--port', port, '127.0.0.1', long], /^roundelay: no echo of "x+" .*EMSGSIZE.*\n$/],
      [['--port', port, noName, 'hello'], /^roundelay: getaddrinfo .*x{64}\n$/],
    ]
    for (const [args, expected] of cases) {
      const { code, stdout, stderr } = await run(['send', ...args])
      assert.match(stderr, expected)
      assert.deepEqual([code, stdout], [1, ''])
    }
    assert.ok(socket)
  },
)

test('both --udp and --tcp are too many: one line, exit code 2', options, async () => {
  const expected = {
    code: 2,
    stdout: '',
    stderr: 'roundelay: Cannot send over both transports: expected --udp or --tcp\n',
  }
  assert.deepEqual(await run(['send', '--udp', '--tcp', '127.0.0.1', 'hello']), expected)
  const env = { ROUNDELAY_UDP: 'true', ROUNDELAY_TCP: '1' }
  assert.deepEqual(await run(['send', '127.0.0.1', 'hello'], env), expected)
})

test('a DNS server with a zone is refused: Node would drop the zone', options, async () => {
  assert.deepEqual(await run(['send', '--dns', 'fe80::1%lo', 'a.test', 'hello']), {
    code: 2,
    stdout: '',
    stderr:
      'roundelay: Cannot parse --dns "fe80::1%lo": expected an address without a zone: ' +
      'Node cannot send DNS queries to a link-local address\n',
  })
})

test('a flag goes before the environment, also before the variable of its opposite', options, async () => {
  const bad = ['--port', '1', '--timeout', '100ms', '127.0.0.1', 'hello']
  const tcp = await run(['send', '--tcp', ...bad], { ROUNDELAY_UDP: 'true' })
  assert.match(tcp.stderr, /127\.0\.0\.1:1 tcp/)
  const udp = await run(['send', '--udp', ...bad], { ROUNDELAY_TCP: 'true' })
  assert.match(udp.stderr, /127\.0\.0\.1:1 udp/)
})

test('--dns asks our own server: A first, AAAA where there is no A, and nothing else', options, async t => {
  const server = start(t, [
    ...['dns', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', '--check', 'none'],
    ...['--service', 'four=static:127.0.0.1', '--service', 'six=static:::1'],
  ])
  const ready = await server.line('DNS server is listening')
  await server.line(line => line.msg.startsWith('service ready') && line.service === 'six.roundelay.test')
  await server.line(line => line.msg.startsWith('service ready') && line.service === 'four.roundelay.test')
  const dns = ['--dns', (ready.listen as string[])[0]!]
  const { port: v4 } = await echoServer(t, '127.0.0.1')
  const { port: v6 } = await echoServer(t, '::1')
  for (const [name, port, from] of [
    ['four.roundelay.test', v4, `127.0.0.1:${v4}`],
    ['six.roundelay.test', v6, `[::1]:${v6}`],
    ['127.0.0.1', v4, `127.0.0.1:${v4}`],
  ]) {
    const { code, stdout } = await run(['send', '-v', ...dns, '--port', port!, name!, 'hello'])
    assert.ok(stdout.startsWith(`[5 bytes] hello  from ${from} udp in `), stdout)
    assert.equal(code, 0)
  }
  const none = await run(['send', ...dns, 'none.roundelay.test', 'hello'])
  assert.match(none.stderr, /^roundelay: .*ENOTFOUND none\.roundelay\.test\n$/)
  assert.deepEqual([none.code, none.stdout], [1, ''])
  assert.ok(portOf(dns[1]!) > 0)
})
