/** What `up` shows on a terminal: a block of lines that is repainted in place, and log lines above it. */
import type { WriteStream } from 'node:tty'
import { stripVTControlCharacters } from 'node:util'

export interface Row {
  readonly address: string
  readonly state: string
  /** The result of the last check. */
  readonly checks: string
  readonly first: number
  /** Undefined until the replica has been asked. */
  readonly datagrams: number | undefined
  readonly connections: number | undefined
}

const header = ['replica', 'state', 'first', 'datagrams', 'connections', 'checks']
const colours: { readonly [state: string]: number } = { up: 32, down: 31, draining: 33, checking: 36 }

/** A header and one line per replica, for at most `maxRows` replicas. */
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
    // The terminal may have wrapped the old block differently: leave it, and paint the next one below it.
    out.on('resize', () => {
      this.#block = ''
    })
  }

  /** Some terminals report 0 rows when they do not know. */
  get rows(): number {
    return this.#out.rows || 24
  }

  get #columns(): number {
    return this.#out.columns || 80
  }

  /** Replaces the block. Lines that do not fit are left out: what has scrolled away cannot be repainted. */
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

  /** Writes text above the block; it stays there. */
  print(text: string): void {
    this.#out.write(this.#clear() + (text.endsWith('\n') ? text : `${text}\n`) + this.#block)
  }

  /** How many lines of the terminal a line of text takes. */
  #height(line: string): number {
    return Math.max(1, Math.ceil(stripVTControlCharacters(line).length / this.#columns))
  }

  #clear(): string {
    const lines = this.#block.split('\n').slice(0, -1)
    const height = lines.reduce((sum, line) => sum + this.#height(line), 0)
    return height > 0 ? `\x1b[${height}A\x1b[J` : ''
  }
}
