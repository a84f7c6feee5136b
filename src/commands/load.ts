/** `roundelay load`: how fast echo servers answer, and how evenly DNS spreads clients over them. */
import { runLoad } from '../client/load.ts'
import { toJson, toProgress, toText } from '../client/report.ts'
import { isFailure, type LoadOptions, type LoadProgress, totals } from '../client/tally.ts'
import { UsageError } from '../errors.ts'
import type { Context, Options, Run } from './options.ts'
import { chooseTransport } from './send.ts'

export const run: Run<'load'> = async (options, [host], context) => {
  const load = loadOptions(host!, options)
  const result = await runLoad(load, stopSignal(context), process.stderr.isTTY ? progressLine() : undefined)
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
  process.stdout.write(options.json ? `${JSON.stringify(toJson(load, result))}\n` : toText(load, result))
  // Exit explicitly also after success: a look-up may still be in progress, and would keep the process alive.
  context.exit(isFailure(result) ? 1 : 0)
}

/** Throws a UsageError when options contradict each other. */
function loadOptions(host: string, options: Options<'load'>): LoadOptions {
  const { port, connections, outstanding, size, rate, dns, resolve, newConnection, seed } = options
  const transport = chooseTransport(options)
  if (transport === 'tcp' && size === 0)
    throw new UsageError('Cannot use --size 0 over TCP: nothing would be sent; expected at least 1')
  if (newConnection && outstanding > 1)
    throw new UsageError(
      `Cannot use --outstanding ${outstanding} with --new-connection: a connection then carries one operation`,
    )
  const times = { durationMs: options.duration, timeoutMs: options.timeout }
  const load = { connections, outstanding, size, rate, ...times, resolve, newConnection, seed }
  return { transport, host, port, dns, ...load }
}

/**
 * Aborts at the first SIGINT, SIGTERM, SIGHUP or SIGQUIT, so that the results so far are reported. A second signal ends the
 * process.
 */
function stopSignal({ exit, takeSignals }: Context): AbortSignal {
  const stop = new AbortController()
  takeSignals((_signal, number) => (stop.signal.aborted ? exit(128 + number) : stop.abort()))
  return stop.signal
}

function progressLine(): (progress: LoadProgress) => void {
  let before = 0
  return progress => {
    process.stderr.write(`\r${toProgress(progress, before)}\x1b[K`)
    before = totals(progress).done
  }
}
