/**
 * The program between inetd and a server where Node's spawn does not suffice: it takes on a user with supplementary groups
 * (spawn's uid and gid drop them), or reads which service a client of tcpmux wants (RFC 1078), and then *becomes* the
 * server, with descriptors 0, 1 and 2 as they are.
 */
import { readSync, writeSync } from 'node:fs'
import type { Account } from './users.ts'

export interface ExecOrders {
  readonly path: string
  /** From argv[0] on. */
  readonly argv: readonly string[]
  /** Undefined: as whoever runs inetd. */
  readonly account: Account | undefined
  readonly env: NodeJS.ProcessEnv
}

export interface MuxService extends Omit<ExecOrders, 'env'> {
  /** In lower case: RFC 1078 does not tell cases apart. */
  readonly name: string
  /** inetd says "+" for the server. */
  readonly plus: boolean
}

export interface MuxOrders {
  readonly services: readonly MuxService[]
  readonly env: NodeJS.ProcessEnv
}

interface Groups {
  /** initgroups(3). */
  initgroups(user: string, extraGroup: number): void
}

/** The variable with the orders, as JSON: arguments could be read by everybody. */
export const ORDERS = 'ROUNDELAY_EXEC_ORDERS'
/** The exit code where the server cannot be run, as a shell's. */
export const CANNOT_RUN = 127

const MAX_NAME_OCTETS = 255
/** For the whole line: an octet now and then does not hold a place for ever. */
const NAME_TIMEOUT_MS = 10_000
const CLIENT = 0

/** Does not return, unless the server cannot be run. */
function become({ path, argv, account, env }: ExecOrders): void {
  try {
    if (account) {
      // Its types lack it.
      ;(process as unknown as Groups).initgroups(account.name, account.gid)
      process.setgid?.(account.gid)
      process.setuid?.(account.uid)
    }
    // Node ignores these two, and what is ignored stays so; what is handled becomes the default again: execve(2).
    process.on('SIGPIPE', () => {}).on('SIGXFSZ', () => {})
    process.execve?.(path, argv, env)
  } catch {
    process.exitCode = CANNOT_RUN
  }
}

function readOctet(octet: Buffer): boolean {
  try {
    return readSync(CLIENT, octet) === 1
  } catch {
    // Too late (EAGAIN), or reset.
    return false
  }
}

/** The client's first line, read octet by octet: what follows it is the server's. Undefined when there is none. */
function readName(): string | undefined {
  const octet = Buffer.alloc(1)
  const late = performance.now() + NAME_TIMEOUT_MS
  let line = ''
  while (line.length <= MAX_NAME_OCTETS && performance.now() < late) {
    if (!readOctet(octet)) return undefined
    if (octet[0] === 0x0a) return line.replace(/\r$/, '').toLowerCase()
    line += octet.toString('latin1')
  }
  return undefined
}

async function multiplex({ services, env }: MuxOrders): Promise<void> {
  // Whoever says nothing must not hold a place for ever; the server then finds the socket as it was.
  const { giveUpAfter } = await import('../sys/sockets.ts')
  const { setBlocking } = await import('../sys/libc.ts')
  // Loading them opens Node's standard streams, which makes them non-blocking.
  setBlocking(CLIENT)
  giveUpAfter(CLIENT, NAME_TIMEOUT_MS)
  const name = readName()
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
  // Standard error is the client's, who is not to read that execve is experimental.
  process.removeAllListeners('warning')
  const orders: ExecOrders | MuxOrders = JSON.parse(process.env[ORDERS] ?? '')
  if ('services' in orders) await multiplex(orders)
  else become(orders)
}
