/** The report of a run of `load`, as text and as JSON. Pure. */
import type { RecordableHistogram } from 'node:perf_hooks'
import { formatAddress } from '../address.ts'
import {
  type Counts,
  countNames,
  type LoadOptions,
  type LoadProgress,
  type LoadResult,
  totals,
} from './tally.ts'

export interface Evenness {
  /** Pearson's χ² against equal shares. For fair random choices it is near its degrees of freedom. */
  readonly chiSquare: number
  readonly degreesOfFreedom: number
  readonly maxOverMean: number
}

/**
 * How even counts are; undefined when all are 0. `load` uses it on the connections that were opened for each
 * replica, since DNS chose their addresses. All operations of a connection go to the same address: they are
 * not independent, and χ² of them would report unevenness that is not there.
 */
export function evenness(counts: readonly number[]): Evenness | undefined {
  const mean = counts.reduce((sum, count) => sum + count, 0) / counts.length
  if (!(mean > 0)) return undefined
  return {
    chiSquare: counts.reduce((sum, count) => sum + (count - mean) ** 2 / mean, 0),
    degreesOfFreedom: counts.length - 1,
    maxOverMean: Math.max(...counts) / mean,
  }
}

/** In milliseconds; undefined when no operation was done. */
function latencyMs(latency: RecordableHistogram) {
  if (latency.count === 0) return undefined
  const at = (percent: number) => round(latency.percentile(percent) / 1e6)
  return { p50: at(50), p90: at(90), p99: at(99), p999: at(99.9), max: round(latency.max / 1e6) }
}

const perSecond = (count: number, elapsedMs: number) => (elapsedMs > 0 ? (count * 1000) / elapsedMs : 0)
const round = (value: number) => Math.round(value * 1000) / 1000

/**
 * One object for programs: options, counts, times in milliseconds, shares from 0 to 1. A latency is null when
 * no operation was done.
 */
export function toJson(options: LoadOptions, result: LoadResult) {
  const { elapsedMs, behind, unsent, failedLookUps, reasons, replicas } = result
  const { dns, size, rate, ...rest } = options
  const sum = totals(result)
  return {
    ...rest,
    sizeOctets: size,
    ratePerSecond: rate,
    dns: dns ? formatAddress(dns) : null,
    elapsedMs: round(elapsedMs),
    operationsPerSecond: round(perSecond(sum.done, elapsedMs)),
    ...sum,
    failedLookUps,
    failedFor: reasons,
    behind,
    unsent,
    latencyMs: latencyMs(result.latency) ?? null,
    replicas: replicas.map(replica => ({
      ...replica,
      shareOfOperations: sum.done > 0 ? replica.done / sum.done : 0,
      latency: undefined,
      latencyMs: latencyMs(replica.latency) ?? null,
    })),
    evennessOfConnections: evenness(replicas.map(({ connections }) => connections)) ?? null,
  }
}

/** The same report for people. */
export function toText(options: LoadOptions, result: LoadResult): string {
  const { replicas, elapsedMs, behind, unsent, reasons } = result
  const failures = Object.entries(reasons).map(([reason, count]) => `${thousands(count)} ${reason}`)
  const sum = totals(result)
  const even = evenness(replicas.map(({ connections }) => connections))
  const rate = `${thousands(perSecond(sum.done, elapsedMs))} operations/s`
  const latency = Object.entries(latencyMs(result.latency) ?? {}).map(
    ([name, ms]) => `${name.replace('999', '99.9')} ${fixed(ms)}`,
  )
  const header = ['replica', 'connections', 'operations', 'share %', 'p50 ms', 'p99 ms', 'max ms']
  const rows = replicas.map(replica => {
    const { p50, p99, max } = latencyMs(replica.latency) ?? {}
    const share = sum.done > 0 ? (100 * replica.done) / sum.done : 0
    const { address, connections, done } = replica
    return [address, thousands(connections), thousands(done), share.toFixed(1), ...[p50, p99, max].map(fixed)]
  })
  return [
    describe(options),
    `${rate} for ${(elapsedMs / 1000).toFixed(1)} s: ${countsText(sum)}`,
    ...(failures.length > 0 ? [`failed for: ${failures.join(', ')}`] : []),
    ...(options.rate > 0
      ? [`${thousands(behind)} were sent more than 1 ms after they were due, ${thousands(unsent)} never`]
      : []),
    ...(latency.length > 0 ? [`latency in ms: ${latency.join('  ')}`] : []),
    '',
    ...tableLines([header, ...rows]),
    ...(even ? ['', evennessText(even)] : []),
    '',
  ].join('\n')
}

/** One short line during the run; `before` is how many operations were done a second earlier. */
export function toProgress(progress: LoadProgress, before: number): string {
  const sum = totals(progress)
  const seconds = Math.round(progress.elapsedMs / 1000)
  return `${seconds} s: ${thousands(sum.done - before)} operations/s; ${countsText(sum)}`
}

function describe(options: LoadOptions): string {
  const { transport, host, port, connections, outstanding, size, rate, resolve, newConnection } = options
  const pace = rate > 0 ? `open loop of ${thousands(rate)}/s` : 'closed loop'
  const each = newConnection ? 'each operation on a new one' : `up to ${outstanding} in flight on each`
  const flows = `${connections} connections, ${each}, resolve ${resolve}`
  return `${transport} ${host} port ${port}, ${size} octets, ${pace}, ${flows}`
}

const evennessText = ({ chiSquare, degreesOfFreedom, maxOverMean }: Evenness): string =>
  `evenness of connections: χ² ${chiSquare.toFixed(2)} (degrees of freedom: ${degreesOfFreedom}), ` +
  `max/mean ${maxOverMean.toFixed(2)}`
const countsText = (counts: Counts): string =>
  countNames.map(name => `${thousands(counts[name])} ${name}`).join(', ')
const thousands = (value: number): string => Math.round(value).toLocaleString('en')
const fixed = (ms: number | undefined): string => ms?.toFixed(3) ?? '-'

function tableLines(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map(row => row[i]!.length)))
  return rows.map(row =>
    row.map((cell, i) => (i > 0 ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!))).join('  '),
  )
}
