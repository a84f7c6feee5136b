/** A protocol that cannot be loaded, as one with a bug or a missing file, until the file `DYING_ECHO_CURE` exists. */
import { closeSync, existsSync, openSync } from 'node:fs'
import { echo, type Protocol } from '../../src/protocols.ts'

if (!existsSync(process.env.DYING_ECHO_CURE ?? '')) {
  // The report of each of these deaths would drown that of the tests.
  closeSync(2)
  openSync('/dev/null', 'w')
  throw new Error('this protocol cannot be loaded')
}

export const dyingEcho: Protocol = { ...echo, name: 'dyingEcho', module: import.meta.url }
