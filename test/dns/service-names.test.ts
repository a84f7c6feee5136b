import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type DnsOptions, validate } from '../../src/commands/dns-options.ts'
import { hostName } from '../../src/dns/zone.ts'
import { UsageError } from '../../src/errors.ts'
import { longName, nameOctets } from './message.ts'

const check = (...names: string[]) =>
  validate({
    policy: 'cyclic',
    check: [],
    services: names.map(name => ({ name, source: async () => {}, text: '' })),
  } as unknown as DnsOptions)

/** The longest label that an endpoint can have. */
const LONGEST = hostName('1111:2222:3333:4444:5555:6666:7777:8888', '')

test('a service is refused whose endpoints would have names of over 255 octets', () => {
  const most = 255 - LONGEST.length
  const longest = longName(most)
  assert.equal(nameOctets(LONGEST + longest).length, 255)
  assert.doesNotThrow(() => check(longest))
  assert.throws(
    () => check(longName(most + 1)),
    (error: Error) => {
      assert.ok(error instanceof UsageError)
      assert.match(error.message, /255 octets/)
      return true
    },
  )
})
