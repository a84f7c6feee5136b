/** `roundelay check`: one probe, for the HEALTHCHECK of an image that has no shell, `nc` or `curl`. */
import { lookup } from 'node:dns/promises'
import { type ProbeResult, type ProbeTarget, probe } from '../client/probe.ts'
import { Expected } from '../errors.ts'
import type { Run } from './options.ts'
import { parseNamed } from './resolve-options.ts'

export const run: Run<'check'> = async (options, [text], { exit }) => {
  const { host, ...target } = parseNamed('target', text!, parseTarget)
  const result = await probeName(host, address => ({ ...target, address }) as ProbeTarget, options.timeout)
  process.stdout.write(`${result.ok ? 'ok' : 'failed'}: ${text}: ${result.detail}\n`)
  if (!result.ok) exit(1)
}

/** One healthy address is enough: localhost is often ::1 first, where an IPv4 server does not listen. */
async function probeName(
  host: string,
  at: (address: string) => ProbeTarget,
  timeoutMs: number,
): Promise<ProbeResult> {
  let result: ProbeResult = { ok: false, detail: `${host} has no address`, draining: false }
  try {
    for (const { address } of await lookup(host, { all: true })) {
      result = await probe(at(address), timeoutMs)
      if (result.ok) break
    }
    return result
  } catch (error) {
    return { ok: false, detail: (error as Error).message, draining: false }
  }
}

function parseTarget(text: string): { kind: ProbeTarget['kind']; host: string; port: number; path?: string } {
  const wanted = new Expected('udp://HOST:PORT, tcp://HOST:PORT or http://HOST[:PORT]/path')
  if (!URL.canParse(text)) throw wanted
  const { protocol, hostname, port, pathname, search } = new URL(text)
  const host = hostname.replace(/^\[|\]$/g, '')
  if (!host || port === '0') throw wanted
  if (protocol === 'http:') return { kind: 'http', host, port: Number(port || 80), path: pathname + search }
  if ((protocol !== 'udp:' && protocol !== 'tcp:') || !port || !/^\/?$/.test(pathname)) throw wanted
  return { kind: protocol === 'udp:' ? 'udp' : 'tcp', host, port: Number(port) }
}
