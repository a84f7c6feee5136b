/** Starts processes that run child.ts. */
import { type ChildProcess, type IOType, spawn } from 'node:child_process'
import type { Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import type { Clock } from '../clock.ts'
import { compileCache } from '../compile-cache.ts'
import { nodeArguments, programUrl } from '../program.ts'
import { type ChildOrders, CONTROL } from './orders.ts'

/** Much longer than a start takes, even on a busy machine. */
export const START_DEADLINE_MS = 20_000
const program = fileURLToPath(programUrl('child', import.meta.url))

export interface Child {
  readonly process: ChildProcess
  readonly pid: number
  /** To and from the child. When this end is closed, the child knows that we are gone. */
  readonly control: Socket
  /** Resolves when the child has sent its first state: it has started. */
  readonly started: Promise<void>
  /** Resolves when the child has ended: with undefined if it ended by itself, else with the reason. */
  readonly ended: Promise<string | undefined>
}

/**
 * `connection` becomes the child's descriptor 0, `listeners` its descriptors from 4 on. Returns undefined
 * when the system has no more processes or descriptors, and then calls `refused` with the error. A child that
 * has not started after `START_DEADLINE_MS` is killed.
 */
export function startChild(
  orders: ChildOrders,
  connection: IOType | Socket,
  listeners: readonly number[],
  clock: Clock,
  refused: (error: Error) => void,
): Child | undefined {
  let child: ChildProcess
  try {
    child = spawn(process.execPath, [...nodeArguments, program, JSON.stringify(orders)], {
      stdio: [connection, 'ignore', 'inherit', 'pipe', ...listeners],
      // Ctrl-C at a terminal is for the parent, which lets clients finish.
      detached: true,
      env: { ...compileCache(), ...process.env },
    })
  } catch (error) {
    // spawn throws some errors (ENOMEM) and emits others (EAGAIN, EMFILE).
    refused(error as Error)
    return undefined
  }
  const { pid } = child
  if (pid === undefined) {
    child.once('error', refused)
    return undefined
  }
  const control = child.stdio[CONTROL] as Socket
  // The child may end at any time, and a write then fails.
  control.on('error', () => {})
  const ended = new Promise<string | undefined>(resolve => {
    // 'exit' may come before the last octets of the control socket, 'close' does not.
    child.once('close', (code, signal) =>
      resolve(code === 0 ? undefined : signal ? `killed by ${signal}` : `exit code ${code}`),
    )
  })
  const started = new Promise<void>(resolve => control.once('data', () => resolve()))
  // When the system runs out of threads during its start, Node may hang.
  const cancel = clock.after(START_DEADLINE_MS, () => child.kill('SIGKILL'))
  started.then(cancel)
  ended.then(cancel)
  return { process: child, pid, control, started, ended }
}
