/** What `up` shows on a terminal: a block of lines that is painted over in place, and log lines above it. */
import type { WriteStream } from 'node:tty'
import { stripVTControlCharacters } from 'node:util'

export interface Row {
  readonly address: string
  readonly state: string
  /** What the last check said. */
  readonly checks: string
  readonly first: number
  /** Undefined until the replica has told. */
  readonly datagrams: number | undefined
  readonly connections: number | undefined
}

const header = ['replica', 'state', 'first', 'datagrams', 'connections', 'checks']
const colours: { readonly [state: string]: number } = { up: 32, down: 31, draining: 33, checking: 36 }

/** One line per replica under a header; at most `maxRows` of them. */
export function tableLines(rows: readonly Row[], maxRows: number): string[] {
  const cells = rows.map(row => [
    row.address,
    row.state,
    String(row.first),
    String(row.datagrams ?? '-'),
    String(row.connections ?? '-'),
    row.checks,
  ])
  const widths = header.map((title, i) => Math.max(title.length, ...cells.map(row => row[i]!.length)))
  const line = (row: readonly string[]) =>
    row.map((cell, i) => (i >= 2 && i <= 4 ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!))).join('  ')
  const shown = cells.slice(0, maxRows)
  const lines = shown.map(row => line(row).replace(row[1]!, colour(row[1]!)))
  const rest = cells.length - shown.length
  return [bold(line(header)), ...lines, ...(rest > 0 ? [`… and ${rest} more`] : [])]
}

const bold = (text: string) => `\x1b[1m${text}\x1b[0m`
const colour = (state: string) => `\x1b[${colours[state] ?? 0}m${state}\x1b[0m`

export class Screen {
  readonly #out: WriteStream
  #block = ''

  constructor(out: WriteStream) {
    this.#out = out
    // The terminal has laid the old block out anew: it stays where it is, and the next one stands below.
    out.on('resize', () => {
      this.#block = ''
    })
  }

  /** Some terminals say 0 for "unknown". */
  get rows(): number {
    return this.#out.rows || 24
  }

  get #columns(): number {
    return this.#out.columns || 80
  }

  /** Replaces the block. What does not fit on the terminal is left out: above its top nothing can be painted over. */
  show(lines: readonly string[]): void {
    const clear = this.#clear()
    this.#block = ''
    let room = this.rows - 1
    for (const line of lines) {
      room -= this.#height(line)
      if (room >= 0) this.#block += `${line}\n`
    }
    this.#out.write(clear + this.#block)
  }

  /** Writes text above the block, where it stays. */
  print(text: string): void {
    this.#out.write(this.#clear() + (text.endsWith('\n') ? text : `${text}\n`) + this.#block)
  }

  /** Lines of the terminal that a line of text takes. */
  #height(line: string): number {
    return Math.max(1, Math.ceil(stripVTControlCharacters(line).length / this.#columns))
  }

  #clear(): string {
    const lines = this.#block.split('\n').slice(0, -1)
    const height = lines.reduce((sum, line) => sum + this.#height(line), 0)
    return height > 0 ? `\x1b[${height}A\x1b[J` : ''
  }
}
