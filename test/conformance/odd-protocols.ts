/** Protocols that behave as no real one does, to tell the server models apart and to see them fail. */
import { closeSync, existsSync, openSync, writeFileSync } from 'node:fs'
import type { TestContext } from 'node:test'
import { NO_REPLY, type Protocol } from '../../src/protocols.ts'
import { echo } from '../support/echo.ts'

const LOOK_AGAIN_MS = 5
/** A test that forgot its gate must not hold a processor for ever. */
const GIVE_UP_MS = 30_000

/** Echo that may do something with each request, and may refuse to reply to it. */
function echoBut(name: string, answer: (request: string, length: number) => number): Protocol {
  const text = (buffer: Uint8Array, length: number) =>
    Buffer.from(buffer.buffer, buffer.byteOffset, length).toString()
  return {
    ...echo,
    name,
    datagram: (buffer, length) => answer(text(buffer, length), length),
    session() {
      const inner = echo.session()
      return {
        get over() {
          return inner.over
        },
        onData: (buffer, length) => Math.max(0, answer(text(buffer, length), length)),
        onEnd: (buffer, room) => inner.onEnd(buffer, room),
      }
    },
  }
}

/** A file that exists as soon as a handler waits at the gate. */
export const arrivalAt = (gate: string): string => `${gate}.arrived`

const never = new Int32Array(new SharedArrayBuffer(4))

function waitFor(path: string): void {
  const giveUpAt = performance.now() + GIVE_UP_MS
  while (!existsSync(path) && performance.now() < giveUpAt) Atomics.wait(never, 0, 0, LOOK_AGAIN_MS)
}

/** Its handlers block, as a slow server's do: `wait PATH` is answered once the file PATH exists. */
export const gatedEcho = echoBut('gatedEcho', (request, length) => {
  const gate = /^wait (.+)$/.exec(request)?.[1]
  if (gate !== undefined) {
    writeFileSync(arrivalAt(gate), '')
    waitFor(gate)
  }
  return length
})

/** Does not reply to `quiet`. */
export const silentEcho = echoBut('silentEcho', (request, length) =>
  request === 'quiet' ? NO_REPLY : length,
)

/** Cannot be loaded, like one with a bug, until the file `ODD_PROTOCOL_CURE` exists. */
function dyingEcho(): Protocol {
  if (existsSync(process.env.ODD_PROTOCOL_CURE ?? '')) return echo
  // The reports of these deaths would bury that of the tests.
  closeSync(2)
  openSync('/dev/null', 'w')
  throw new Error('this protocol cannot be loaded')
}

/** Takes as long to load as the file `ODD_PROTOCOL_CURE` does not exist. */
function hangingEcho(): Protocol {
  waitFor(process.env.ODD_PROTOCOL_CURE ?? '/nowhere')
  return echo
}

/** By name, for child processes and threads. */
export const oddProtocols: Readonly<Record<string, () => Protocol>> = {
  gatedEcho: () => gatedEcho,
  silentEcho: () => silentEcho,
  dyingEcho,
  hangingEcho,
}

/** Until the end of the test, the child processes and threads of a server know the odd protocols. */
export function knowOddProtocols(t: TestContext): void {
  process.env.NODE_OPTIONS = `--import=${new URL('registry-hook.ts', import.meta.url).href}`
  t.after(() => {
    delete process.env.NODE_OPTIONS
  })
}

/** A protocol of this name, whose code only child processes and threads load. */
export const named = (name: string): Protocol => ({ ...echo, name })
