import assert from 'node:assert/strict'
import { test } from 'node:test'
import { findAccount } from '../../src/inetd/users.ts'

const passwd = `# In the form of passwd(5).
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
games:x:5:60:games:/usr/games:/usr/sbin/nologin

web:x:1000:1000::/home/web:/bin/sh
webmaster:x:1001:1001::/home/webmaster:/bin/sh
`
const group = `root:x:0:
daemon:x:1:
tty:x:5:games,daemon
games:x:60:
web:x:1000:web
logs:x:200:webmaster
nothing:x:201
old:x:202:,
`

test('a user has the group of passwd(5), and others only if group(5) lists them', () => {
  assert.deepEqual(findAccount(passwd, group, 'root'), { name: 'root', uid: 0, gid: 0, supplementary: false })
  assert.deepEqual(findAccount(passwd, group, 'games'), {
    name: 'games',
    uid: 5,
    gid: 60,
    supplementary: true,
  })
})

test('a user whom only their own group lists has no supplementary groups', () => {
  assert.equal(findAccount(passwd, group, 'web').supplementary, false)
})

test('a member is compared by the whole name', () => {
  assert.equal(findAccount(passwd, group, 'webmaster').supplementary, true)
  assert.equal(findAccount(passwd, 'logs:x:200:webmaster', 'web').supplementary, false)
})

test('a group in the entry takes precedence over that of passwd(5)', () => {
  assert.deepEqual(findAccount(passwd, group, 'root', 'logs'), {
    name: 'root',
    uid: 0,
    gid: 200,
    supplementary: false,
  })
  assert.deepEqual(
    findAccount(passwd, group, 'web', 'tty'),
    { name: 'web', uid: 1000, gid: 5, supplementary: true },
    'the group of passwd(5) is then a supplementary one',
  )
  assert.equal(findAccount(passwd, group, 'games', 'tty').supplementary, false)
})

test('the error names the user or group that is missing', () => {
  assert.throws(() => findAccount(passwd, group, 'nobody'), {
    message: 'there is no user "nobody" in /etc/passwd',
  })
  assert.throws(() => findAccount(passwd, group, 'web', 'wheel'), {
    message: 'there is no group "wheel" in /etc/group',
  })
  assert.throws(() => findAccount('', '', 'root'), { message: 'there is no user "root" in /etc/passwd' })
  assert.throws(() => findAccount(passwd, group, '# In the form of passwd(5).'), /there is no user/)
})

test('a line whose uid or gid is no decimal number in range is not a user or a group', () => {
  for (const id of ['', '0x0', '-1', '4294967295', '4294967296', '1e3', ' 0', '0 ', '+1', 'root']) {
    assert.throws(
      () => findAccount(`u:x:${id}:5::/:/bin/sh`, '', 'u'),
      /there is no user "u"/,
      `uid ${JSON.stringify(id)}`,
    )
    assert.throws(
      () => findAccount(`u:x:5:${id}::/:/bin/sh`, '', 'u'),
      /there is no user "u"/,
      `gid ${JSON.stringify(id)}`,
    )
    assert.throws(
      () => findAccount('u:x:5:5::/:/bin/sh', `g:x:${id}:u`, 'u', 'g'),
      /there is no group "g"/,
      `group ${JSON.stringify(id)}`,
    )
  }
  assert.throws(() => findAccount('u', '', 'u'), /there is no user "u"/)
  const greatest = findAccount('u:x:4294967294:0004::/:/bin/sh', '', 'u')
  assert.deepEqual([greatest.uid, greatest.gid], [4_294_967_294, 4])
})
