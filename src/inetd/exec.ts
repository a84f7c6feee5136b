/**
 * The program between inetd and a server where Node's spawn does not suffice: it takes on a user with
 * supplementary groups (spawn's uid and gid drop them), or reads which service a client of tcpmux wants (RFC
 * 1078). Then it *becomes* the server, with descriptors 0, 1 and 2 as they are.
 */
import { readSync, writeSync } from 'node:fs'
import type { Account } from './users.ts'

export interface ExecOrders {
  readonly path: string
  /** From argv[0] on. */
  readonly argv: readonly string[]
  /** Undefined for the user of inetd. */
  readonly account: Account | undefined
  readonly env: NodeJS.ProcessEnv
}

/** The report, as JSON. */
export interface Failure {
  readonly program: string
  readonly code: string | undefined
  readonly message: string
}

export interface MuxService extends Omit<ExecOrders, 'env'> {
  /** In lower case: RFC 1078 ignores case. */
  readonly name: string
  /** The shim sends the "+" reply for the server. */
  readonly plus: boolean
}

export interface MuxOrders {
  readonly services: readonly MuxService[]
  readonly env: NodeJS.ProcessEnv
  /** How long the client may take for the name of the service. */
  readonly nameTimeoutMs?: number
}

/** What the types of `process` lack. */
interface Groups {
  /** initgroups(3). */
  initgroups(user: string, extraGroup: number): void
}

/** The variable that holds the orders as JSON. Every user can read the arguments of a process. */
export const ORDERS = 'ROUNDELAY_EXEC_ORDERS'
/**
 * The descriptor for a report of why the server cannot be run. Node makes it close-on-exec when it starts.
 */
export const REPORT = 3
/** The exit code if the server cannot be run, as in a shell. */
export const CANNOT_RUN = 127

const MAX_NAME_OCTETS = 255
/** For the whole line: a client that sends an octet now and then does not keep its place for ever. */
const NAME_TIMEOUT_MS = 10_000
const CLIENT = 0

/** Returns only if the server cannot be run. */
function become({ path, argv, account, env }: ExecOrders): void {
  try {
    if (account) {
      ;(process as unknown as Groups).initgroups(account.name, account.gid)
      process.setgid?.(account.gid)
      process.setuid?.(account.uid)
    }
    // Node ignores these two signals. An ignored signal stays ignored across execve(2), a handled one gets
    // its default.
    process.on('SIGPIPE', () => {}).on('SIGXFSZ', () => {})
    process.execve?.(path, argv, env)
  } catch (error) {
    process.exitCode = CANNOT_RUN
    const { code, syscall, message } = error as NodeJS.ErrnoException
    // The system call tells a missing right (initgroups) from a program that cannot be run (execve).
    const failure: Failure = { program: path, code, message: `${syscall}: ${message}` }
    writeSync(REPORT, JSON.stringify(failure))
  }
}

function readOctet(octet: Buffer): boolean {
  try {
    return readSync(CLIENT, octet) === 1
  } catch {
    // The client is too slow (EAGAIN), or has reset the connection.
    return false
  }
}

/**
 * Reads the client's first line octet by octet, since what follows it is for the server. Undefined if there
 * is none.
 */
function readName(timeoutMs: number): string | undefined {
  const octet = Buffer.alloc(1)
  const deadline = performance.now() + timeoutMs
  let line = ''
  while (line.length <= MAX_NAME_OCTETS && performance.now() < deadline) {
    if (!readOctet(octet)) return undefined
    if (octet[0] === 0x0a) return line.replace(/\r$/, '').toLowerCase()
    line += octet.toString('latin1')
  }
  return undefined
}

async function multiplex({ services, env, nameTimeoutMs = NAME_TIMEOUT_MS }: MuxOrders): Promise<void> {
  const { giveUpAfter } = await import('../sys/sockets.ts')
  const { setBlocking } = await import('../sys/libc.ts')
  // Loading these files opens Node's standard streams, which makes descriptors 0 to 2 non-blocking.
  setBlocking(CLIENT)
  // A silent client must not keep its place for ever.
  giveUpAfter(CLIENT, nameTimeoutMs)
  const name = readName(nameTimeoutMs)
  // The server gets the socket as it was.
  giveUpAfter(CLIENT, 0)
  if (name === undefined) return
  if (name === 'help') {
    writeSync(CLIENT, services.map(service => `${service.name}\r\n`).join(''))
    return
  }
  const wanted = services.find(service => service.name === name)
  if (!wanted) {
    writeSync(CLIENT, '-Service not available\r\n')
    return
  }
  if (wanted.plus) writeSync(CLIENT, '+Go\r\n')
  become({ ...wanted, env })
}

if (import.meta.main) {
  // Standard error is the connection, and the client must not read Node's warning that execve is
  // experimental.
  process.removeAllListeners('warning')
  const orders: ExecOrders | MuxOrders = JSON.parse(process.env[ORDERS] ?? '')
  if ('services' in orders) await multiplex(orders)
  else become(orders)
}
