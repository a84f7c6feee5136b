/** A server model in the test's own process, closed when the test ends. */
import type { TestContext } from 'node:test'
import { systemClock } from '../../src/clock.ts'
import type { Protocol } from '../../src/protocols.ts'
import type { EchoService, ServerModel, ServerOptions } from '../../src/servers/service.ts'
import { childrenOf, isChildOfModel } from './proc.ts'

export interface Report {
  readonly level: string
  readonly message: string
  readonly details: Readonly<Record<string, unknown>>
}

export interface Served extends EchoService {
  readonly port: number
  /** What an operator would read. */
  readonly reports: readonly Report[]
}

export async function serve(
  t: TestContext,
  model: ServerModel,
  protocol: Protocol,
  wanted: Partial<ServerOptions> = {},
): Promise<Served> {
  const reports: Report[] = []
  const service = await model(protocol, {
    listen: [{ address: '127.0.0.1', port: 0 }],
    transports: [],
    idleMs: 60_000,
    maxConnections: 100,
    maxChildren: 20,
    start: 2,
    minSpare: 1,
    maxSpare: 2,
    maxRequests: 0,
    guardBelow: 0,
    clock: systemClock,
    random: Math.random,
    say: (level, message, details) => reports.push({ level, message, details: details as Report['details'] }),
    ...wanted,
  })
  const { close } = service
  let closing: Promise<void> | undefined
  // Once: a second time would close descriptors that may be another's by then.
  const closeOnce = (deadline: AbortSignal) => {
    closing ??= close.call(service, deadline)
    return closing
  }
  t.after(() => closeOnce(AbortSignal.abort()))
  return Object.assign(service, { port: service.addresses[0]!.port, reports, close: closeOnce })
}

/** The processes that the models in this process have made and that have not been reaped. */
export const ownChildren = (): number[] =>
  childrenOf(process.pid).flatMap(({ pid }) => (isChildOfModel(pid) ? pid : []))
