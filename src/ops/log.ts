/** The log: one JSON line an event, or coloured text for people. Never a line per query or datagram. */
import { type Logger, pino } from 'pino'

export type { Logger }

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const

interface LogOptions {
  readonly level: (typeof logLevels)[number]
  /** Stands in every line: which program speaks. */
  readonly name: string
}

/** To standard output. A terminal gets text, through `write`; all else gets JSON. */
export async function createLog(
  { level, name }: LogOptions,
  write = (text: string): void => void process.stdout.write(text),
): Promise<Logger> {
  const options = {
    level,
    name,
    timestamp: () => `,"time":"${new Date().toISOString()}"`,
    formatters: { level: (label: string) => ({ level: label }) },
  }
  if (!process.stdout.isTTY) {
    // Written at once: what is said last before an exit must not be lost, nor overtake what was said before.
    const stdout = pino.destination({ dest: 1, sync: true })
    // A full disk or a reader that left costs the lines, not the service.
    stdout.on('error', () => {})
    return pino(options, stdout)
  }
  const format = await textFormat()
  return pino(options, { write: line => write(format(line)) })
}

/** One JSON line of ours as coloured text for people. */
export async function textFormat(): Promise<(line: string) => string> {
  const { prettyFactory } = await import('pino-pretty')
  return prettyFactory({
    colorize: true,
    ignore: 'pid,hostname,name',
    translateTime: 'SYS:HH:MM:ss.l',
    singleLine: true,
  })
}
