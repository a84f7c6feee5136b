import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseResolvConf } from '../../src/endpoints/resolv-conf.ts'

test('servers and search domains are read, and everything else is ignored', () => {
  const text = `# Written by a program.
domain old.test
search a.test b.test ; the last one counts
nameserver 127.0.0.53
 nameserver\t::1 # local
nameserver fe80::1%eth0
nameserver [::1]:5353
nameserver 127.0.0.2:5353
nameserver dns.test
nameserver
options ndots:5 edns0`
  assert.deepEqual(parseResolvConf(text), {
    servers: ['127.0.0.53:53', '[::1]:53', '[fe80::1%eth0]:53', '[::1]:5353', '127.0.0.2:5353'],
    searchDomains: ['a.test', 'b.test'],
  })
  assert.deepEqual(parseResolvConf('search a.test\ndomain b.test c'), {
    servers: [],
    searchDomains: ['b.test'],
  })
  assert.deepEqual(parseResolvConf(''), { servers: [], searchDomains: [] })
})
