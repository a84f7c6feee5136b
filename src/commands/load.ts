/** `roundelay load`: how fast echo servers answer, and how evenly DNS spreads clients over them. */
import { type LoadOptions, runLoad } from '../client/load.ts'
import { isFailure, type LoadProgress, toJson, toProgress, toText, totals } from '../client/report.ts'
import { UsageError } from '../errors.ts'
import type { Context, Options, Run } from './options.ts'
import { chooseTransport } from './send.ts'

export const run: Run<'load'> = async (options, [host], context) => {
  const load = loadOptions(host!, options)
  const result = await runLoad(load, stopSignal(context), process.stderr.isTTY ? progressLine() : undefined)
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
  process.stdout.write(options.json ? `${JSON.stringify(toJson(load, result))}\n` : toText(load, result))
  // Also when all is well: a look-up that is still under way must not hold up the end.
  context.exit(isFailure(result) ? 1 : 0)
}

/** Throws a UsageError where options do not go together. */
function loadOptions(host: string, options: Options<'load'>): LoadOptions {
  const { port, connections, outstanding, size, rate, dns, resolve, newConnection, seed } = options
  const transport = chooseTransport(options)
  if (transport === 'tcp' && size === 0)
    throw new UsageError('Cannot use --size 0 over TCP: nothing would be sent; give at least 1')
  if (newConnection && outstanding > 1)
    throw new UsageError(
      `Cannot use --outstanding ${outstanding} with --new-connection: a connection then carries one operation`,
    )
  const times = { durationMs: options.duration, timeoutMs: options.timeout }
  const load = { connections, outstanding, size, rate, ...times, resolve, newConnection, seed }
  return { transport, host, port, dns, ...load }
}

/** Aborts at the first SIGINT or SIGTERM, for a report of what there is; a second one ends the process. */
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
