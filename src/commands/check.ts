/** `roundelay check`: one probe, for the HEALTHCHECK of an image that has no shell, `nc` or `curl`. */
import { lookup } from 'node:dns/promises'
import { type ProbeTarget, probe } from '../client/probe.ts'
import { Expected } from '../parse.ts'
import { parseNamed, type Run } from './options.ts'

export const run: Run<'check'> = async (options, [text], { exit }) => {
  const { host, ...target } = parseNamed('target', text, parseTarget)
  const { address } = await lookup(host)
  const result = await probe({ ...target, address } as ProbeTarget, options.timeout)
  process.stdout.write(`${result.ok ? 'ok' : 'failed'}: ${text}: ${result.detail}\n`)
  if (!result.ok) exit(1)
}

function parseTarget(text: string): { kind: ProbeTarget['kind']; host: string; port: number; path?: string } {
  const wanted = new Expected('udp://HOST:PORT, tcp://HOST:PORT or http://HOST[:PORT]/path')
  if (!URL.canParse(text)) throw wanted
  const { protocol, hostname, port, pathname, search } = new URL(text)
  const host = hostname.replace(/^\[|\]$/g, '')
  if (!host) throw wanted
  if (protocol === 'http:') return { kind: 'http', host, port: Number(port || 80), path: pathname + search }
  if ((protocol !== 'udp:' && protocol !== 'tcp:') || !Number(port) || !/^\/?$/.test(pathname)) throw wanted
  return { kind: protocol === 'udp:' ? 'udp' : 'tcp', host, port: Number(port) }
}
