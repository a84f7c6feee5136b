/** A DNS server in a process of its own, whose memory and end can be seen. */
import assert from 'node:assert/strict'
import { fork } from 'node:child_process'
import { once } from 'node:events'
import type { TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import { addresses, dnsTcpClient, dnsUdpClient, parse, query, SERVICE, TYPE } from '../dns/message.ts'
import type { ChildOptions } from './dns-server-process.ts'

export const MIB = 1024 * 1024
export const A = query(SERVICE, TYPE.A)
export const withId = (message: Buffer, id: number): Buffer => {
  const copy = Buffer.from(message)
  copy.writeUInt16BE(id)
  return copy
}

/** Starts the server; it is ended after the test. */
export async function child(t: { after(end: () => Promise<void>): void }, options: ChildOptions = {}) {
  const path = fileURLToPath(new URL('dns-server-process.ts', import.meta.url))
  const started = fork(path, [JSON.stringify(options)], { execArgv: ['--expose-gc'], silent: true })
  const ended = once(started, 'exit').then(([code, signal]) => ({ code, signal }))
  t.after(async () => {
    started.kill('SIGKILL')
    await ended
  })
  const [{ port, tcpPort }] = await once(started, 'message')
  const memory = async (): Promise<number> => {
    started.send('memory')
    return (await once(started, 'message'))[0].memory
  }
  return { port, tcpPort, memory, ended }
}
export type Child = Awaited<ReturnType<typeof child>>

export async function assertServes(
  t: TestContext,
  { port, tcpPort = port }: { port: number; tcpPort?: number },
) {
  const udp = await dnsUdpClient(t, port)
  const tcp = await dnsTcpClient(t, tcpPort)
  for (const client of [udp, tcp])
    assert.deepEqual(parse(await client.ask(A)).addresses.toSorted(), addresses(3))
  tcp.socket.end()
}
