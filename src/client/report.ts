/** What a run of `load` found, and how people and programs are told. Pure. */
import type { RecordableHistogram } from 'node:perf_hooks'
import { formatAddress } from '../address.ts'
import type { LoadOptions } from './load.ts'

/** Operations by their end; connections that failed. */
export interface Counts {
  done: number
  /** No reply in time, or the connection broke with the operation in flight. */
  lost: number
  /** Octets that differ, or that nobody asked for. */
  wrong: number
  /** Over UDP, a reply that came after its operation had been lost: it is no longer counted there. */
  late: number
  /** Connections that could not be opened, broke or were given up. */
  failed: number
}

/** All that went to one address. */
export interface ReplicaResult extends Counts {
  readonly address: string
  /** Times that it was chosen for a connection, whether that could be opened or not. */
  connections: number
  /** Of what was done, in nanoseconds. */
  readonly latency: RecordableHistogram
}

/** What is known while it runs. */
export interface LoadProgress {
  /** From the first operation to the end of sending, or to the last reply where that came later. */
  readonly elapsedMs: number
  /** With a rate: operations sent more than 1 ms after they were due. */
  readonly behind: number
  /** With a rate: operations that were due and never sent. */
  readonly unsent: number
  readonly failedLookUps: number
  /** Why connections failed, and how many for each. */
  readonly reasons: Readonly<Record<string, number>>
  /** Every address that stood in an answer. */
  readonly replicas: readonly ReplicaResult[]
}

export interface LoadResult extends LoadProgress {
  /** That of all replicas. */
  readonly latency: RecordableHistogram
}

const counted = ['done', 'lost', 'wrong', 'late', 'failed'] as const

export function totals({ replicas, failedLookUps }: LoadProgress): Counts {
  const sum = { done: 0, lost: 0, wrong: 0, late: 0, failed: failedLookUps }
  for (const replica of replicas) for (const name of counted) sum[name] += replica[name]
  return sum
}

/** What makes exit code 1. */
export function isFailure(result: LoadResult): boolean {
  const { done, lost, wrong } = totals(result)
  return done === 0 || lost > 0 || wrong > 0
}

export interface Evenness {
  /** Pearson's χ² against equal shares. If each choice were a fair dice, it would be near its degrees of freedom. */
  readonly chiSquare: number
  readonly degreesOfFreedom: number
  readonly maxOverMean: number
}

/**
 * How even counts are; undefined where there is nothing to share. `load` asks it of the connections opened for each
 * replica, since those are the choices that DNS made: all operations of a connection go where it went, so they are not
 * independent, and χ² over them would cry wolf.
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

/** In milliseconds; undefined where nothing was done. */
function latencyMs(latency: RecordableHistogram) {
  if (latency.count === 0) return undefined
  const at = (percent: number) => round(latency.percentile(percent) / 1e6)
  return { p50: at(50), p90: at(90), p99: at(99), p999: at(99.9), max: round(latency.max / 1e6) }
}

const perSecond = (count: number, elapsedMs: number) => (elapsedMs > 0 ? (count * 1000) / elapsedMs : 0)
const round = (value: number) => Math.round(value * 1000) / 1000

/** One object for programs: options, counts, times in milliseconds, shares from 0 to 1; null where nothing was done. */
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

/** The same as text for people. */
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
    what(options),
    `${rate} for ${(elapsedMs / 1000).toFixed(1)} s: ${countsText(sum)}`,
    ...(failures.length > 0 ? [`failed for: ${failures.join(', ')}`] : []),
    ...(options.rate > 0
      ? [`${thousands(behind)} were sent over 1 ms behind their time, ${thousands(unsent)} never`]
      : []),
    ...(latency.length > 0 ? [`latency in ms: ${latency.join('  ')}`] : []),
    '',
    ...tableLines([header, ...rows]),
    ...(even
      ? [
          '',
          `evenness of connections: χ² ${even.chiSquare.toFixed(2)} (degrees of freedom: ${even.degreesOfFreedom}), max/mean ${even.maxOverMean.toFixed(2)}`,
        ]
      : []),
    '',
  ].join('\n')
}

/** One short line while it runs; `before` is what was done a second earlier. */
export function toProgress(progress: LoadProgress, before: number): string {
  const sum = totals(progress)
  const seconds = Math.round(progress.elapsedMs / 1000)
  return `${seconds} s: ${thousands(sum.done - before)} operations/s; ${countsText(sum)}`
}

function what(options: LoadOptions): string {
  const { transport, host, port, connections, outstanding, size, rate, resolve, newConnection } = options
  const pace = rate > 0 ? `open loop of ${thousands(rate)}/s` : 'closed loop'
  const each = newConnection ? 'each operation on a new one' : `up to ${outstanding} in flight on each`
  return `${transport} ${host} port ${port}, ${size} octets, ${pace}, ${connections} connections, ${each}, resolve ${resolve}`
}

const countsText = (counts: Counts): string =>
  counted.map(name => `${thousands(counts[name])} ${name}`).join(', ')
const thousands = (value: number): string => Math.round(value).toLocaleString('en')
const fixed = (ms: number | undefined): string => ms?.toFixed(3) ?? '-'

function tableLines(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map(row => row[i]!.length)))
  return rows.map(row =>
    row.map((cell, i) => (i > 0 ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!))).join('  '),
  )
}
