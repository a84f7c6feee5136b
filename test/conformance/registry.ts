/** The registry of protocols, and the odd ones too. */
import type { Clock } from '../../src/clock.ts'
import { type Protocol, protocol as real } from '../../src/protocols.ts'
import { oddProtocols } from './odd-protocols.ts'

export * from '../../src/protocols.ts'

export const protocol = (name: string, clock: Pick<Clock, 'wallSeconds'>): Protocol =>
  oddProtocols[name]?.() ?? real(name, clock)
