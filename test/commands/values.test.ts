import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatAddress, ipAddress, socketAddress } from '../../src/address.ts'
import { parseNamed } from '../../src/commands/resolve-options.ts'
import { duration, integer, oneOf, parseCheck, parseSource, period, port } from '../../src/commands/values.ts'
import type { Check } from '../../src/endpoints/checks.ts'
import { Expected, UsageError } from '../../src/errors.ts'

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

test('the forms of a check are accepted, all else is refused with what was expected', () => {
  const good: readonly (readonly [string, Check])[] = [
    ['none', { kind: 'none' }],
    ['udp:7007', { kind: 'udp', port: 7007 }],
    ['tcp:1', { kind: 'tcp', port: 1 }],
    ['http:65535', { kind: 'http', port: 65535, path: '/' }],
    ['http:8080/readyz?verbose', { kind: 'http', port: 8080, path: '/readyz?verbose' }],
  ]
  for (const [text, check] of good) assert.deepEqual(parseCheck(text), check)
  const bad = [
    '',
    'udp',
    'udp:',
    'udp:0',
    'tcp:65536',
    'udp:7/x',
    'tcp:7/',
    'UDP:7',
    'icmp:1',
    'none:1',
    'udp:-1',
  ]
  const badHttp = ['http:/x', 'http:80 ', 'http:80/a b', 'http:80/é', 'http://127.0.0.1', 'http:80/\n']
  for (const text of [...bad, ...badHttp])
    assert.throws(() => parseCheck(text), new Expected('udp:PORT, tcp:PORT, http:PORT/path or none'), text)
})

const SYNTAX = 'static:ADDR[*WEIGHT],…, dns:NAME[@SERVER][/INTERVAL] or kubernetes:[NAMESPACE/]SERVICE'
const STATIC = 'static:ADDR[*WEIGHT],… with IP addresses and weights from 1 to 100, not '
const NO_ENDPOINT = 'static:ADDR[*WEIGHT],… with addresses of endpoints: '
const NAME_RULE = 'a domain name of letters, digits, "-" and "_", labels up to 63, in all up to 255 octets'
const SERVER = 'ADDRESS[:PORT] with an IP address, such as 127.0.0.1:5300 or [::1]:5300'
const long = `${'a'.repeat(63)}.`

test('a source that is not one is refused with what was expected', () => {
  const bad: readonly (readonly [string, string])[] = [
    ['', SYNTAX],
    ['static', SYNTAX],
    ['static:', SYNTAX],
    ['dns:', SYNTAX],
    ['10.0.0.1', SYNTAX],
    ['file:/etc/hosts', SYNTAX],
    ['STATIC:10.0.0.1', SYNTAX],
    ['static:10.0.0.1,', `${STATIC}""`],
    ['static:10.0.0.1, 10.0.0.2', `${STATIC}" 10.0.0.2"`],
    ['static:10.0.0', `${STATIC}"10.0.0"`],
    ['static:10.0.0.1:7', `${STATIC}"10.0.0.1:7"`],
    ['static:echo.test', `${STATIC}"echo.test"`],
    ['static:10.0.0.1,0.0.0.0*2', `${NO_ENDPOINT}"0.0.0.0" is an unspecified address`],
    ['static:ff02::1', `${NO_ENDPOINT}"ff02::1" is a multicast address`],
    ['static:fe80::1', `${NO_ENDPOINT}"fe80::1" is a link-local address, which needs an interface`],
    ['static:255.255.255.255', `${NO_ENDPOINT}"255.255.255.255" is the broadcast address`],
    ['static:fe80::1%lo', `${STATIC}"fe80::1%lo"`],
    ...['0', '101', '-1', '1.5', '', 'x', '1*1', '1e1'].map(
      weight => [`static:10.0.0.1*${weight}`, `${STATIC}"10.0.0.1*${weight}"`] as const,
    ),
    ['dns:a..b', NAME_RULE],
    ['dns:.', NAME_RULE],
    ['dns:a b', NAME_RULE],
    ['dns:@127.0.0.1', NAME_RULE],
    ['dns:[::1]', NAME_RULE],
    ['dns:10.0.0.1', 'dns:NAME[@SERVER][/INTERVAL] with a name, not the address 10.0.0.1'],
    [`dns:a${long}test`, NAME_RULE],
    [`dns:${long.repeat(4)}`, NAME_RULE],
    ['dns:echo@', SERVER],
    ['dns:echo@dns.test', SERVER],
    ['dns:echo@127.0.0.1:65536', SERVER],
    ['dns:echo@127.0.0.1:0', SERVER],
    ['dns:echo@::1:53x', SERVER],
    ['dns:echo/', 'a duration such as 500ms, 7s or 1m'],
    ['dns:echo/5', 'a duration such as 500ms, 7s or 1m'],
    ['dns:echo@127.0.0.1/0', 'a duration above 0 such as 500ms, 7s or 1m'],
    ['dns:echo/1s/2s', 'a duration such as 500ms, 7s or 1m'],
  ]
  for (const [text, message] of bad)
    assert.throws(() => parseSource(text), new Expected(message), `for ${text}`)
})

test('the forms of a source are accepted', () => {
  for (const text of [
    'dns:echo',
    'dns:echo.',
    'dns:_a-b.Echo.test./100ms',
    'dns:echo@127.0.0.11',
    'dns:echo@127.0.0.1:5300/1s',
    'dns:echo@[::1]:5300',
    'dns:echo@::1/2m',
    `dns:${long.repeat(3)}${'a'.repeat(61)}.`,
  ])
    assert.equal(typeof parseSource(text), 'function', text)
})

test('what is not the name of a Service is refused, with what was expected', () => {
  const NAMES = 'kubernetes:[NAMESPACE/]SERVICE with names of Kubernetes, not '
  for (const bad of ['/echo', 'farm/', 'a/b/c', 'Echo', 'echo.farm', 'farm echo', '../x', 'a'.repeat(64)])
    assert.throws(() => parseSource(`kubernetes:${bad}`), new Expected(`${NAMES}"${bad}"`), bad)
  for (const bad of ['kubernetes', 'kubernetes:', 'Kubernetes:echo'])
    assert.throws(() => parseSource(bad), new Expected(SYNTAX), bad)
})
