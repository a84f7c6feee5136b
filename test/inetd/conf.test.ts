import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { isIpv6 } from '../../src/address.ts'
import { parseInetdConf, parseServices } from '../../src/inetd/conf.ts'
import { type Entry, describe as inWords, sameEntry } from '../../src/inetd/entry.ts'

const services = `# In the form of services(5).
tcpmux		1/tcp				# TCP port service multiplexer
echo		7/tcp
echo		7/udp
discard		9/tcp		sink null
discard		9/udp		sink null
daytime		13/tcp
daytime		13/udp
chargen		19/tcp		ttytst source
chargen		19/udp		ttytst source
ftp		21/tcp
telnet		23/tcp
time		37/tcp		timserver
time		37/udp		timserver
tftp		69/udp
finger		79/tcp
auth		113/tcp		authentication tap ident
comsat		512/udp		biff
ntalk		518/udp
`
const lookUp = parseServices(services)
const parse = (text: string) => parseInetdConf(text, 'inetd.conf', lookUp)
const messages = (text: string) => parse(text).problems.map(({ message }) => message)

/** All entries of a text that has no problems. */
const entriesOf = (text: string) => {
  assert.deepEqual(messages(text), [])
  return parse(text).entries
}
const one = (text: string) => {
  const entries = entriesOf(text)
  assert.equal(entries.length, 1, text)
  return entries[0]!
}
function ofKind<K extends Entry['kind']>(kind: K, entry: Entry): Extract<Entry, { kind: K }> {
  assert.equal(entry.kind, kind)
  return entry as Extract<Entry, { kind: K }>
}
function socketsOf(entry: Entry) {
  assert.ok(entry.kind !== 'tcpmux')
  return entry.sockets
}
function familiesOf(entry: Entry): number[] {
  const sockets = socketsOf(entry)
  assert.ok(sockets.family === 'inet')
  return sockets.addresses.map(({ address }) => (isIpv6(address) ? 6 : 4))
}
const keys = (text: string) => entriesOf(text).map(({ key }) => key)

const protocol = 'expected one of tcp, udp, tcp4, tcp6, udp4, udp6, tcp46, udp46, unix'
const address = 'expected * or IP addresses such as 127.0.0.1,[::1] (names are not looked up)'
const tcpService = 'expected a port or the name of a TCP service'
const wait = 'expected wait or nowait, and .MAX for starts a minute'
const user = 'expected USER, USER:GROUP or USER.GROUP'
const streamInternal = 'expected one of echo, discard, chargen, daytime, time, tcpmux'
const datagramInternal = 'expected one of echo, discard, chargen, daytime, time'
const fields = 'expected service, socket type, protocol, wait/nowait, user and program'
const path = 'expected an absolute path of at most 107 octets'
const clean = 'expected UTF-8 text without control characters'
const names = 'expected at most the name of the internal service'
const datagramWait = 'expected wait (or one datagram starts the program for ever)'

/** Bad lines, and the message about each after `inetd.conf:1: Cannot parse `. */
// biome-ignore format: a table
const malformed: readonly (readonly [line: string, message: string])[] = [
  ['echo', `line "echo": ${fields}`],
  ['echo stream', `line "echo stream": ${fields}`],
  ['echo stream tcp nowait root', `line "echo stream tcp nowait root": ${fields}`],
  ['echo\tstream\ttcp\n\tnowait\troot', `line "echo stream tcp nowait root": ${fields}`],
  ['"" stream', `line """ stream": ${fields}`],
  ['.include /etc/inetd.d/*', 'line ".include /etc/inetd.d/*": expected an entry (.include is not supported)'],
  ['#@ in ipsec ah/transport//require', 'line "#@ in ipsec ah/transport//require": expected no IPsec policy (not supported)'],
  ['#@out none', 'line "#@out none": expected no IPsec policy (not supported)'],
  // Quotes.
  [`7 stream tcp nowait root /bin/sh sh -c "echo hi`, `line "7 stream tcp nowait root /bin/sh sh -c "echo hi": expected another " before the line ends`],
  [`7 stream tcp nowait root /bin/sh sh -c 'echo`, `line "7 stream tcp nowait root /bin/sh sh -c 'echo": expected another ' before the line ends`],
  [`7 stream tcp nowait root /bin/sh "a\n b"`, `line "7 stream tcp nowait root /bin/sh "a b"": expected another " before the line ends`],
  [`don't`, `line "don't": expected another ' before the line ends`],
  // Not text.
  ['echo\0 stream tcp nowait root internal', `line "echo\\u{0} stream tcp nowait root internal": ${clean}`],
  ['echo stream\r tcp nowait root internal', `line "echo stream\\u{d} tcp nowait root internal": ${clean}`],
  ['echo \x1b[1m', `line "echo \\u{1b}[1m": ${clean}`],
  ['echo \x7f\x85', `line "echo \\u{7f}\\u{85}": ${clean}`],
  ['\f', `line "\\u{c}": ${clean}`],
  ['caf\uFFFD', `line "caf\uFFFD": ${clean}`],
  [`7 stream tcp nowait root /bin/cat ${'x'.repeat(8192)}`, `line "7 stream tcp nowait root /bin/cat ${'x'.repeat(26)}…": expected at most 8192 characters`],
  [`${'y'.repeat(8193)}`, `line "${'y'.repeat(60)}…": expected at most 8192 characters`],
  // Socket types.
  ['echo raw tcp nowait root internal', 'socket type "raw": expected one of stream, dgram'],
  ['echo seqpacket tcp nowait root internal', 'socket type "seqpacket": expected one of stream, dgram'],
  ['echo STREAM tcp nowait root internal', 'socket type "STREAM": expected one of stream, dgram'],
  ['echo "" tcp nowait root internal', 'socket type "": expected one of stream, dgram'],
  ['echo stream,10:http tcp nowait root internal', 'socket type "stream,10:http": expected one of stream, dgram (accept limits and filters are not supported)'],
  ['http stream:dataready tcp nowait root internal', 'socket type "stream:dataready": expected one of stream, dgram (accept limits and filters are not supported)'],
  ['echo on protocol=tcp, wait=no, user=root, exec=internal;', 'socket type "on": expected one of stream, dgram (the key-values notation is not supported)'],
  ['echo off\n protocol = tcp,\n user = root;', 'socket type "off": expected one of stream, dgram (the key-values notation is not supported)'],
  ['echo dgram tcp wait root internal', 'socket type "dgram": expected stream for tcp'],
  ['echo stream udp6 nowait root internal', 'socket type "stream": expected dgram for udp6'],
  ['/run/x.sock dgram unix wait root /bin/cat', 'socket type "dgram": expected stream for unix'],
  // Protocols.
  ['echo stream sctp nowait root internal', `protocol "sctp": ${protocol}`],
  ['echo stream TCP nowait root internal', `protocol "TCP": ${protocol}`],
  ['echo stream tcp6only nowait root internal', `protocol "tcp6only": ${protocol}`],
  ['echo stream tcp64 nowait root internal', `protocol "tcp64": ${protocol}`],
  ['echo stream toString nowait root internal', `protocol "toString": ${protocol}`],
  ['echo stream tcp/ttcp nowait root internal', `protocol "tcp/ttcp": ${protocol}`],
  ['rstatd/1-3 dgram rpc/udp wait root /usr/libexec/rpc.rstatd rpc.rstatd', `protocol "rpc/udp": ${protocol} (RPC is not supported)`],
  ['telnet stream faith/tcp6 nowait root /usr/libexec/telnetd', `protocol "faith/tcp6": ${protocol} (faithd is not supported)`],
  ['ftp stream tcp,rcvbuf=64k,sndbuf=1m nowait root /usr/libexec/ftpd', `protocol "tcp,rcvbuf=64k,sndbuf=1m": ${protocol} (buffer sizes are not supported)`],
  // Services.
  ['nonesuch stream tcp nowait root /bin/cat', `service "nonesuch": ${tcpService}`],
  ['tftp stream tcp nowait root /bin/cat', `service "tftp": ${tcpService}`],
  ['ftp dgram udp wait root /bin/cat', 'service "ftp": expected a port or the name of a UDP service'],
  ['0 stream tcp nowait root /bin/cat', 'service "0": expected an integer from 1 to 65535'],
  ['65536 stream tcp nowait root /bin/cat', 'service "65536": expected an integer from 1 to 65535'],
  ['-7 stream tcp nowait root /bin/cat', `service "-7": ${tcpService}`],
  ['7x stream tcp nowait root /bin/cat', `service "7x": ${tcpService}`],
  ['__proto__ stream tcp nowait root /bin/cat', `service "__proto__": ${tcpService}`],
  ['/run/x.sock stream tcp nowait root /bin/cat', `service "/run/x.sock": ${tcpService}`],
  ['rusers/1-3 stream tcp nowait root /bin/cat', `service "rusers/1-3": ${tcpService}`],
  ['echo stream unix nowait root internal', `service "echo": ${path}`],
  ['run/x.sock stream unix nowait root /bin/cat', `service "run/x.sock": ${path}`],
  [`/${'é'.repeat(54)} stream unix nowait root /bin/cat`, `service "/${'é'.repeat(54)}": ${path}`],
  // Addresses.
  ['localhost:echo stream tcp nowait root internal', `address "localhost": ${address}`],
  ['127.0.0.256:echo stream tcp nowait root internal', `address "127.0.0.256": ${address}`],
  ['127.1:echo stream tcp nowait root internal', `address "127.1": ${address}`],
  ['::g:echo stream tcp nowait root internal', `address "::g": ${address}`],
  ['[::1:echo stream tcp nowait root internal', `address "[::1": ${address}`],
  ['[127.0.0.1]:echo stream tcp nowait root internal', `address "[127.0.0.1]": ${address}`],
  ['127.0.0.1,:echo stream tcp nowait root internal', `address "127.0.0.1,": ${address}`],
  ['*,127.0.0.1:echo stream tcp nowait root internal', `address "*,127.0.0.1": ${address}`],
  ['127.0.0.1:7:echo stream tcp nowait root internal', `address "127.0.0.1:7": ${address}`],
  [':echo stream tcp nowait root internal', `address "": ${address}`],
  ['127.0.0.1: stream tcp nowait root internal', `service "": ${tcpService}`],
  ['[::1]:echo stream tcp4 nowait root internal', 'address "[::1]": expected an IPv4 one for tcp4'],
  ['127.0.0.1,127.0.0.2:echo dgram udp6 wait root internal', 'address "127.0.0.1,127.0.0.2": expected an IPv6 one for udp6'],
  ['example.com:', `address "example.com": ${address}`],
  ['127.0.0.1, 127.0.0.2:', `address "127.0.0.1, 127.0.0.2": ${address}`],
  [':', `address "": ${address}`],
  // wait/nowait.
  ['echo stream tcp maybe root internal', `wait/nowait "maybe": ${wait}`],
  ['echo stream tcp nowait. root internal', `wait/nowait "nowait.": ${wait}`],
  ['echo stream tcp nowait.-1 root internal', `wait/nowait "nowait.-1": ${wait}`],
  ['echo stream tcp nowait.1234567890 root internal', `wait/nowait "nowait.1234567890": ${wait}`],
  ['finger stream tcp nowait/3/10 nobody /usr/libexec/fingerd', `wait/nowait "nowait/3/10": ${wait} (a limit of children at a time is not supported)`],
  ['tftp dgram udp nowait nobody /usr/sbin/in.tftpd', `wait/nowait "nowait": ${datagramWait}`],
  ['tftp dgram udp nowait.9 nobody /usr/sbin/in.tftpd', `wait/nowait "nowait.9": ${datagramWait}`],
  ['echo stream tcp wait root internal', 'wait/nowait "wait": expected nowait for an internal service'],
  ['tcpmux/x stream tcp wait root /bin/cat', 'wait/nowait "wait": expected nowait for a service of tcpmux'],
  // Users.
  ['echo stream tcp nowait root/daemon internal', `user "root/daemon": ${user}`],
  ['echo stream tcp nowait root: internal', `user "root:": ${user}`],
  ['echo stream tcp nowait :wheel internal', `user ":wheel": ${user}`],
  ['echo stream tcp nowait a.b.c internal', `user "a.b.c": ${user}`],
  ['echo stream tcp nowait "" internal', `user "": ${user}`],
  ['echo stream tcp nowait /bin/cat cat', `user "/bin/cat": ${user}`],
  // Programs and arguments.
  ['ftp stream tcp nowait root ftpd -l', 'program "ftpd": expected an absolute path or internal'],
  ['ftp stream tcp nowait root ./ftpd', 'program "./ftpd": expected an absolute path or internal'],
  ['ftp stream tcp nowait root ""', 'program "": expected an absolute path or internal'],
  ['echo stream tcp nowait root INTERNAL', 'program "INTERNAL": expected an absolute path or internal'],
  ['ftp stream tcp nowait root internal', `internal service "ftp": ${streamInternal}`],
  ['sink stream tcp nowait root internal', `internal service "sink": ${streamInternal}`],
  ['7007 stream tcp nowait root internal', `internal service "7007": ${streamInternal}`],
  ['7007 stream tcp nowait root internal ftp', `internal service "ftp": ${streamInternal}`],
  ['/run/x.sock stream unix nowait root internal', `internal service "/run/x.sock": ${streamInternal}`],
  ['auth stream tcp nowait root internal', `internal service "auth": ${streamInternal}`],
  ['1 dgram udp wait root internal tcpmux', `internal service "tcpmux": ${datagramInternal}`],
  ['auth stream tcp nowait root internal auth -r -f', `arguments "auth -r -f": ${names}`],
  ['echo stream tcp nowait root internal # RFC 862', `arguments "# RFC 862": ${names}`],
  // tcpmux.
  ['tcpmux/x dgram udp wait root /bin/cat', 'protocol "udp": expected tcp for a service of tcpmux'],
  ['tcpmux/x stream tcp6 nowait root /bin/cat', 'protocol "tcp6": expected tcp for a service of tcpmux'],
  ['tcpmux/ stream tcp nowait root /bin/cat', `service "tcpmux/": ${tcpService}`],
  ['tcpmux/x stream tcp nowait root internal', 'program "internal": expected an absolute path'],
  ['tcpmux/Help stream tcp nowait root /bin/cat', 'service "tcpmux/Help": expected another name: tcpmux itself answers to help'],
  ['127.0.0.1:tcpmux/x stream tcp nowait root /bin/cat', 'address "127.0.0.1": expected none for a service of tcpmux: it has no socket of its own'],
]

describe('a bad line', () => {
  for (const [line, message] of malformed)
    test(JSON.stringify(line.length > 80 ? `${line.slice(0, 80)}…` : line), () => {
      const good = '*:daytime stream tcp nowait root internal\n*:time stream tcp nowait root internal'
      const [before, after] = good.split('\n')
      const { entries, problems } = parse(`${before}\n\n${line}\n#@\n${after}\n`)
      assert.deepEqual(
        problems.map(problem => [problem.file, problem.line, problem.message]),
        [['inetd.conf', 3, `inetd.conf:3: Cannot parse ${message}`]],
      )
      assert.ok(message.startsWith(`${problems[0]!.field} "`))
      assert.deepEqual(
        entries.map(entry => entry.service),
        ['daytime', 'time'],
      )
    })

  test('is identified by the file and its first line', () => {
    const { problems } = parseInetdConf(
      '\r\n# one\r\n\r\necho stream\r\n tcp\r\n never root internal\r\n',
      '/etc/x',
      lookUp,
    )
    assert.deepEqual(problems, [
      {
        file: '/etc/x',
        line: 4,
        field: 'wait/nowait',
        message: `/etc/x:4: Cannot parse wait/nowait "never": ${wait}`,
      },
    ])
  })

  test('is bad together with its continuation lines', () => {
    const text = 'echo stream sctp nowait root\n\tinternal\necho stream tcp nowait root internal'
    assert.deepEqual(messages(text), [`inetd.conf:1: Cannot parse protocol "sctp": ${protocol}`])
    assert.deepEqual(
      parse(text).entries.map(({ line }) => line),
      [3],
    )
  })

  test('with two mistakes is reported with the first', () =>
    assert.deepEqual(messages('a b c d e f'), [
      'inetd.conf:1: Cannot parse socket type "b": expected one of stream, dgram',
    ]))

  test('is listed among the problems in the order of lines', () => {
    const line = 'echo stream tcp nowait root internal\n'
    assert.deepEqual(
      parse(`bad\n${line}${line}bad\n`).problems.map(problem => problem.line),
      [1, 2, 4],
    )
  })

  test('does not hide an error that the look-up throws', () => {
    const fault = new TypeError('a bug')
    const faulty = () => {
      throw fault
    }
    assert.throws(
      () => parseInetdConf('echo stream tcp nowait root internal', 'f', faulty),
      error => error === fault,
    )
  })
})

describe('an entry', () => {
  test('is plain data', () =>
    assert.deepEqual(
      parse(`#\n127.0.0.1:tftp dgram udp wait.9 nobody:tftp /usr/sbin/in.tftpd in.tftpd -s "/srv/my tftp"`),
      {
        entries: [
          {
            kind: 'exec',
            key: 'udp 127.0.0.1:69',
            line: 2,
            service: 'tftp',
            protocol: 'udp',
            sockets: {
              family: 'inet',
              transport: 'udp',
              addresses: [{ address: '127.0.0.1', port: 69 }],
            },
            wait: true,
            maxPerMinute: 9,
            user: 'nobody',
            group: 'tftp',
            program: { path: '/usr/sbin/in.tftpd', argv: ['in.tftpd', '-s', '/srv/my tftp'] },
          },
        ],
        problems: [],
        warnings: [],
      },
    ))

  test('may be internal, and then has no program', () =>
    assert.deepEqual(one('echo dgram udp wait root internal'), {
      kind: 'internal',
      key: 'udp 0.0.0.0:7, udp [::]:7',
      line: 1,
      service: 'echo',
      protocol: 'udp',
      sockets: {
        family: 'inet',
        transport: 'udp',
        addresses: [
          { address: '0.0.0.0', port: 7 },
          { address: '::', port: 7 },
        ],
      },
      maxPerMinute: 256,
      user: 'root',
      name: 'echo',
    }))

  test('may be a unix socket, whose path may contain colons and to which addresses do not apply', () => {
    const entry = one('[::1]:\n*:/run/a:b.sock stream unix nowait nobody /bin/cat')
    assert.deepEqual([entry.key, entry.service], ['unix /run/a:b.sock', '/run/a:b.sock'])
    assert.deepEqual(socketsOf(entry), { family: 'unix', path: '/run/a:b.sock' })
    const longest = `/${'x'.repeat(106)}`
    const { sockets } = ofKind('exec', one(`${longest} stream unix wait nobody /bin/cat`))
    assert.deepEqual(sockets, { family: 'unix', path: longest })
    assert.equal(one('/run/x stream unix nowait nobody internal echo').kind, 'internal')
  })

  test('may be a service of tcpmux, in whose name case does not matter (RFC 1078)', () => {
    const [date, phone] = entriesOf(
      '127.0.0.1:\ntcpmux/+Date stream tcp nowait guest /bin/date date\ntcpmux/phonebook stream tcp nowait.3 guest /usr/bin/phone',
    )
    const shown = [date!, phone!].map(entry => {
      const { key, name, plus, program } = ofKind('tcpmux', entry)
      return { key, name, plus, program }
    })
    assert.deepEqual(shown, [
      { key: 'tcpmux date', name: 'date', plus: true, program: { path: '/bin/date', argv: ['date'] } },
      {
        key: 'tcpmux phonebook',
        name: 'phonebook',
        plus: false,
        program: { path: '/usr/bin/phone', argv: ['/usr/bin/phone'] },
      },
    ])
    assert.equal(phone!.maxPerMinute, 3)
  })

  test('that is internal is named by the service or by the word after internal', () => {
    const table = [
      ['echo stream tcp nowait root internal', 'echo'],
      ['echo stream tcp nowait root internal internal', 'echo'],
      ['echo stream tcp nowait root internal echo', 'echo'],
      ['7007 stream tcp nowait root internal echo', 'echo'],
      ['7007 dgram udp nowait root internal chargen', 'chargen'],
      ['sink stream tcp nowait root internal discard', 'discard'],
      ['daytime dgram udp wait root internal', 'daytime'],
      ['time stream tcp nowait root internal', 'time'],
    ]
    for (const [line, name] of table) assert.equal(ofKind('internal', one(line!)).name, name, line!)
    for (const line of [
      'tcpmux stream tcp nowait root internal',
      '7001 stream tcp nowait root internal tcpmux',
    ])
      assert.equal(one(line).kind, 'multiplexer', line)
  })

  test('has a limit of starts after "." or ":", which is 256 by default, and none if it is 0', () => {
    const limits = ['nowait', 'nowait.40', 'nowait:40', 'wait.1', 'wait:999999999', 'nowait.0'].map(
      wait => one(`7 stream tcp ${wait} root /bin/cat`).maxPerMinute,
    )
    assert.deepEqual(limits, [256, 40, 40, 1, 999_999_999, Number.POSITIVE_INFINITY])
  })

  test('has a user, and a group after ":" or "."', () => {
    const table: [text: string, user: string, group?: string][] = [
      ['root', 'root'],
      ['_fingerd', '_fingerd'],
      ['tty:tty', 'tty', 'tty'],
      ['nobody.kmem', 'nobody', 'kmem'],
      ['first.last:a.group', 'first.last', 'a.group'],
      ['HOST$:www-data', 'HOST$', 'www-data'],
      ['1000:1000', '1000', '1000'],
    ]
    for (const [text, user, group] of table) {
      const entry = one(`7 stream tcp nowait ${text} /bin/cat`)
      assert.deepEqual([entry.user, entry.group, 'group' in entry!], [user, group, group !== undefined], text)
    }
  })

  test('has arguments without their quotes', () => {
    const table: [written: string, argv: string[]][] = [
      ['', ['/bin/sh']],
      ['sh', ['sh']],
      ['sh\t -c  ls ', ['sh', '-c', 'ls']],
      [`sh -c "echo 'hi'" 'say "hi"'`, ['sh', '-c', `echo 'hi'`, 'say "hi"']],
      [`sh --name="a b"'c  d'`, ['sh', '--name=a bc  d']],
      [`"" ''`, ['', '']],
      [String.raw`sh a\n "b\" \ c`, ['sh', 'a\\n', 'b\\', '\\', 'c']],
      ['sh #not a: comment', ['sh', '#not', 'a:', 'comment']],
      ['sh\n\t-c\n   "x  y"\n z', ['sh', '-c', 'x  y', 'z']],
      ['sh é 日本 😀', ['sh', 'é', '日本', '😀']],
      [`sh ${'a '.repeat(4000)}`, ['sh', ...Array(4000).fill('a')]],
    ]
    for (const [written, argv] of table) {
      const { program } = ofKind('exec', one(`7 stream tcp nowait root /bin/sh ${written}`))
      assert.deepEqual(program, { path: '/bin/sh', argv }, written)
    }
    const quoted = ofKind('exec', one(`'7' stream tcp nowait root "/opt/my program"`)).program
    assert.deepEqual(quoted, { path: '/opt/my program', argv: ['/opt/my program'] })
  })
})

describe('addresses', () => {
  const rest = 'stream tcp nowait root internal'

  test('are of both families, or of the family of the protocol', () => {
    const table = [
      ['tcp', 'tcp 0.0.0.0:7, tcp [::]:7'],
      ['tcp46', 'tcp 0.0.0.0:7, tcp [::]:7'],
      ['tcp4', 'tcp 0.0.0.0:7'],
      ['tcp6', 'tcp [::]:7'],
    ]
    for (const [protocol, key] of table)
      assert.equal(one(`echo stream ${protocol} nowait root internal`).key, key)
    for (const [protocol, key] of table)
      assert.equal(
        one(`echo dgram ${protocol!.replace('tcp', 'udp')} nowait root internal`).key,
        key!.replaceAll('tcp', 'udp'),
      )
  })

  test('before a service are listed once each, in the form of RFC 5952', () => {
    assert.equal(one(`127.0.0.1:echo ${rest}`).key, 'tcp 127.0.0.1:7')
    assert.equal(one(`[0:0::1]:7 ${rest} echo`).key, 'tcp [::1]:7')
    assert.equal(one(`::1:7 ${rest} echo`).key, 'tcp [::1]:7')
    assert.equal(one(`[fe80::1%eth0]:7 ${rest} echo`).key, 'tcp [fe80::1%eth0]:7')
    const several = one(`127.0.0.2,[::1],127.0.0.1,[0::1]:echo ${rest}`)
    assert.equal(several.key, 'tcp 127.0.0.2:7, tcp [::1]:7, tcp 127.0.0.1:7')
    assert.deepEqual(familiesOf(several), [4, 6, 4])
    assert.equal(one('127.0.0.1,[::1]:echo stream tcp6 nowait root internal').key, 'tcp [::1]:7')
  })

  test('alone on a line are the default of the lines after it', () => {
    const text = `echo ${rest}
127.0.0.1,[::1]:
discard ${rest}
*:daytime ${rest}
192.0.2.1:\t
time ${rest}
[::1]:chargen ${rest}
*:
tcpmux ${rest}`
    assert.deepEqual(keys(text), [
      'tcp 0.0.0.0:7, tcp [::]:7',
      'tcp 127.0.0.1:9, tcp [::1]:9',
      'tcp 0.0.0.0:13, tcp [::]:13',
      'tcp 192.0.2.1:37',
      'tcp [::1]:19',
      'tcp 0.0.0.0:1, tcp [::]:1',
    ])
  })

  test('that are a bad default do not let the lines after it listen elsewhere', () => {
    for (const bad of ['localhost:', '127.0.0.1, 127.0.0.2:', '127.0.0.1\0:', `${'x'.repeat(9000)}:`]) {
      const { entries, problems } = parse(
        `127.0.0.1:\n${bad}\necho ${rest}\n[::1]:echo ${rest}\n/run/x stream unix nowait root /bin/cat\n*:\ndiscard ${rest}`,
      )
      assert.deepEqual(
        entries.map(({ key }) => key),
        ['tcp [::1]:7', 'unix /run/x', 'tcp 0.0.0.0:9, tcp [::]:9'],
        bad,
      )
      assert.equal(problems[0]!.line, 2)
      assert.deepEqual(
        problems.slice(1).map(({ message }) => message),
        ['inetd.conf:3: Cannot parse address "": expected one here, as the default of line 2 is bad'],
      )
    }
  })

  test('of a line for tcp are left to the line for tcp6, wherever it stands, as in the files of the BSDs', () => {
    const tcp6 = rest.replace('tcp', 'tcp6')
    assert.deepEqual(keys(`echo ${rest}\necho ${tcp6}`), ['tcp 0.0.0.0:7', 'tcp [::]:7'])
    assert.deepEqual(keys(`echo ${tcp6}\necho ${rest}`), ['tcp [::]:7', 'tcp 0.0.0.0:7'])
    assert.deepEqual(keys(`[::1]:echo ${tcp6}\n127.0.0.1,[::1]:echo ${rest}`), [
      'tcp [::1]:7',
      'tcp 127.0.0.1:7',
    ])
    assert.deepEqual(familiesOf(entriesOf(`echo ${rest}\necho ${tcp6}`)[0]!), [4])
    // The addresses differ: nothing is taken away.
    assert.deepEqual(keys(`echo ${rest}\n[::1]:echo ${tcp6}`), ['tcp 0.0.0.0:7, tcp [::]:7', 'tcp [::1]:7'])
    assert.deepEqual(keys(`echo ${rest}\ndiscard ${tcp6}`), ['tcp 0.0.0.0:7, tcp [::]:7', 'tcp [::]:9'])
    assert.deepEqual(keys(`echo ${rest}\necho dgram udp6 wait root internal`), [
      'tcp 0.0.0.0:7, tcp [::]:7',
      'udp [::]:7',
    ])
  })
})

test('of two lines for the same socket the last is used, and the message says so', () => {
  // biome-ignore format: a table
  const table: [first: string, second: string, what: string, left?: string][] = [
    ['echo stream tcp nowait root internal', 'echo stream tcp nowait root /bin/cat', 'service "echo": expected another socket (tcp 0.0.0.0:7'],
    ['echo stream tcp nowait root internal', '7 stream tcp4 nowait root /bin/cat', 'service "echo": expected another socket (tcp 0.0.0.0:7', 'tcp [::]:7'],
    ['echo stream tcp46 nowait root internal', 'echo stream tcp6 nowait root internal', 'service "echo": expected another socket (tcp [::]:7', 'tcp 0.0.0.0:7'],
    ['[::]:echo stream tcp6 nowait root internal', '[::]:echo stream tcp nowait root internal', 'service "echo": expected another socket (tcp [::]:7'],
    ['discard dgram udp wait root internal', 'sink dgram udp wait root /bin/cat', 'service "discard": expected another socket (udp 0.0.0.0:9'],
    ['[::1]:echo stream tcp nowait root internal', '127.0.0.1,[0::1]:echo stream tcp nowait root internal', 'service "echo": expected another socket (tcp [::1]:7'],
    ['/run/x stream unix nowait root /bin/cat', '/run/x stream unix wait root /bin/cat', 'service "/run/x": expected another socket (unix /run/x'],
    ['tcpmux/x stream tcp nowait root /bin/cat', 'tcpmux/+X stream tcp nowait root /bin/cat', 'service "tcpmux/x": expected another socket (tcpmux x'],
  ]
  for (const [first, second, what, left] of table) {
    const { entries, problems } = parse(`#\n${first}\n#\n${second}\ntime stream tcp nowait root internal`)
    assert.deepEqual(
      problems.map(({ message }) => message),
      [`inetd.conf:2: Cannot parse ${what}: line 4 is used)`],
    )
    assert.deepEqual(
      entries.map(({ line }) => line),
      left ? [2, 4, 5] : [4, 5],
    )
    if (left) assert.equal(entries[0]!.key, left)
  }
})

test('no entry after an IPsec policy is accepted until "#@" ends it', () => {
  for (const policy of [
    '#@ in ipsec esp/transport//require',
    '#@out ipsec ah/transport//require',
    '#@ ipsec esp/transport//require',
    '#@\tbypass',
    '#@(#)inetd.conf 8.1',
  ]) {
    const text = `${policy}
echo stream tcp nowait root internal
#@
discard stream tcp nowait root internal
#@ \t
time stream tcp nowait root internal`
    assert.deepEqual(messages(text), [
      `inetd.conf:1: Cannot parse line "${policy.replace('\t', ' ')}": expected no IPsec policy (not supported)`,
      'inetd.conf:2: Cannot parse line "echo stream tcp nowait root internal": expected no IPsec policy in force, as that of line 1 is',
    ])
    assert.deepEqual(
      parse(text).entries.map(({ service }) => service),
      ['discard', 'time'],
    )
  }
})

test('an indented line that looks like an entry of its own is a warning', () => {
  const text = `7 stream tcp nowait root /bin/cat cat
  8 stream tcp nowait root /bin/cat cat
# Ends the entry.
  9 stream tcp nowait root /bin/cat cat
13 stream tcp nowait root
  /bin/sh -c stream
`
  assert.deepEqual(parse(text).warnings, [
    { line: 2, message: 'inetd.conf:2: This line continues the entry of line 1, as it is indented' },
  ])
  assert.deepEqual(messages(text), [])
})

describe('a file', () => {
  const shown = (text: string) => entriesOf(text).map(entry => `${entry.line}: ${inWords(entry)}`)

  test('without entries is empty', () => {
    for (const text of ['', '\n', '\r\n', '  \t\n\n', '#', '# a\n  # b\n#@\n', '*:', '127.0.0.1:\n'])
      assert.deepEqual(parse(text), { entries: [], problems: [], warnings: [] }, JSON.stringify(text))
  })

  test('of Debian is understood', () => {
    const text = `# /etc/inetd.conf:  see inetd(8) for further informations.
#
# <service_name> <sock_type> <proto> <flags> <user> <server_path> <args>
#
#:INTERNAL: Internal services
echo		stream	tcp	nowait	root	internal
echo		dgram	udp	wait	root	internal
#<off># chargen	stream	tcp	nowait	root	internal
daytime		stream	tcp	nowait	root	internal

#:STANDARD: These are standard services.
telnet		stream	tcp	nowait	root	/usr/sbin/tcpd	/usr/sbin/in.telnetd

#:BOOT: TFTP service is provided primarily for booting.
tftp		dgram	udp4	wait	nobody	/usr/sbin/tcpd	/usr/sbin/in.tftpd --tftpd-timeout 300 /srv/tftp
`
    assert.deepEqual(shown(text), [
      '6: TCP port 7 on every address: echo, answered inside inetd without a program',
      '7: UDP port 7 on every address: echo, answered inside inetd without a program',
      '9: TCP port 13 on every address: daytime, answered inside inetd without a program',
      '12: TCP port 23 on every address: a new /usr/sbin/tcpd for each connection, as root, at most 256 a minute',
      '15: UDP port 69 on every IPv4 address: /usr/sbin/tcpd gets the socket while a datagram waits, one at a time, as nobody, at most 256 a minute',
    ])
    const { program } = ofKind('exec', entriesOf(text)[4]!)
    assert.deepEqual(program.argv, ['/usr/sbin/in.tftpd', '--tftpd-timeout', '300', '/srv/tftp'])
  })

  test('of OpenBSD or FreeBSD, with a line for each family, is understood', () => {
    const text = `#	$OpenBSD$
# define *both* IPv4 and IPv6 entries for dual-stack support.
finger		stream	tcp	nowait	_fingerd /usr/libexec/fingerd	fingerd -lsm
finger		stream	tcp6	nowait	_fingerd /usr/libexec/fingerd	fingerd -lsm
127.0.0.1:comsat dgram	udp	wait	root	/usr/libexec/comsat	comsat
[::1]:comsat	dgram	udp6	wait	tty:tty	/usr/libexec/comsat	comsat
daytime		stream	tcp	nowait	root	internal
daytime		stream	tcp6	nowait	root	internal
#rstatd/1-3	dgram	rpc/udp	wait	root	/usr/libexec/rpc.rstatd	rpc.rstatd
`
    assert.deepEqual(shown(text), [
      '3: TCP port 79 on every IPv4 address: a new /usr/libexec/fingerd for each connection, as _fingerd, at most 256 a minute',
      '4: TCP port 79 on every IPv6 address: a new /usr/libexec/fingerd for each connection, as _fingerd, at most 256 a minute',
      '5: UDP port 512 on 127.0.0.1: /usr/libexec/comsat gets the socket while a datagram waits, one at a time, as root, at most 256 a minute',
      '6: UDP port 512 on ::1: /usr/libexec/comsat gets the socket while a datagram waits, one at a time, as tty:tty, at most 256 a minute',
      '7: TCP port 13 on every IPv4 address: daytime, answered inside inetd without a program',
      '8: TCP port 13 on every IPv6 address: daytime, answered inside inetd without a program',
    ])
  })

  test('of NetBSD, with "." and ":", quotes and continuation lines, is understood', () => {
    const text = `ident	stream	tcp	wait	nobody.kmem /usr/libexec/identd	identd -w -t60
127.0.0.1:
ftp		stream	tcp
		nowait:10
		root:wheel
		/usr/libexec/ftpd
		ftpd -l 'a b'
`
    assert.deepEqual(shown(text), [
      '1: TCP port 113 on every address: /usr/libexec/identd gets the listening socket and accepts by itself, one at a time, as nobody:kmem, at most 256 a minute',
      '3: TCP port 21 on 127.0.0.1: a new /usr/libexec/ftpd for each connection, as root:wheel, at most 10 a minute',
    ])
  })

  test("of GNU's manual, aligned with spaces and with tcpmux, is understood", () => {
    const text = `ftp           stream  tcp   nowait root  /usr/libexec/ftpd       ftpd -l
ntalk         dgram   udp   wait   root  /usr/libexec/ntalkd     ntalkd
tcpmux        stream  tcp   nowait root  internal
tcpmux/+date  stream  tcp   nowait guest /bin/date               date
tcpmux/phonebook stream tcp nowait guest /usr/local/bin/phonebook phonebook
`
    assert.deepEqual(shown(text), [
      '1: TCP port 21 on every address: a new /usr/libexec/ftpd for each connection, as root, at most 256 a minute',
      '2: UDP port 518 on every address: /usr/libexec/ntalkd gets the socket while a datagram waits, one at a time, as root, at most 256 a minute',
      '3: TCP port 1 on every address: tcpmux, answered inside inetd without a program',
      '4: tcpmux service date: a new /bin/date for each connection, after a "+" from inetd, as guest',
      '5: tcpmux service phonebook: a new /usr/local/bin/phonebook for each connection, as guest',
    ])
  })

  test('may have the line ends of Windows, or none after the last line', () => {
    const text =
      'echo stream tcp\r\n\tnowait root internal\r\n\r\n# x\r\n7009 stream tcp nowait nobody /bin/cat'
    assert.deepEqual(entriesOf(text), entriesOf(text.replaceAll('\r', '')))
    assert.deepEqual(keys(text), ['tcp 0.0.0.0:7, tcp [::]:7', 'tcp 0.0.0.0:7009, tcp [::]:7009'])
  })

  test('may have white space before an entry if there is no entry to continue', () =>
    assert.deepEqual(
      entriesOf(
        '  echo stream tcp nowait root internal\n\n\tdiscard stream tcp nowait root internal\n # c\n time stream tcp nowait root internal',
      ).map(({ line }) => line),
      [1, 3, 5],
    ))

  test('of 500 entries is read', () => {
    const lines = Array.from(
      { length: 500 },
      (_, i) => `127.0.0.1:${7000 + i} stream tcp nowait nobody /bin/cat cat -u`,
    )
    const entries = entriesOf(lines.join('\n'))
    assert.equal(entries.length, 500)
    assert.deepEqual([entries[499]!.key, entries[499]!.line], ['tcp 127.0.0.1:7499', 500])
  })
})

describe('services', () => {
  test('have names, aliases and comments, for each protocol', () => {
    assert.deepEqual(
      [lookUp('echo', 'tcp'), lookUp('echo', 'udp'), lookUp('null', 'udp'), lookUp('source', 'tcp')],
      [7, 7, 9, 19],
    )
    for (const name of ['Echo', 'TCP', 'multiplexer', '', '#', 'toString', '7'])
      assert.equal(lookUp(name, 'tcp'), undefined, name)
    assert.deepEqual([lookUp('tftp', 'tcp'), lookUp('ftp', 'udp')], [undefined, undefined])
  })

  test('of another form are ignored, and the first line with a name decides', () => {
    const find = parseServices(
      'a 1/tcp x # y\r\n b 2/tcp\nb 3/tcp\nx 4/tcp\nc\nd 5\ne 6/sctp\nf 0/tcp\ng 65536/tcp\nh /tcp\ni 7/tcp#z\n#j 8/tcp\nk -9/tcp\nl 65535/udp m',
    )
    const found = [...'abcdefghijklmxyz'].map(name => find(name, 'tcp') ?? find(name, 'udp') ?? 0)
    assert.deepEqual(found, [1, 2, 0, 0, 0, 0, 0, 0, 7, 0, 0, 65535, 65535, 1, 0, 0])
  })
})

test('no text makes the parser throw, and its messages are well-formed', () => {
  let seed = 1
  const below = (limit: number) => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((seed / 2 ** 32) * limit)
  }
  const pick = <T>(list: readonly T[]): T => list[below(list.length)]!
  const many = (limit: number, make: () => string) => Array.from({ length: below(limit) }, make).join('')
  const lines = malformed.map(([line]) => line).filter(line => line.length < 200)
  const good = [
    'echo stream tcp nowait root internal',
    '[::1]:',
    '*:',
    'sink dgram udp4 wait.9 a:b /bin/cat "a b"',
  ]
  const pieces = [
    ...lines.flatMap(line => line.split(' ')),
    ...[
      ' ',
      ' ',
      ' ',
      '\t',
      '\n',
      '\n ',
      '\r\n',
      '#',
      '#@',
      ':',
      '*:',
      ',',
      "'",
      '"',
      '\\',
      '\0',
      '😀',
      '\ud800',
      '\u2028',
    ],
  ]
  const bytes = () => Buffer.from(Array.from({ length: below(200) }, () => below(256)))
  const mutated = () => {
    let text = [lines, good, good].map(pick).join('\n')
    for (let i = below(6); i >= 0; i--) {
      const at = below(text.length)
      text = text.slice(0, at) + pick(pieces) + text.slice(at + below(3))
    }
    return text
  }
  const makers = [
    mutated,
    mutated,
    () => many(30, () => `${pick(pieces)}${pick([' ', ' ', '\t', '\n', ''])}`),
    () => many(80, () => String.fromCharCode(below(128))),
    () => bytes().toString('latin1'),
    () => bytes().toString(),
  ]
  let entries = 0
  for (let round = 0; round < 20_000; round++) {
    const text = pick(makers)()
    const result = parse(text)
    const physical = text.split('\n').length
    const where = JSON.stringify(text)
    for (const { line, field, message } of result.problems) {
      assert.ok(line >= 1 && line <= physical, where)
      assert.ok(message.startsWith(`inetd.conf:${line}: Cannot parse ${field} "`), message)
      assert.match(message, /": expected [^\p{Cc}]+$/u)
    }
    for (const entry of result.entries) {
      assert.ok(entry.line >= 1 && entry.line <= physical, where)
      assert.ok(inWords(entry).length > 20 && sameEntry(entry, entry), where)
    }
    assert.equal(new Set(result.entries.map(({ key }) => key)).size, result.entries.length, where)
    entries += result.entries.length
  }
  assert.ok(entries > 500, `only ${entries} entries came of it`)
})
