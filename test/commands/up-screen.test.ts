import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { WriteStream } from 'node:tty'
import { stripVTControlCharacters } from 'node:util'
import { type Row, Screen, tableLines } from '../../src/commands/up-screen.ts'

/** A screen on a terminal of this size, and what it wrote. */
function terminal(columns: number, rows: number) {
  const written: string[] = []
  const out = { columns, rows, write: (text: string) => written.push(text), on: () => out }
  return { screen: new Screen(out as unknown as WriteStream), written }
}

const row = (i: number): Row => ({
  address: `127.0.1.${i}`,
  state: 'up',
  checks: 'echoed 16 bytes, HTTP 200',
  first: i,
  datagrams: i,
  connections: undefined,
})

/** How many lines up the cursor is sent. */
const upOf = (text: string) => Number(new RegExp(`^${'\\x1b'}\\[(\\d+)A`).exec(text)?.[1] ?? 0)

test('a block is repainted as a whole, also where its lines wrap, and never exceeds the terminal', () => {
  for (const [columns, rows] of [
    [80, 24],
    [20, 6],
    [10, 2],
    [0, 0],
  ]) {
    const { screen, written } = terminal(columns!, rows!)
    const lines = [
      '',
      'x'.repeat(50),
      ...tableLines(
        Array.from({ length: 30 }, (_, i) => row(i)),
        20,
      ),
    ]
    screen.show(lines)
    screen.show(lines)
    const block = written[0]!.split('\n').slice(0, -1)
    const height = block.reduce(
      (sum, line) => sum + Math.max(1, Math.ceil(stripVTControlCharacters(line).length / (columns || 80))),
      0,
    )
    assert.equal(upOf(written[1]!), height, `${columns}×${rows}`)
    assert.ok(height < (rows || 24), `${columns}×${rows}`)
    screen.print('a line of the log')
    assert.ok(written[2]!.endsWith(`a line of the log\n${written[0]}`))
  }
})

test('a table has a header, one line per row, and the number of rows that it leaves out', () => {
  const lines = tableLines([row(1), row(2), row(3)], 2).map(stripVTControlCharacters)
  assert.deepEqual(lines, [
    'replica    state  first  datagrams  connections  checks                   ',
    '127.0.1.1  up         1          1            -  echoed 16 bytes, HTTP 200',
    '127.0.1.2  up         2          2            -  echoed 16 bytes, HTTP 200',
    '… and 1 more',
  ])
})
