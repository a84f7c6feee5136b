/** A thread for calls that block, so that the main thread can look on. */
import { on } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import type { TestContext } from 'node:test'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import koffi from 'koffi'
import * as libc from '../../src/sys/libc.ts'
import { until } from '../support/until.ts'

type Calls = Omit<typeof libc, 'check'>
type Args<N extends keyof Calls> = Parameters<Calls[N]>
type Returned<N extends keyof Calls> = { outcome: number; args: Args<N> }

const NAME = 'a thread that blocks'

if (!isMainThread && workerData === NAME)
  parentPort?.on('message', ({ name, args }) => {
    const [first] = args
    // What the kernel sees as the first argument.
    parentPort?.postMessage(typeof first === 'number' ? first : Number(koffi.address(first)))
    const outcome = (libc as unknown as Record<string, (...args: unknown[]) => number>)[name]!(...args)
    parentPort?.postMessage({ outcome, args })
  })

/** Give every call a time limit: a thread that waits for ever cannot be ended. */
export function startThread(t: TestContext) {
  const worker = new Worker(new URL(import.meta.url), { workerData: NAME })
  t.after(() => worker.terminate())
  const messages = on(worker, 'message')
  const next = async () => ((await messages.next()).value as [never])[0]
  return {
    /** Resolves when the thread waits inside the call. */
    async enter<N extends keyof Calls>(name: N, ...args: Args<N>) {
      worker.postMessage({ name, args })
      const first: number = await next()
      await until(`the thread waits in ${name}`, () => threadIsIn(first))
      return { returned: next() as Promise<Returned<N>> }
    },
  }
}

/** Whether a thread of ours waits in a system call with this first argument, proc_pid_syscall(5). */
function threadIsIn(first: number): boolean {
  return readdirSync('/proc/self/task').some(thread => {
    try {
      const [, argument] = readFileSync(`/proc/self/task/${thread}/syscall`, 'utf8').split(' ')
      return Number(argument) === first
    } catch {
      return false
    }
  })
}
