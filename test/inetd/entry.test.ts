import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { parseInetdConf } from '../../src/inetd/conf.ts'
import { describe as inWords, labelOf, sameEntry, socketNames } from '../../src/inetd/entry.ts'

const lookUp = (name: string) => (name === 'tftp' ? 69 : undefined)

function one(text: string) {
  const { entries, problems } = parseInetdConf(text, 'inetd.conf', lookUp)
  assert.deepEqual(problems, [])
  assert.equal(entries.length, 1, text)
  return entries[0]!
}

describe('in words', () => {
  // biome-ignore format: a table
  const table = [
    ['7007 stream tcp nowait root internal echo', 'TCP port 7007 on every address: echo, answered inside inetd without a program'],
    ['127.0.0.1:tftp dgram udp wait nobody:tftp /usr/sbin/in.tftpd', 'UDP port 69 on 127.0.0.1: /usr/sbin/in.tftpd gets the socket while a datagram waits, one at a time, as nobody:tftp, at most 256 a minute'],
    ['7009 stream tcp nowait nobody /bin/cat', 'TCP port 7009 on every address: a new /bin/cat for each connection, as nobody, at most 256 a minute'],
    ['7010 stream tcp wait.0 root /usr/bin/perl', 'TCP port 7010 on every address: /usr/bin/perl gets the listening socket and accepts by itself, one at a time, as root'],
    ['127.0.0.1,[::1]:7009 stream tcp nowait.0 nobody /bin/cat', 'TCP port 7009 on 127.0.0.1, ::1: a new /bin/cat for each connection, as nobody'],
    ['0.0.0.0,127.0.0.1:7009 stream tcp nowait.1 nobody /bin/cat', 'TCP port 7009 on 0.0.0.0, 127.0.0.1: a new /bin/cat for each connection, as nobody, at most 1 a minute'],
    ['[::]:7009 stream tcp nowait.0 nobody /bin/cat', 'TCP port 7009 on every IPv6 address: a new /bin/cat for each connection, as nobody'],
    ['/run/x.sock stream unix nowait.9 nobody /bin/cat', 'unix socket /run/x.sock: a new /bin/cat for each connection, as nobody, at most 9 a minute'],
    ['/run/x.sock stream unix wait.9 nobody /bin/cat', 'unix socket /run/x.sock: /bin/cat gets the listening socket and accepts by itself, one at a time, as nobody, at most 9 a minute'],
  ]
  for (const [line, words] of table) test(line, () => assert.equal(inWords(one(line!)), words))
})

test('an entry that is read again is the same wherever it stands, unless something in it has changed', () => {
  const base = '7009 stream tcp nowait nobody /bin/cat cat -u'
  const entry = one(base)
  assert.ok(sameEntry(entry, one(`# moved\n\n${base.replaceAll(' ', '\t')}`)))
  assert.ok(sameEntry(entry, one(`*:${base}`)))
  const changed = [
    base.replace('nowait', 'wait'),
    base.replace('nowait', 'nowait.9'),
    base.replace('nowait', 'nowait.0'),
    base.replace('nobody', 'root'),
    base.replace('nobody', 'nobody:tty'),
    base.replace('/bin/cat', '/bin/dog'),
    base.replace(' -u', ''),
    base.replace('-u', '"-u "'),
    base.replace('/bin/cat cat -u', 'internal echo'),
  ]
  for (const text of changed) {
    const other = one(text)
    assert.ok(!sameEntry(entry, other), text)
    assert.equal(other.key, entry.key, text)
  }
  const elsewhere = ['7008', '127.0.0.1:7009'].map(place => base.replace('7009', place))
  for (const text of [...elsewhere, base.replace('tcp', 'tcp4')])
    assert.notEqual(one(text).key, entry.key, text)
})

test('the name of each socket is unique on a machine, and the key joins them', () => {
  const table = [
    ['7009 stream tcp nowait nobody /bin/cat', ['tcp 0.0.0.0:7009', 'tcp [::]:7009']],
    ['127.0.0.1:tftp dgram udp wait nobody /bin/cat', ['udp 127.0.0.1:69']],
    ['/run/x.sock stream unix nowait nobody /bin/cat', ['unix /run/x.sock']],
    ['tcpmux/+Date stream tcp nowait nobody /bin/date', ['tcpmux date']],
  ] as const
  for (const [line, names] of table) {
    assert.deepEqual(socketNames(one(line)), names)
    assert.equal(one(line).key, names.join(', '))
  }
})

test('the label of a service is what its line says', () => {
  assert.equal(labelOf(one('127.0.0.1:tftp dgram udp4 wait nobody /bin/cat')), 'tftp/udp4')
  assert.equal(labelOf(one('tcpmux/+Date stream tcp nowait nobody /bin/date')), 'tcpmux/+Date/tcp')
})
