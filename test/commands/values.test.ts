import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatAddress, ipAddress, socketAddress } from '../../src/address.ts'
import { parseNamed } from '../../src/commands/resolve-options.ts'
import { duration, integer, oneOf, period, port } from '../../src/commands/values.ts'
import { UsageError } from '../../src/errors.ts'

const ttl = integer(0, 2 ** 31 - 1)
const optionalPort = (text: string) => socketAddress(text, 53)

const good: readonly [parse: (text: string) => unknown, values: readonly (readonly [string, unknown])[]][] = [
  // biome-ignore format: a table
  [ttl, [['0', 0], ['5', 5], ['007', 7], ['2147483647', 2147483647]]],
  // biome-ignore format: a table
  [port, [['1', 1], ['53', 53], ['65535', 65535]]],
  [
    duration,
    [
      ['0', 0],
      ['0s', 0],
      ['500ms', 500],
      ['7s', 7000],
      ['1.5m', 90_000],
      ['0.001s', 1],
      ['1h', 3_600_000],
      // The longest that a Node timer can wait; one more would fire at once.
      ['2147483647ms', 2 ** 31 - 1],
      ['596h', 2_145_600_000],
    ],
  ],
  // biome-ignore format: a table
  [period, [['1ms', 1], ['400ms', 400], ['2s', 2000]]],
  [
    ipAddress,
    [
      ['127.0.0.1', '127.0.0.1'],
      ['::', '::'],
      ['::1', '::1'],
      ['2001:DB8::A', '2001:db8::a'],
      ['2001:0db8:0000:0000:0000:0000:0000:0001', '2001:db8::1'],
      // RFC 5952: the longest run of zeros, the first of equals, never a single one.
      ['2001:db8:0:0:1:0:0:1', '2001:db8::1:0:0:1'],
      ['2001:db8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
      ['2001:0:0:1:0:0:0:1', '2001:0:0:1::1'],
      ['::ffff:192.0.2.1', '::ffff:c000:201'],
    ],
  ],
  [
    socketAddress,
    [
      ['127.0.0.1:0', { address: '127.0.0.1', port: 0 }],
      ['0.0.0.0:65535', { address: '0.0.0.0', port: 65535 }],
      ['[::]:7007', { address: '::', port: 7007 }],
      ['[2001:db8::1]:53', { address: '2001:db8::1', port: 53 }],
    ],
  ],
  [
    optionalPort,
    [
      ['127.0.0.1', { address: '127.0.0.1', port: 53 }],
      ['127.0.0.1:5300', { address: '127.0.0.1', port: 5300 }],
      ['::1', { address: '::1', port: 53 }],
      ['[::1]', { address: '::1', port: 53 }],
      ['[::1]:5300', { address: '::1', port: 5300 }],
    ],
  ],
  // biome-ignore format: a table
  [oneOf('udp', 'tcp'), [['udp', 'udp'], ['tcp', 'tcp']]],
]

const aDuration = 'a duration such as 500ms, 7s or 1m'
const aPeriod = 'a duration above 0 such as 500ms, 7s or 1m'
const aPort = 'an integer from 1 to 65535'
const aLink = `${aPort} (this is a Kubernetes service link: set enableServiceLinks: false in the pod)`
const anAddress = 'an IPv4 or IPv6 address'
const withPort = 'ADDRESS:PORT with an IP address, such as 127.0.0.1:5300 or [::1]:5300'
const maybePort = 'ADDRESS[:PORT] with an IP address, such as 127.0.0.1:5300 or [::1]:5300'

const bad: readonly [parse: (text: string) => unknown, expected: string, texts: readonly string[]][] = [
  [
    ttl,
    'an integer from 0 to 2147483647',
    ['abc', '', ' ', '-1', '1.5', '1e3', '0x10', ' 5', '5 ', '+5', '2147483648', '٣', '1_000', 'NaN', '5\n'],
  ],
  [port, aPort, ['0', '65536', 'http', '', '-53', '1234567890123456']],
  [port, aLink, ['tcp://10.96.0.1:7007', 'udp://10.96.0.1:7007', 'sctp://[fd00::1]:7007']],
  [
    duration,
    aDuration,
    ['', 's', '7', '-1s', '7 s', '7S', '1d', '1h30m', '.5s', '5.s', '1e3ms', '0.0001s', 'Infinity', '7s\n'],
  ],
  // Beyond the longest timer of Node.
  [duration, 'at most 596h', ['2147483648ms', '597h', '9999999999h']],
  [period, aPeriod, ['0', '0ms', '0.4ms', '0.0h']],
  [period, aDuration, ['soon', '-1s']],
  [period, 'at most 596h', ['600h']],
  [
    ipAddress,
    anAddress,
    ['', 'localhost', '127.1', '010.0.0.1', '127.0.0.1:53', '[::1]', '::1%lo', ':::', '1'],
  ],
  [
    socketAddress,
    withPort,
    [
      ...['', '127.0.0.1', '127.0.0.1:', ':53', '53', 'localhost:53', '127.0.0.1:65536', '127.0.0.1:999999'],
      ...['::1:53', '::1', '[::1]', '[::1]:', '[127.0.0.1]:53', '127.0.0.1:-1', '127.0.0.1:53 ', '[::1:53'],
    ],
  ],
  [
    optionalPort,
    maybePort,
    ['', 'localhost', '127.0.0.1:', '[::1', '::1]', '[127.0.0.1]', '127.0.0.1:65536'],
  ],
  [oneOf('udp', 'tcp'), 'one of udp, tcp', ['', 'UDP', 'sctp', 'udp ', 'toString']],
]

test('every parser takes what is well written', () => {
  for (const [parse, values] of good)
    for (const [text, value] of values) assert.deepEqual(parse(text), value, text)
})

test('every parser refuses the rest, with a message that names origin, text and what was expected', () => {
  for (const [parse, expected, texts] of bad)
    for (const text of texts)
      assert.throws(
        () => parseNamed('--flag', text, parse),
        new UsageError(`Cannot parse --flag "${text}": expected ${expected}`),
        `${JSON.stringify(text)} was taken`,
      )
})

test('an error that is no matter of parsing is passed on as it is', () => {
  const fault = new TypeError('a bug')
  const parse = () => {
    throw fault
  }
  assert.throws(
    () => parseNamed('--flag', 'x', parse),
    error => error === fault,
  )
})

test('an address that is written is parsed again to the same', () => {
  for (const text of ['127.0.0.1:53', '[::1]:53', '[::]:0', '[2001:db8::1]:65535'])
    assert.equal(formatAddress(socketAddress(text)), text)
})
