/**
 * Debian's two inetds and ours run with the same file and do the same, except for the differences listed here
 * with their reasons.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { whyUnavailable } from '../../src/sys/available.ts'
import { has } from '../support/process.ts'
import { type Observed, observe, others, ours } from './inetds.ts'

/** What they do where ours does something else. The comment above each says why. */
const differences: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  'openbsd-inetd': {
    // It answers no datagram from 127.0.0.0/8, which may be forged, and none from ports below 1024 and 2049.
    // Ours answers 127.0.0.0/8, which no router forwards, and refuses the ports of services that answer by
    // themselves.
    'echo/udp, over 127.0.0.1': 'nothing',
    'echo/udp, from port 600': 'nothing',
    'echo/udp, from port 1023': 'nothing',
    // It continues until the connection is reset. Ours ends when the client half-closes, since it wants no
    // more.
    'chargen/tcp, after the client half-closed': 'nothing',
    // It sends a whole line. Ours sends no more than it received, so that nobody can be flooded through it.
    'chargen/udp, octets for an empty datagram': '74',
    // It has no tcpmux.
    'tcpmux, help': 'ECONNREFUSED',
    'tcpmux, +service': 'ECONNREFUSED',
    'tcpmux, service': 'ECONNREFUSED',
    'tcpmux, in capitals': 'ECONNREFUSED',
    'tcpmux, no such service': 'ECONNREFUSED',
    'tcpmux, no line': 'ECONNREFUSED',
    // The user's own group is among the supplementary ones, too: initgroups(3). Ours has none if the user has
    // no others; the permissions are the same.
    'program: groups': '0',
    'program of nobody: groups': '65534',
    // It clears the environment unless it is started with -E, and describes the connection in no variables.
    'program: PATH in its environment': 'false',
    'program: variables of the connection': '',
    // It treats unknown protocols as TCP.
    'a bad line': 'listens',
    // .3 allows two starts. After them connections are accepted and closed: the socket stays open, and SIGHUP
    // changes nothing. Ours closes the socket, as the manual says: "stop servicing requests for ten minutes".
    'over .3 a minute': 'x x closed closed closed',
    'SIGHUP: a service that was off for looping': '',
    // It ends if the file is missing. Ours keeps its configuration.
    'SIGHUP without the file': 'ECONNREFUSED',
    SIGTERM: 'has ended before',
  },
  'inetutils-inetd': {
    'chargen/tcp, after the client half-closed': 'nothing',
    // It sends a whole line, as openbsd-inetd does.
    'chargen/udp, octets for an empty datagram': '74',
    // It answers ports 7, 19 and 53, so that two servers can be made to answer each other for ever (CERT
    // CA-1996-01).
    'echo/udp, from port 7': 'hello',
    'echo/udp, from port 19': 'hello',
    'echo/udp, from port 53': 'hello',
    // Eight octets (a time_t), of which the first four are those of RFC 868.
    'time/tcp': '8 octets, right: true',
    'time/udp': '8 octets, right: true',
    // It reads beyond the line, and the rest is lost to the program. It is case-sensitive, unlike RFC 1078.
    'tcpmux, service': '""',
    'tcpmux, in capitals': '""',
    'tcpmux, no line': '"-Service not available\\r\\n"',
    'program of nobody: groups': '65534',
    // SIGPIPE is ignored in its programs.
    'program: ignored': '4096',
    // It does not support unix sockets.
    unix: 'ENOENT',
    'unix: mode and owner': 'none',
    // It is killed by the signal, and its programs continue. Ours waits for --drain (here 0 s) and then ends
    // them, so that a container or a unit is empty when inetd has ended.
    SIGTERM: 'SIGTERM',
    'SIGTERM: programs that run': 'live on',
  },
}

const theirs = others()
const why =
  (await whyUnavailable()) ??
  (process.getuid?.() === 0 ? undefined : 'needs root: internal services have ports below 1024') ??
  (has('perl') ? undefined : 'the programs behind inetd are written in Perl, which is not here') ??
  (theirs.length > 0 ? undefined : 'neither openbsd-inetd nor inetutils-inetd is installed')
const options = { skip: why ?? false, timeout: 60_000 }

let ourOwn: Observed | undefined

test('ours runs with the file that the others get', options, async t => {
  ourOwn = await observe(t, ours, '127.0.0.71')
})

for (const [i, kind] of (why ? [] : theirs).entries())
  test(
    `${kind.name} (${kind.argv[0]}) does the same, except for the listed differences`,
    options,
    async t => {
      const seen = await observe(t, kind, `127.0.0.${72 + i}`)
      assert.ok(ourOwn, 'ours did not finish')
      for (const [what, found] of Object.entries(seen)) {
        const listed = differences[kind.name]![what]
        if (found === ourOwn[what]) continue
        t.diagnostic(`${what}: ${JSON.stringify(found)}, ours: ${JSON.stringify(ourOwn[what])}`)
        assert.equal(found, listed ?? ourOwn[what], what)
      }
    },
  )
