/** The echo protocol, for tests that need a server and do not care for others. */
import { systemClock } from '../../src/clock.ts'
import { protocol } from '../../src/protocols.ts'

export const echo = protocol('echo', systemClock)
