import assert from 'node:assert/strict'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync } from 'node:fs'
import { userInfo } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { compileCacheFolder, type Folder, isTrusted } from '../src/compile-cache.ts'

const uid = process.getuid?.() ?? 0

test('a folder is trusted only if it and all its parents belong to us or root and only we can write', () => {
  const good: Record<string, Folder> = {
    '/': { uid: 0, mode: 0o755 },
    '/home': { uid: 0, mode: 0o755 },
    '/home/ann': { uid: 4242, mode: 0o750 },
    '/home/ann/cache': { uid: 4242, mode: 0o40700 },
  }
  const trusted = (changes: Record<string, Folder> = {}, path = '/home/ann/cache', as = 4242) =>
    isTrusted(path, as, at => ({ ...good, ...changes })[at] ?? { uid: 0, mode: 0o700 })
  assert.equal(trusted(), true)
  assert.equal(trusted({}, 'home/ann/cache'), false)
  assert.equal(trusted({}, '/home/ann/cache', 4243), false)
  assert.equal(trusted({}, '/home/ann/cache', 0), false, 'root does not run what another user wrote')
  assert.equal(trusted({ '/home/ann/cache': { uid: 4242, mode: 0o755 } }), false)
  for (const [path, folder] of Object.entries(good)) {
    assert.equal(trusted({ [path]: { ...folder, uid: 7 } }), false, `${path} of another user`)
    assert.equal(trusted({ [path]: { ...folder, mode: folder.mode | 0o020 } }), false, `${path} of a group`)
    assert.equal(trusted({ [path]: { ...folder, mode: folder.mode | 0o002 } }), false, `${path} of everybody`)
  }
  assert.equal(trusted({ '/tmp': { uid: 0, mode: 0o700 } }, '/tmp/cache'), false)
})

/** A home that is not below /tmp; undefined where this user cannot have one. */
function home(t: TestContext): string {
  const folder = mkdtempSync(join(userInfo().homedir, '.roundelay-test-'))
  t.after(() => rmSync(folder, { recursive: true }))
  return folder
}

test('the folder is created with 0700, and one that others could have filled is not used', t => {
  const HOME = home(t)
  const folder = compileCacheFolder({ HOME })
  assert.equal(folder, join(HOME, '.cache/roundelay'))
  assert.equal(statSync(folder).mode & 0o777, 0o700)
  chmodSync(folder, 0o777)
  assert.equal(compileCacheFolder({ HOME }), undefined)
  chmodSync(folder, 0o700)
  chmodSync(join(HOME, '.cache'), 0o777)
  assert.equal(compileCacheFolder({ HOME }), undefined)
})

test('a symbolic link is judged by what it leads to', t => {
  const HOME = home(t)
  const elsewhere = mkdtempSync('/tmp/roundelay-test-')
  t.after(() => rmSync(elsewhere, { recursive: true }))
  mkdirSync(join(elsewhere, 'roundelay'), { mode: 0o700 })
  symlinkSync(elsewhere, join(HOME, '.cache'))
  assert.equal(compileCacheFolder({ HOME }), undefined)
})

test('there is no cache with an empty, a relative or another user\u2019s HOME, and the environment decides first', t => {
  const set = { NODE_COMPILE_CACHE: '/tmp/anything' }
  assert.equal(compileCacheFolder(set), '/tmp/anything')
  for (const HOME of ['', 'somewhere', '/nonexistent']) assert.equal(compileCacheFolder({ HOME }), undefined)
  assert.equal(compileCacheFolder({ HOME: home(t), XDG_CACHE_HOME: 'relative' }), undefined)
  if (uid !== 0) assert.equal(compileCacheFolder({ HOME: '/root' }), undefined)
})
