/** One probe of a server, for health checks: does it answer correctly, and does it report that it drains? */
import { randomBytes } from 'node:crypto'
import { openEcho } from './echo.ts'
import { httpGet } from './http.ts'

export type ProbeTarget =
  | { readonly kind: 'udp' | 'tcp'; readonly address: string; readonly port: number }
  | { readonly kind: 'http'; readonly address: string; readonly port: number; readonly path: string }

export type ProbeResult =
  | { readonly ok: true; readonly detail: string; readonly activeConnections?: number }
  | { readonly ok: false; readonly detail: string; readonly draining: boolean }

const NONCE_OCTETS = 16

/** Never rejects: whatever goes wrong with a server is a result. Ends within `timeoutMs`. */
export async function probe(target: ProbeTarget, timeoutMs: number): Promise<ProbeResult> {
  const limit = new AbortController()
  // After a process was held up (a busy machine, SIGSTOP), its timers are due before it has read what arrived
  // meanwhile. One more turn of the event loop lets an answer that has arrived count.
  const timer = setTimeout(() => setImmediate(() => limit.abort()), timeoutMs)
  try {
    return target.kind === 'http'
      ? await probeHttp(target, limit.signal)
      : await probeEcho(target, limit.signal)
  } catch (error) {
    const detail = limit.signal.aborted ? `no answer within ${timeoutMs} ms` : (error as Error).message
    return { ok: false, detail, draining: false }
  } finally {
    clearTimeout(timer)
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
 * 2xx is healthy. Our own `/readyz` also gives the reason why it is not, and how many connections are open.
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
      // It is shown in logs and on terminals: only a short line is safe.
      ...(typeof status === 'string' && /^[\x20-\x7e]{1,40}$/.test(status) && { status }),
      ...(Number.isSafeInteger(connections) && connections >= 0 && { connections }),
    }
  } catch {
    return {}
  }
}
