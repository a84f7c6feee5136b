/**
 * What takes too long for every run: a process for each of 1,000 connections is a minute of processor time.
 */
import { test } from 'node:test'
import { modelsForTransport } from '../../src/servers/models.ts'
import { whyUnavailable } from '../../src/sys/available.ts'
import { leavesNoTrace } from './no-trace.ts'
import { startReplica } from './replica.ts'

const MANY = 1000

for (const model of modelsForTransport('tcp'))
  test(`${model}: after ${MANY} connections there is no zombie and no descriptor more`, {
    timeout: 420_000,
    skip: (await whyUnavailable()) ?? false,
  }, async t => {
    const pool = model === 'prefork' ? ['--start', '12', '--max-children', '12', '--max-spare', '12'] : []
    await leavesNoTrace(t, await startReplica(t, model, ['--tcp', ...pool]), MANY)
  })
