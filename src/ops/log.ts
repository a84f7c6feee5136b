/**
 * The log: one JSON line per event, or coloured text for people. It never has a line per query or datagram.
 */
import { type Logger, pino } from 'pino'
import { sparingly } from '../say.ts'
import type { Subscriber } from './events.ts'

export type { Logger }

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const

interface LogOptions {
  readonly level: (typeof logLevels)[number]
  /** A field of every line: the program that writes it. */
  readonly name: string
}

/** Writes to standard output. A terminal receives text, through `write`; anything else receives JSON. */
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
    // Synchronous, so that no line is lost at an exit and no line overtakes an earlier one.
    const stdout = pino.destination({ dest: 1, sync: true })
    // After an error (the disk is full, the reader has left) lines are lost, but the server must go on.
    stdout.on('error', () => {})
    return pino(options, stdout)
  }
  const format = await textFormat()
  return pino(options, { write: line => write(format(line)) })
}

/** Formats one JSON line of this log as coloured text for people. */
export async function textFormat(): Promise<(line: string) => string> {
  const { prettyFactory } = await import('pino-pretty')
  return prettyFactory({
    colorize: true,
    // The last three repeat the message of the line.
    ignore: 'pid,hostname,name,endpoint,from,to',
    translateTime: 'SYS:HH:MM:ss.l',
    singleLine: true,
  })
}

/** Writes what the event hub publishes to the log. */
export function logSubscriber(log: Pick<Logger, 'debug' | 'info' | 'warn'>): Subscriber {
  const warnNotChecked = sparingly(details =>
    log.warn(details, 'cannot check endpoints: an error of this machine, which changes no health'),
  )
  return event => {
    switch (event.type) {
      case 'endpoint': {
        const { service, address, from, to, detail } = event
        // An endpoint that was never up has not gone down; most likely it is still starting.
        const worse = (to === 'down' && from === 'up') || to === 'draining'
        const level = worse ? 'warn' : to === 'checking' ? 'debug' : 'info'
        const now = to === 'absent' ? 'removed' : to
        return log[level]({ service, endpoint: address, from, to, detail }, `endpoint ${address} is ${now}`)
      }
      case 'not-checked': {
        const { service, address, error } = event
        return warnNotChecked({ service, endpoint: address, reason: error })
      }
      case 'ready': {
        const { service, endpoints } = event
        return log.info({ service, endpoints }, 'service ready: the first round of checks is over')
      }
      case 'failed-open': {
        const { service, failedOpen } = event
        if (!failedOpen) return log.info({ service }, 'an endpoint is healthy again')
        return log.warn({ service }, 'no endpoint is healthy: all are answered (--fail open)')
      }
      case 'source': {
        const { service, source, error } = event
        if (error === undefined) return log.info({ service, source }, 'source recovered')
        const message = 'source failed: the last good answer stays in use'
        return log.warn({ service, source, reason: error }, message)
      }
      case 'source-family': {
        const { service, source, family, error } = event
        if (error === undefined)
          return log.info({ service, source, family }, `source recovered for ${family}`)
        const message = `source failed for ${family}: the last good answer for ${family} stays in use`
        return log.warn({ service, source, family, reason: error }, message)
      }
      case 'source-warning': {
        const { service, source, message, details } = event
        return log.warn({ service, source, ...details }, message)
      }
      case 'replica': {
        const { address, ended, startAgain } = event
        if (ended !== undefined) log.warn({ by: ended, startAgain }, `replica ${address} ended`)
      }
    }
  }
}
