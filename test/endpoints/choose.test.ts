import assert from 'node:assert/strict'
import { test } from 'node:test'
import { choose, type Member } from '../../src/endpoints/choose.ts'
import { endpoint } from '../../src/endpoints/endpoint.ts'
import { UNCHECKED } from '../../src/endpoints/health.ts'

test('the ready are answered, else those that end but serve, those that left, and (fail open) the undrained or all', () => {
  // One letter for each endpoint: its health (Up, Down, draining L, checking C) and its conditions at the
  // source: "" ready, "n" not ready, "t" terminating and serving, "x" terminating and not serving, "g" no
  // longer listed. Expected: open, closed.
  const table: readonly (readonly [string, string, string?])[] = [
    ['U U D', 'U U', 'U U'],
    ['U L D', 'U', 'U'],
    ['U Ut Lt', 'U', 'U'],
    ['Un Ut D', 'Ut', 'Ut'],
    ['D Ut Lt', 'Ut Lt', 'Ut Lt'],
    ['D L Lt', 'Lt', 'Lt'],
    ['Un Ux D', 'Un D!', ''],
    ['D D D', 'D D D!', ''],
    ['D L D', 'D D!', ''],
    ['D L Dt', 'D!', ''],
    ['Dn L Ux', 'Dn!', ''],
    ['L L L', 'L L L!', ''],
    ['Dt Dx Dx', 'Dt Dx Dx!', ''],
    ['L Dt Dx', 'Dt Dx!', ''],
    ['L Lx L', 'Lx', 'Lx'],
    ['Lx Lx D', 'Lx Lx', 'Lx Lx'],
    ['U', 'U', 'U'],
    ['L', 'L!', ''],
    ['D', 'D!', ''],
    ['C', '', ''],
    ['C D L', 'D!', ''],
    ['C L', 'L!', ''],
    ['C Ct Lt', 'Lt', 'Lt'],
    ['C Cn Cx', '', ''],
    ['C U', 'U', 'U'],
    ['C C Ug Ug', 'Ug Ug', 'Ug Ug'],
    ['D C Ug Dg', 'Ug', 'Ug'],
    ['U C Ug', 'U', 'U'],
    ['D Ut Ug', 'Ut', 'Ut'],
    ['C Dg Lg Cg', '', ''],
    ['D Dg Lg Cg', 'D!', ''],
    ['Un Ug', 'Ug', 'Ug'],
    ['', '', ''],
  ]
  const health = { U: 'up', D: 'down', L: 'draining', C: 'checking' } as const
  for (const [given, open, closed] of table) {
    const marks = given.split(' ').filter(Boolean)
    const members = marks.map(
      ([letter, condition]): Member => ({
        endpoint: {
          ...endpoint('10.0.0.1'),
          ready: condition === undefined || condition === 'g',
          serving: condition !== 'x' && condition !== 'n',
          terminating: condition === 't' || condition === 'x',
        },
        health: { ...UNCHECKED, state: health[letter as 'U'] },
        leaving: condition === 'g',
      }),
    )
    const [found, foundClosed] = (['open', 'closed'] as const).map(fail => {
      const { failedOpen, isAnswered } = choose(members, fail)
      const chosen = marks.filter((_, i) => isAnswered(members[i]!)).join(' ')
      return failedOpen ? `${chosen}!` : chosen
    })
    assert.deepEqual([found, foundClosed], [open, closed], given)
  }
})
