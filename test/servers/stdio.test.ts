import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import type { TestContext } from 'node:test'
import { SMALL_SERVICE_PORTS } from '../../src/protocols.ts'
import { headers } from '../../src/sys/layouts.ts'
import { close } from '../../src/sys/libc.ts'
import { bindUdp, listenTcp } from '../../src/sys/sockets.ts'
import { client, root, test } from '../inetd/client.ts'
import { cli } from '../support/process.ts'
import { udpClient } from '../support/udp.ts'

/** `echo --stdio` with this as descriptor 0, as inetd leaves it. */
function echoOf(t: TestContext, stdin: number | Socket | 'ignore', ...args: string[]) {
  const child: ChildProcess = spawn(process.execPath, [cli, 'echo', '--stdio', ...args], {
    stdio: [stdin, 'ignore', 'pipe'],
  })
  t.after(() => void child.kill('SIGKILL'))
  let stderr = ''
  child.stderr?.on('data', data => {
    stderr += data
  })
  const ended = once(child, 'close').then(([code, signal]) => ({ result: code ?? signal, stderr }))
  return { child, ended }
}

async function connection(t: TestContext) {
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => void server.close())
  const accepted = once(server, 'connection')
  const peer = await client(t, (server.address() as AddressInfo).port)
  return { peer, accepted: (await accepted)[0] as Socket }
}

test('a connection is echoed to the octet, and then the program ends', async t => {
  const { peer, accepted } = await connection(t)
  const { ended } = echoOf(t, accepted)
  accepted.destroy()
  const text = 'all sorts of octets: \0\x01\xff\n'.repeat(20_000)
  peer.end(Buffer.from(text, 'latin1'))
  assert.ok((await peer.all) === text)
  assert.deepEqual(await ended, { result: 0, stderr: '' })
})

test('with all three descriptors one socket, as behind inetd, it blocks while nothing comes, and does not spin', async t => {
  const { peer, accepted } = await connection(t)
  const child = spawn(process.execPath, [cli, 'echo', '--stdio'], { stdio: [accepted, accepted, accepted] })
  t.after(() => void child.kill('SIGKILL'))
  accepted.destroy()
  peer.write('hello')
  await once(peer, 'data')
  const flags = /^flags:\s+(\d+)/m.exec(readFileSync(`/proc/${child.pid}/fdinfo/0`, 'utf8'))?.[1] ?? ''
  assert.equal(Number.parseInt(flags, 8) & headers.O_NONBLOCK, 0)
})

test('a connection on which nothing moves is ended, and with it the program', async t => {
  const { peer, accepted } = await connection(t)
  const { ended } = echoOf(t, accepted, '--idle-timeout', '200ms')
  accepted.destroy()
  peer.write('hello')
  assert.equal(await peer.all, 'hello')
  assert.deepEqual(await ended, { result: 0, stderr: '' })
})

for (const address of ['127.0.0.1', '::1']) {
  test(`of a listening socket on ${address} one client after the other is served, until none comes`, async t => {
    const bound = listenTcp({ address, port: 0 }, true)
    const first = await client(t, bound.address.port, { host: address })
    const second = await client(t, bound.address.port, { host: address })
    second.write('second')
    const { ended } = echoOf(t, bound.fd, '--idle-timeout', '1s')
    first.write('first')
    await once(first, 'data')
    assert.equal(second.soFar(), '', 'it waits for its turn')
    first.end()
    second.end()
    assert.equal(await first.all, 'first')
    assert.equal(await second.all, 'second')
    assert.deepEqual(await ended, { result: 0, stderr: '' })
    close(bound.fd)
  })

  test(`of a UDP socket on ${address} what waits is echoed, and what comes, until nothing does`, async t => {
    const bound = bindUdp({ address, port: 0 }, 65_536)
    const peer = await udpClient(t, address)
    peer.send('first', bound.address.port)
    peer.send('', bound.address.port)
    const { ended } = echoOf(t, bound.fd, '--idle-timeout', '1s')
    assert.equal(String(await peer.ask('third', bound.address.port)), 'first')
    assert.deepEqual(await ended, { result: 0, stderr: '' })
    assert.deepEqual(peer.got.map(String), ['first', '', 'third'])
    close(bound.fd)
  })
}

test('datagrams from the ports of small services and from its own are not answered', async t => {
  const bound = bindUdp({ address: '127.0.0.1', port: 0 }, 65_536)
  const from = [bound.address.port, ...SMALL_SERVICE_PORTS.filter(port => port > (root ? 0 : 1023))]
  const forged = []
  for (const port of from)
    forged.push(
      await udpClient(t, '127.0.0.2', port).catch(error => void assert.equal(error.code, 'EADDRINUSE')),
    )
  for (const socket of forged) socket?.send('x', bound.address.port)
  const { ended } = echoOf(t, bound.fd, '--idle-timeout', '1s')
  assert.equal(String(await (await udpClient(t)).ask('hello', bound.address.port)), 'hello')
  await ended
  for (const socket of forged) assert.deepEqual(socket?.got ?? [], [])
  close(bound.fd)
})

test('SIGTERM ends it at once, though it waits in a system call', async t => {
  const bound = bindUdp({ address: '127.0.0.1', port: 0 }, 65_536)
  const { child, ended } = echoOf(t, bound.fd)
  assert.equal(String(await (await udpClient(t)).ask('hello', bound.address.port)), 'hello')
  child.kill('SIGTERM')
  assert.equal((await ended).result, 'SIGTERM')
  close(bound.fd)
})

test('without a socket as descriptor 0 the error is one line', async t => {
  const { result, stderr } = await echoOf(t, 'ignore').ended
  assert.equal(result, 2)
  assert.equal(
    stderr,
    'roundelay: Cannot serve descriptor 0: it is not a socket, as it would be behind inetd\n',
  )
})
