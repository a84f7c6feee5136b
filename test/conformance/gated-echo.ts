/**
 * Echo whose handlers block, as a slow server's do: `wait PATH` is answered once the file PATH exists. Who else
 * is served meanwhile is what tells the server models apart.
 */
import { existsSync, writeFileSync } from 'node:fs'
import { echo, type Protocol } from '../../src/protocols.ts'

const LOOK_AGAIN_MS = 5
/** A test that forgot its gate must not hold a processor for ever. */
const GIVE_UP_MS = 30_000

/** Exists as soon as a handler stands before the gate. */
export const arrivalAt = (gate: string): string => `${gate}.arrived`

const never = new Int32Array(new SharedArrayBuffer(4))

function pass(buffer: Uint8Array, length: number): number {
  const gate = /^wait (.+)$/.exec(Buffer.from(buffer.buffer, buffer.byteOffset, length).toString())?.[1]
  if (gate === undefined) return length
  writeFileSync(arrivalAt(gate), '')
  const giveUpAt = performance.now() + GIVE_UP_MS
  while (!existsSync(gate) && performance.now() < giveUpAt) Atomics.wait(never, 0, 0, LOOK_AGAIN_MS)
  return length
}

export const gatedEcho: Protocol = {
  ...echo,
  name: 'gatedEcho',
  module: import.meta.url,
  stream(input, output) {
    input.on('data', (data: Buffer) => void output.write(data.subarray(0, pass(data, data.length))))
    input.on('end', () => void output.end())
    // A server hands connections over paused.
    input.resume()
  },
  datagram: pass,
  piece: pass,
}
