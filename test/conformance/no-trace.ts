/** What a server must not keep when its clients have left. */
import assert from 'node:assert/strict'
import { buffer } from 'node:stream/consumers'
import type { TestContext } from 'node:test'
import { until } from '../support/until.ts'
import { client } from './clients.ts'
import { childrenOf, descriptors } from './proc.ts'
import type { Replica } from './replica.ts'

const AT_A_TIME = 12

export const nobodyServed = (replica: Replica): Promise<number> =>
  until('nobody is served any more', async () => {
    const { counters } = await replica.state()
    return counters.active === 0 && counters.waiting === 0
  })

/** After this number of connections there is no zombie, no process and no descriptor more than before. */
export async function leavesNoTrace(t: TestContext, replica: Replica, many: number): Promise<void> {
  const { pid, port } = replica
  const come = async (count: number) => {
    let left = count
    const one = async () => {
      while (left-- > 0) {
        const socket = await client(t, port)
        socket.end('hello')
        assert.equal(String(await buffer(socket)), 'hello')
      }
    }
    await Promise.all(Array.from({ length: AT_A_TIME }, one))
    await nobodyServed(replica)
  }
  const pooled = (await replica.state()).model === 'prefork'
  await come(pooled ? AT_A_TIME : 1)
  const workers = pooled ? replica.children() : []
  const before = descriptors(pid)
  const workersBefore = workers.map(descriptors)
  const { counters } = await replica.state()
  await come(many)
  assert.equal((await replica.state()).counters.connections, counters.connections + many)
  await until('no zombie is left', () => childrenOf(pid).every(({ state }) => state !== 'Z'))
  await until('no descriptor is left', () => descriptors(pid) <= before)
  assert.deepEqual(workers.map(descriptors), workersBefore)
  assert.deepEqual(replica.children(), workers)
}
