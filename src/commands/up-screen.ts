/** What `up` shows on a terminal: a block of lines that is painted over in place, and log lines above it. */
import type { WriteStream } from 'node:tty'
import { stripVTControlCharacters } from 'node:util'

export interface Row {
  readonly address: string
  readonly state: string
  /** What the last check said, or how to start it again. */
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
  const widths = header.map((title, i) => Math.max(title.length, ...cells.map(row => row[i].length)))
  const line = (row: readonly string[]) =>
    row.map((cell, i) => (i >= 2 && i <= 4 ? cell.padStart(widths[i]) : cell.padEnd(widths[i]))).join('  ')
  const shown = cells.slice(0, maxRows)
  const lines = shown.map(row => line(row).replace(row[1], colour(row[1])))
  const rest = cells.length - shown.length
  return [bold(line(header)), ...lines, ...(rest > 0 ? [`… and ${rest} more`] : [])]
}

const bold = (text: string) => `\x1b[1m${text}\x1b[0m`
const colour = (state: string) => `\x1b[${colours[state] ?? 0}m${state}\x1b[0m`

export class Screen {
  readonly #out: WriteStream
  #lines: readonly string[] = []

  constructor(out: WriteStream) {
    this.#out = out
  }

  get rows(): number {
    return this.#out.rows
  }

  /** Replaces the block. */
  show(lines: readonly string[]): void {
    const cut = lines.map(line => truncate(line, this.#out.columns))
    this.#out.write(`${this.#clear()}${cut.join('\n')}\n`)
    this.#lines = cut
  }

  /** Writes text above the block, where it stays. */
  print(text: string): void {
    const block = this.#lines.length > 0 ? `${this.#lines.join('\n')}\n` : ''
    this.#out.write(`${this.#clear()}${text.endsWith('\n') ? text : `${text}\n`}${block}`)
  }

  #clear(): string {
    return this.#lines.length > 0 ? `\x1b[${this.#lines.length}A\x1b[J` : ''
  }
}

/** A line longer than the terminal would wrap, and the block would no longer be as high as it has lines. */
function truncate(line: string, columns: number): string {
  const plain = stripVTControlCharacters(line)
  return plain.length <= columns ? line : `${plain.slice(0, columns - 1)}…`
}
