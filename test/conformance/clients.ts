/** Clients of an echo server, that end with their test. */
import assert from 'node:assert/strict'
import { createCipheriv } from 'node:crypto'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import type { TestContext } from 'node:test'

export const KIB = 1024
export const MIB = 1024 * KIB

/** The same octets in every run: AES in counter mode, keyed by the seed. */
export const randomOctets = (length: number, seed = length): Buffer =>
  createCipheriv('aes-128-ctr', Buffer.alloc(16, `seed ${seed}`), Buffer.alloc(16)).update(
    Buffer.alloc(length),
  )

/** In pieces of odd lengths, from a single octet on. */
export function* pieces(payload: Buffer): Generator<Buffer> {
  const random = randomOctets(256, payload.length + 1)
  for (let at = 0, i = 0; at < payload.length; i++) {
    const length = 1 + (random.readUInt16LE((2 * i) % 255) >> (i % 3 === 0 ? 12 : 0))
    yield payload.subarray(at, at + length)
    at += length
  }
}

/** A connection that the kernel has completed; the server may not have accepted it yet. */
export async function client(t: TestContext, port: number, host = '127.0.0.1'): Promise<Socket> {
  const socket = connect({ host, port, allowHalfOpen: true, noDelay: true })
  t.after(() => void socket.destroy())
  await once(socket, 'connect')
  return socket.on('error', () => {})
}

export const clients = (t: TestContext, port: number, count: number): Promise<Socket[]> =>
  Promise.all(Array.from({ length: count }, () => client(t, port)))

/** Writes and reads as many octets; the connection stays open. */
export async function roundTrip(socket: Socket, text: string): Promise<void> {
  socket.write(text)
  assert.equal(await read(socket, text.length), text)
}

export async function read(socket: Socket, octets: number): Promise<string> {
  let got = ''
  while (got.length < octets) got += await next(socket)
  return got
}

/** The next octets; rejects at the end of the stream, for which `once` would wait in vain. */
function next(socket: Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    const finish = (data?: Buffer) => {
      socket.off('data', finish).off('end', finish).off('close', finish)
      if (data) resolve(String(data))
      else reject(new Error('the server ended the connection'))
    }
    if (socket.closed || socket.readableEnded) return finish()
    socket.on('data', finish).on('end', finish).on('close', finish)
  })
}

/** Resolves when the server has ended the connection, with or without an error. */
export function ended(socket: Socket): Promise<void> {
  if (socket.closed || socket.readableEnded) return Promise.resolve()
  return new Promise(resolve => {
    socket.once('close', () => resolve()).once('end', () => resolve())
    socket.resume()
  })
}

/** The result of a connection attempt to this port: the code of its error, or 'connected'. */
export function attempt(t: TestContext, port: number): Promise<string> {
  const socket = connect(port, '127.0.0.1')
  t.after(() => void socket.destroy())
  return new Promise(resolve => {
    socket.once('connect', () => {
      socket.destroy()
      resolve('connected')
    })
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message))
  })
}
