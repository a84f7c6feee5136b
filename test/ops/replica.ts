/** A replica process and its admin server, for the tests of `ops`. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import type { TestContext } from 'node:test'
import { httpGet } from '../../src/client/http.ts'
import { probe } from '../../src/client/probe.ts'
import { portOf, type Running, start } from '../support/process.ts'

const LONG_MS = 20_000

export interface Replica extends Running {
  readonly port: number
  readonly adminPort: number
}

export async function replica(t: TestContext, args: readonly string[] = [], env = {}): Promise<Replica> {
  const running = start(t, ['echo', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', ...args], env)
  const ready = await running.line('echo replica ready')
  return { ...running, port: portOf((ready.listen as string[])[0]), adminPort: portOf(ready.admin) }
}

export const get = ({ adminPort }: { adminPort: number }, path: string) =>
  httpGet({ address: '127.0.0.1', port: adminPort }, path, AbortSignal.timeout(LONG_MS))

/** The status code and the JSON body of a reply. */
export const status = async (server: { adminPort: number }, path: string) => {
  const { statusCode, body } = await get(server, path)
  return [statusCode, JSON.parse(body)]
}

export const echoes = async ({ port }: Replica, kind: 'udp' | 'tcp'): Promise<boolean> =>
  (await probe({ kind, address: '127.0.0.1', port }, LONG_MS)).ok

/** A connection over which something was echoed already. */
export async function openConnection(t: TestContext, { port }: Replica): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true })
  t.after(() => void socket.destroy())
  socket.on('error', () => {})
  await roundTrip(socket, 'open')
  return socket
}

export async function roundTrip(socket: Socket, text: string): Promise<void> {
  socket.write(text)
  assert.equal(String((await once(socket, 'data'))[0]), text)
}
