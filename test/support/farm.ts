/** Three replicas and a DNS server as processes, on loopback addresses of their own. */
import { Resolver } from 'node:dns/promises'
import type { TestContext } from 'node:test'
import { freePort } from './ports.ts'
import { type Running, start } from './process.ts'
import { until } from './until.ts'

export const NAME = 'echo.roundelay.test'
export const addresses = ['127.0.3.1', '127.0.3.2', '127.0.3.3'] as const
export const DNS = '127.0.3.53'

/** Starts `roundelay dns` on the given port; its methods ask it. */
export async function startDns(t: TestContext, port: number, args: readonly string[]) {
  const at = ['--listen', `${DNS}:${port}`, '--admin', `${DNS}:0`, '--drain', '0', '--grace', '1s']
  const process = start(t, ['dns', ...at, ...args])
  const { admin } = await process.line('DNS server is listening')
  const resolver = new Resolver()
  resolver.setServers([`${DNS}:${port}`])
  const answer = () => resolver.resolve4(NAME)
  return {
    process,
    answer,
    /** Asks for other types and names, whose turns are independent. */
    askOthers: () => Promise.all([resolver.resolveTxt(NAME), resolver.resolveSrv(`_echo._udp.${NAME}`)]),
    answerWithTtl: () => resolver.resolve4(NAME, { ttl: true }),
    /** Asks until the answer fits; resolves with the milliseconds that it took. */
    until: (fits: (answer: string[]) => boolean) =>
      until(`the answer fits ${fits}`, async () => fits(await answer())),
    state: async () => (await fetch(`http://${admin}/state`)).json() as Promise<State>,
    metric: async (line: RegExp) => line.exec(await (await fetch(`http://${admin}/metrics`)).text())?.[1],
  }
}

interface State {
  readonly services: readonly {
    readonly endpoints: readonly { readonly address: string; readonly activeConnections: number }[]
  }[]
}

/** Starts three replicas, and a DNS server that checks them as `up` does. */
export async function startFarm(t: TestContext, args: readonly string[] = []) {
  const [port, adminPort] = [await freePort(...addresses), await freePort(...addresses)]
  const startReplica = async (address: string): Promise<Running> => {
    const at = ['--listen', `${address}:${port}`, '--admin', `${address}:${adminPort}`]
    const replica = start(t, ['echo', ...at, '--drain', '3s'])
    await replica.line('echo replica ready')
    return replica
  }
  const replicas = await Promise.all(addresses.map(startReplica))
  const checks = ['--check', `udp:${port}`, '--check', `http:${adminPort}/readyz`]
  const pace = ['--check-interval', '400ms', '--check-timeout', '2s', '--ttl', '1']
  const source = ['--service', `echo=static:${addresses}`]
  const dns = await startDns(t, await freePort(DNS), [...source, ...checks, ...pace, ...args])
  await dns.process.line('service ready')
  return { port, startReplica, replicas, dns }
}
