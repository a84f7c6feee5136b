/** Starts the processes that run child.ts. */
import { type ChildProcess, type IOType, spawn } from 'node:child_process'
import type { Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { compileCache } from '../compile-cache.ts'
import { programUrl } from '../program.ts'
import { type ChildOrders, CONTROL } from './orders.ts'

/** Long, for a busy machine. */
const START_DEADLINE_MS = 20_000
const program = fileURLToPath(programUrl('child', import.meta.url))

export interface Child {
  readonly process: ChildProcess
  readonly pid: number
  /** To and from the child; its end tells the child that we are gone. */
  readonly control: Socket
  /** Resolves when it has said something: it has started. */
  readonly spoke: Promise<void>
  /** Resolves with undefined when the child ended as it should, else with why it did. */
  readonly ended: Promise<string | undefined>
}

/**
 * `connection` becomes the child's descriptor 0, `listeners` those from 4 on. Undefined when the system has no more
 * processes or descriptors: `refused` is then called with the error.
 */
export function startChild(
  orders: ChildOrders,
  connection: IOType | Socket,
  listeners: readonly number[],
  refused: (error: Error) => void,
): Child | undefined {
  let child: ChildProcess
  try {
    child = spawn(process.execPath, [program, JSON.stringify(orders)], {
      stdio: [connection, 'ignore', 'inherit', 'pipe', ...listeners],
      // Ctrl-C at a terminal is for the parent, which lets clients finish.
      detached: true,
      env: { ...compileCache(), ...process.env },
    })
  } catch (error) {
    // Of what may be wrong spawn throws some (ENOMEM) and emits the rest (EAGAIN, EMFILE).
    refused(error as Error)
    return undefined
  }
  const { pid } = child
  if (pid === undefined) {
    child.once('error', refused)
    return undefined
  }
  const control = child.stdio[CONTROL] as Socket
  // The child may end at any time.
  control.on('error', () => {})
  const ended = new Promise<string | undefined>(resolve => {
    // Not 'exit', which may come before the last that it said.
    child.once('close', (code, signal) =>
      resolve(code === 0 ? undefined : signal ? `killed by ${signal}` : `exit code ${code}`),
    )
  })
  const spoke = new Promise<void>(resolve => control.once('data', () => resolve()))
  // Where the system runs out of threads in the middle of it, Node may hang in its start.
  const late = setTimeout(() => child.kill('SIGKILL'), START_DEADLINE_MS)
  for (const over of [spoke, ended]) over.then(() => clearTimeout(late))
  return { process: child, pid, control, spoke, ended }
}
