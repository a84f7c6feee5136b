/** One health check of a server: does it answer correctly, and does it say that it is draining? */
import { randomBytes } from 'node:crypto'
import { type Clock, systemClock } from '../clock.ts'
import { openEcho } from './echo.ts'
import { httpGet } from './http.ts'

export type ProbeTarget =
  | { readonly kind: 'udp' | 'tcp'; readonly address: string; readonly port: number }
  | { readonly kind: 'http'; readonly address: string; readonly port: number; readonly path: string }

export type ProbeResult =
  | { readonly ok: true; readonly detail: string; readonly activeConnections?: number }
  | {
      readonly ok: false
      readonly detail: string
      readonly draining: boolean
      /** This machine could not ask, so that nothing is known of the server. */
      readonly own?: true
    }

const NONCE_OCTETS = 16

/** Descriptors, ports, buffers or memory of this machine have run out, or the address is not usable here. */
const ownErrors: ReadonlySet<unknown> = new Set([
  ...['EMFILE', 'ENFILE', 'EADDRNOTAVAIL', 'ENOBUFS', 'ENOMEM', 'EINVAL'],
])

/** Whether an error is the checker's own. Any other one, such as ECONNREFUSED, is a result of the check. */
export const isOwnError = (error: unknown): boolean => ownErrors.has((error as { code?: unknown }).code)

/** Never rejects: every failure of a server is a result. Ends within `timeoutMs`. */
export async function probe(
  target: ProbeTarget,
  timeoutMs: number,
  clock: Clock = systemClock,
): Promise<ProbeResult> {
  const limit = new AbortController()
  // After a pause of this process (a busy machine, SIGSTOP) its timers run before it has read what came
  // meanwhile. The answer gets one more turn of the event loop, so that the server is not blamed for our
  // delay.
  const cancelTimeout = clock.after(timeoutMs, () => setImmediate(() => limit.abort()))
  try {
    return target.kind === 'http'
      ? await probeHttp(target, limit.signal)
      : await probeEcho(target, limit.signal)
  } catch (error) {
    const detail = limit.signal.aborted ? `no answer within ${timeoutMs} ms` : (error as Error).message
    return { ok: false, detail, draining: false, ...(isOwnError(error) && { own: true }) }
  } finally {
    cancelTimeout()
  }
}

async function probeEcho(
  target: ProbeTarget & { kind: 'udp' | 'tcp' },
  limit: AbortSignal,
): Promise<ProbeResult> {
  const nonce = randomBytes(NONCE_OCTETS)
  const session = await openEcho(target.kind, target, limit)
  try {
    const reply = await session.exchange(nonce, limit)
    return reply.equals(nonce)
      ? { ok: true, detail: `echoed ${nonce.length} bytes` }
      : { ok: false, detail: 'the echo differs from what was sent', draining: false }
  } finally {
    session.close()
  }
}

async function probeHttp(target: ProbeTarget & { kind: 'http' }, limit: AbortSignal): Promise<ProbeResult> {
  const { statusCode, body } = await httpGet(target, target.path, limit)
  return judge(statusCode, body)
}

/**
 * The status decides: 2xx is a pass. Our own `/readyz` also tells the reason of a failure, and how many
 * connections are open.
 */
function judge(statusCode: number, body: string): ProbeResult {
  const { status, connections } = readStatus(body)
  const detail = `HTTP ${statusCode}`
  if (statusCode < 200 || statusCode > 299)
    return { ok: false, detail: status ? `${detail} ${status}` : detail, draining: status === 'draining' }
  return connections === undefined
    ? { ok: true, detail }
    : { ok: true, detail, activeConnections: connections }
}

function readStatus(body: string): { status?: string; connections?: number } {
  try {
    const { status, connections } = JSON.parse(body)
    return {
      // It appears in logs and on terminals, so only a short printable line is accepted.
      ...(typeof status === 'string' && /^[\x20-\x7e]{1,40}$/.test(status) && { status }),
      ...(Number.isSafeInteger(connections) && connections >= 0 && { connections }),
    }
  } catch {
    return {}
  }
}
