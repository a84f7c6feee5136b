/** What a run of `load` is asked to do, and what it counts. Pure. */
import type { RecordableHistogram } from 'node:perf_hooks'
import type { SocketAddress, Transport } from '../address.ts'
import type { ResolveMode } from './resolve.ts'

export interface LoadOptions {
  readonly transport: Transport
  /** A name or an address. */
  readonly host: string
  readonly port: number
  readonly connections: number
  /** The most operations that may be in flight on a connection; 1 where each operation opens a new one. */
  readonly outstanding: number
  /** Octets of a payload: up to 65507, over TCP at least 1. */
  readonly size: number
  /** Operations a second over all connections; 0 for a closed loop. */
  readonly rate: number
  readonly durationMs: number
  /** Counts from sending. A look-up and the opening of its connection together have the same time. */
  readonly timeoutMs: number
  readonly dns?: SocketAddress | undefined
  readonly resolve: ResolveMode
  /** Each operation opens a new connection: its latency begins with the look-up. */
  readonly newConnection: boolean
  readonly seed: number
}

/** Operations by their outcome, and connections that failed. */
export interface Counts {
  done: number
  /** No reply came in time, or the connection broke while the operation was in flight. */
  lost: number
  /** The octets differ, or no operation was waiting for them. */
  wrong: number
  /**
   * Over UDP: the reply came after its operation had been counted as lost. It is then no longer counted
   * there.
   */
  late: number
  /** Connections that could not be opened, broke, or were closed because of a lost or wrong reply. */
  failed: number
}

/** All that went to one address. */
export interface ReplicaResult extends Counts {
  readonly address: string
  /** How often it was chosen for a connection, whether that could be opened or not. */
  connections: number
  /** Of the operations that are done, in nanoseconds. */
  readonly latency: RecordableHistogram
}

/** What is known during a run. */
export interface LoadProgress {
  /** From the first operation to the end of sending, or to the last reply if that came later. */
  readonly elapsedMs: number
  /** With a rate: operations that were sent more than 1 ms after they were due. */
  readonly behind: number
  /** With a rate: operations that were due and were never sent. */
  readonly unsent: number
  readonly failedLookUps: number
  /** Why connections failed, and how many failed for each reason. */
  readonly reasons: Readonly<Record<string, number>>
  /** Every address that an answer contained. */
  readonly replicas: readonly ReplicaResult[]
}

export interface LoadResult extends LoadProgress {
  /** That of all replicas together. */
  readonly latency: RecordableHistogram
}

export const countNames = ['done', 'lost', 'wrong', 'late', 'failed'] as const

export function totals({ replicas, failedLookUps }: LoadProgress): Counts {
  const sum = { done: 0, lost: 0, wrong: 0, late: 0, failed: failedLookUps }
  for (const replica of replicas) for (const name of countNames) sum[name] += replica[name]
  return sum
}

/** Whether the command ends with exit code 1. */
export function isFailure(result: LoadResult): boolean {
  const { done, lost, wrong } = totals(result)
  return done === 0 || lost > 0 || wrong > 0
}
