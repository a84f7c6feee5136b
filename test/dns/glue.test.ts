import assert from 'node:assert/strict'
import { test } from 'node:test'
import { reachableAddresses } from '../../src/dns/glue.ts'

const on = (address: string, internal = false) => ({
  address,
  family: address.includes(':') ? 'IPv6' : 'IPv4',
  internal,
})
const interfaces = [
  on('127.0.0.1', true),
  on('::1', true),
  on('192.0.2.7'),
  on('2001:db8::7'),
  on('fe80::1'),
  on('fe9a::1'),
  on('FEBF::1'),
  on('fec0::1'),
  on('fd00::7'),
  on('10.53.0.2'),
]

test('a wildcard stands for the addresses of its family, without loopback', () => {
  assert.deepEqual(reachableAddresses('0.0.0.0', interfaces), ['192.0.2.7', '10.53.0.2'])
})

test('the IPv6 wildcard stands for those of IPv6, without loopback and link-local ones (fe80::/10)', () => {
  assert.deepEqual(reachableAddresses('::', interfaces), ['2001:db8::7', 'fec0::1', 'fd00::7'])
})

test('an address that is not a wildcard stands for itself, also a loopback one', () => {
  for (const address of ['127.0.0.1', '::1', '192.0.2.7'])
    assert.deepEqual(reachableAddresses(address, interfaces), [address])
})

test('a listener at an address that no client can use has no glue', () => {
  for (const address of ['fe80::1%eth0', 'fe80::1', 'ff02::1', '224.0.0.1', '255.255.255.255'])
    assert.deepEqual(reachableAddresses(address, interfaces), [])
})
