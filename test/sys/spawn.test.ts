import assert from 'node:assert/strict'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { close } from '../../src/sys/libc.ts'
import { createSpawner, type Spawner } from '../../src/sys/spawn.ts'
import { startWatcher } from '../../src/sys/watcher.ts'
import { test } from './kernel.ts'

function spawnerHere(): Spawner {
  const spawner = createSpawner()
  assert.ok(spawner, 'this kernel has no pidfds')
  return spawner
}

/** Runs a shell script with a file as its descriptors 0, 1 and 2. */
async function shell(t: TestContext, script: string, env: NodeJS.ProcessEnv = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'roundelay-spawn-'))
  const file = join(folder, 'out')
  const fd = openSync(file, 'w+')
  const watcher = await startWatcher()
  t.after(async () => {
    closeSync(fd)
    await watcher.close()
    rmSync(folder, { recursive: true })
  })
  const spawner = spawnerHere()
  const started = spawner.spawn(fd, '/bin/sh', ['name', '-c', script], env)
  await new Promise<void>(resolve => watcher.watch(started.pidfd, resolve))
  close(started.pidfd)
  return { end: spawner.exitStatus(started), text: readFileSync(file, 'utf8'), pid: started.pid }
}

test('a program gets the descriptor three times, its arguments and its environment, and its end is noticed', async t => {
  const { end, text } = await shell(
    t,
    'echo "$0 $A"; echo error >&2; test /proc/$$/fd/0 -ef /proc/$$/fd/1 && echo same; exit 3',
    {
      A: 'b c',
      PATH: process.env.PATH,
    },
  )
  assert.deepEqual(end, { code: 3, signal: null })
  assert.equal(text, 'name b c\nerror\nsame\n')
})

test('the exit status names the signal that ended a program', async t => {
  const { end } = await shell(t, 'kill -KILL $$')
  assert.deepEqual(end, { code: null, signal: 'SIGKILL' })
})

test('a program is in a session of its own, with no signal ignored or blocked', async t => {
  const { text, pid } = await shell(
    t,
    "grep -E '^Sig(Ign|Blk)' /proc/self/status; cut -d' ' -f6 /proc/self/stat",
  )
  assert.equal(text, `SigBlk:\t${'0'.repeat(16)}\nSigIgn:\t${'0'.repeat(16)}\n${pid}\n`)
})

test('a program that runs has no exit status, and asking for it does not block', async t => {
  const fd = openSync('/dev/null', 'r+')
  t.after(() => closeSync(fd))
  const spawner = spawnerHere()
  const started = spawner.spawn(fd, '/bin/sleep', ['sleep', '60'], {})
  assert.equal(spawner.exitStatus(started), undefined)
  process.kill(started.pid, 'SIGTERM')
  const watcher = await startWatcher()
  t.after(() => watcher.close())
  await new Promise<void>(resolve => watcher.watch(started.pidfd, resolve))
  assert.deepEqual(spawner.exitStatus(started), { code: null, signal: 'SIGTERM' })
  close(started.pidfd)
})

test('a program that cannot be run is an error like those of Node', () => {
  const spawner = spawnerHere()
  for (const [path, code] of [
    ['/nowhere/at/all', 'ENOENT'],
    ['/etc/passwd', 'EACCES'],
    ['/etc/passwd/x', 'ENOTDIR'],
  ])
    assert.throws(() => spawner.spawn(0, path!, ['x'], {}), { code, syscall: 'posix_spawn' })
})
