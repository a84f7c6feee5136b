import assert from 'node:assert/strict'
import { test } from 'node:test'
import { endpointAddress, endpointProblem } from '../src/address.ts'
import { Expected } from '../src/errors.ts'

test('each kind of address that cannot be an endpoint is told from those that can', () => {
  const problems: Readonly<Record<string, RegExp | undefined>> = {
    '0.0.0.0': /unspecified/,
    '0.1.2.3': /unspecified/,
    '::': /unspecified/,
    '0:0:0:0:0:0:0:0': /unspecified/,
    '::ffff:0.0.0.0': /unspecified/,
    '224.0.0.1': /multicast/,
    '239.255.255.255': /multicast/,
    'ff02::1': /multicast/,
    'FF0E::1': /multicast/,
    '::ffff:224.0.0.1': /multicast/,
    '255.255.255.255': /broadcast/,
    'fe80::1': /link-local/,
    'FEBF::1': /link-local/,
    'fe80::1%eth0': /link-local/,
    'fd00::1%eth0': /interface/,
    '010.0.0.1': /not an IP address/,
    '10.0.0.1%eth0': /not an IP address/,
    'echo.test': /not an IP address/,
    '': /not an IP address/,
    '10.0.0.1': undefined,
    '127.0.0.1': undefined,
    '169.254.1.1': undefined,
    '223.255.255.255': undefined,
    '240.0.0.1': undefined,
    '::1': undefined,
    'ff::1': undefined,
    'fec0::1': undefined,
    'fd00::1': undefined,
    '2001:db8::1': undefined,
    '::ffff:10.0.0.1': undefined,
  }
  for (const [address, problem] of Object.entries(problems)) {
    if (problem) assert.match(endpointProblem(address) ?? 'none', problem, address)
    else assert.equal(endpointProblem(address), undefined, address)
  }
})

test('--ns-address refuses an address that no client can use', () => {
  assert.equal(endpointAddress('2001:DB8::1'), '2001:db8::1')
  const wanted = 'an address at which clients can reach a server, not a multicast address'
  assert.throws(() => endpointAddress('224.0.0.1'), new Expected(wanted))
})
