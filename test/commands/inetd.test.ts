import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { userInfo } from 'node:os'
import { join } from 'node:path'
import { describe, type TestContext } from 'node:test'
import {
  childrenOf,
  client,
  descriptorsOf,
  folder,
  inodeOf,
  manyConnections,
  manyPorts,
  member,
  noMember,
  program,
  refusal,
  root,
  stateOf,
  superserver,
  talk,
  test,
  told,
} from '../inetd/client.ts'
import { freePorts } from '../support/ports.ts'
import { cli, has, run, start } from '../support/process.ts'
import { udpClient } from '../support/udp.ts'
import { until } from '../support/until.ts'

const me = userInfo().username
const local = (port: number, host = '127.0.0.1') => (host === '::1' ? `[::1]:${port}` : `${host}:${port}`)
const cat = (port: number, host?: string, wait = 'nowait') =>
  `${local(port, host)} stream tcp ${wait} ${me} /bin/cat cat\n`
const errors = (server: { readonly lines: readonly { level: string; msg: string }[] }) =>
  server.lines.filter(({ level }) => level === 'error').map(({ msg }) => msg)

function confFile(t: TestContext, text: string): string {
  const file = join(folder(t), 'inetd.conf')
  writeFileSync(file, text)
  return file
}

const bad = (a: number, b: number, c: number) => `${cat(a)}
no such thing
127.0.0.1:${b} stream sctp nowait ${me} /bin/cat cat
127.0.0.1:${b} stream tcp nowait nobody-at-all /bin/cat cat
127.0.0.1:${a} stream tcp nowait ${me} /bin/echo echo
127.0.0.1:${c} stream tcp nowait ${me} /bin/echo echo hello
`
const problems = (file: string, a: number) => [
  `${file}:1: Cannot parse service "${a}": expected another socket (tcp 127.0.0.1:${a}: line 6 is used)`,
  `${file}:3: Cannot parse line "no such thing": expected service, socket type, protocol, wait/nowait, user and program`,
  `${file}:4: Cannot parse protocol "sctp": expected one of tcp, udp, tcp4, tcp6, udp4, udp6, tcp46, udp46, unix`,
  `${file}:5: Cannot run`,
]

const asNobody = { uid: 65534, gid: 65534 }
const nobodyCan = root && spawnSync(process.execPath, [cli, '--version'], asNobody).status === 0

const rssMib = (pid: number) =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024

test('descriptors that inetd inherited do not reach programs', async t => {
  const who = member(t)
  const users = [me, ...(root ? ['daemon'] : []), ...(root && who ? [who.name] : [])]
  const [mux, ...direct] = await freePorts(1 + users.length)
  const tell = program(t, 'tell')
  const conf = [
    `127.0.0.1:${mux} stream tcp nowait ${me} internal tcpmux`,
    `tcpmux/tell stream tcp nowait ${me} ${tell} tell`,
    ...users.map((user, i) => `127.0.0.1:${direct[i]} stream tcp nowait ${user} ${tell} tell`),
  ]
  // Node itself hides the first 16 descriptors, and not every sh can open others than 0 to 9.
  const open40 = 'open my $file, "<", "/etc/hostname"; dup2(fileno $file, 40); exec @ARGV'
  const shell = `exec perl -MPOSIX=dup2 -e '${open40}' "$0" "$@"`
  const server = await superserver(t, conf.join('\n'), [], {}, shell)
  assert.ok(descriptorsOf(server.pid).includes('/etc/hostname'), 'inetd has it')
  assert.equal(told(await talk(t, mux!, 'tell\r\n')).fds, '0 1 2', 'through tcpmux')
  for (const [i, user] of users.entries())
    assert.equal(told(await talk(t, direct[i]!, '')).fds, '0 1 2', `as ${user}`)
})

test(
  'programs run as the users and groups of the file, and one that does not exist is logged',
  async t => {
    const who = member(t)
    const [a, b, c, d] = await freePorts(4)
    const tell = program(t, 'tell')
    const line = (port: number, user: string) => `127.0.0.1:${port} stream tcp nowait ${user} ${tell} tell\n`
    const server = await superserver(
      t,
      line(a!, 'nobody') + line(b!, 'root:daemon') + line(c!, 'daemon.nogroup') + line(d!, 'nobody:no-group'),
    )
    const rows = (file: string) =>
      new Map(
        readFileSync(file, 'utf8')
          .split('\n')
          .map(row => [row.split(':')[0], row.split(':')]),
      )
    const uid = (name: string) => Number(rows('/etc/passwd').get(name)?.[2])
    const gid = (name: string) => Number(rows('/etc/group').get(name)?.[2])
    const ids = async (port: number) => {
      const [user, , , , group] = String(told(await talk(t, port, '')).ids).split(' ')
      return [Number(user), Number(group)]
    }
    assert.deepEqual(await ids(a!), [uid('nobody'), Number(rows('/etc/passwd').get('nobody')?.[3])])
    assert.deepEqual(await ids(b!), [0, gid('daemon')])
    assert.deepEqual(await ids(c!), [uid('daemon'), gid('nogroup')])
    assert.equal(errors(server).length, 1)
    assert.match(errors(server)[0]!, /there is no group "no-group" in \/etc\/group$/)
    if (!who) return t.diagnostic(noMember)
    await server.reload(line(a!, who.name))
    assert.equal(told(await talk(t, a!, '')).groups, who.groups)
  },
  root ? false : 'only root can start programs as somebody else',
)

// Most of the time is spent waiting for processes, so these run side by side.
describe('roundelay inetd', { concurrency: 2 }, () => {
  test('a missing file is one line on stderr and exit code 2', async () => {
    for (const args of [[], ['--verify']]) {
      const { code, stderr, stdout } = await run(['inetd', '/nonexistent/inetd.conf', ...args])
      assert.equal(code, 2)
      assert.equal(
        stderr,
        "roundelay: Cannot read the configuration: ENOENT: no such file or directory, open '/nonexistent/inetd.conf'\n",
      )
      assert.equal(stdout, '')
    }
  })

  test('--verify describes each line in words, opens nothing, and exits with 0', async t => {
    const [a, b] = await freePorts(2)
    const file = confFile(
      t,
      `# Comment.
${cat(a!)}
127.0.0.1:${b} dgram udp wait ${me} /bin/true true
127.0.0.1:${b} stream tcp nowait ${me} internal echo
`,
    )
    const { code, stdout, stderr } = await run(['inetd', '--verify', file])
    assert.deepEqual([code, stderr], [0, ''])
    assert.equal(
      stdout,
      `${file}:2: TCP port ${a} on 127.0.0.1: a new /bin/cat for each connection, as ${me}, at most 256 a minute
${file}:4: UDP port ${b} on 127.0.0.1: /bin/true gets the socket while a datagram waits, one at a time, as ${me}, at most 256 a minute
${file}:5: TCP port ${b} on 127.0.0.1: echo, answered inside inetd without a program
`,
    )
  })

  test('--verify names every bad line, and exits with 1', async t => {
    const [a, b, c] = await freePorts(3)
    const file = confFile(t, bad(a!, b!, c!))
    const { code, stdout, stderr } = await run(['inetd', '--verify', file])
    assert.deepEqual([code, stderr], [1, ''])
    const lines = stdout.split('\n').filter(Boolean)
    assert.equal(lines.length, 6)
    for (const [i, start] of problems(file, a!).entries())
      assert.ok(lines[i]!.startsWith(start), `${lines[i]}\n${start}`)
    assert.match(lines[4]!, /^.*:6: TCP port .* a new \/bin\/echo/)
  })

  test('bad lines are logged, and the others work', async t => {
    const [a, b, c] = await freePorts(3)
    const server = await superserver(t, bad(a!, b!, c!))
    assert.equal(await talk(t, a!, ''), '\n', 'of two lines for a socket the last is used')
    assert.equal(await talk(t, c!, ''), 'hello\n')
    const said = errors(server)
    assert.equal(said.length, 4)
    for (const [i, start] of problems(server.file, a!).entries())
      assert.ok(said[i]!.startsWith(start), said[i]!)
  })

  test('five SIGHUPs, each of which moves a service, do not disturb connections to an unchanged one', async t => {
    const [steady, ...moves] = await freePorts(7)
    const conf = (move: number) =>
      cat(steady!, '127.0.0.1', 'nowait.0') +
      cat(steady!, '::1', 'nowait.0') +
      cat(move, '127.0.0.1') +
      cat(move, '::1')
    const server = await superserver(t, conf(moves[0]!))
    const stop = new AbortController()
    const failures: unknown[] = []
    let done = 0
    const loop = async (host: string) => {
      while (!stop.signal.aborted) {
        const got = await talk(t, steady!, `${done}`, { host }).catch(error => error)
        if (!/^\d+$/.test(String(got))) failures.push(got)
        done++
      }
    }
    const loops = [loop('127.0.0.1'), loop('::1'), loop('127.0.0.1'), loop('::1')]
    for (const [i, port] of moves.slice(1).entries()) {
      const before = done
      await server.reload(conf(port))
      for (const host of ['127.0.0.1', '::1']) {
        assert.equal(await talk(t, port, 'moved', { host }), 'moved')
        assert.equal(await refusal(moves[i]!, host), 'ECONNREFUSED')
      }
      await until('ten more requests are done', () => done > before + 10)
    }
    stop.abort()
    await Promise.all(loops)
    t.diagnostic(`${done} connections`)
    assert.deepEqual(failures, [])
    assert.deepEqual(errors(server), [])
    assert.equal((await server.state())[`${steady}/tcp`]!.refused, 0)
  })

  test('after five SIGHUPs at once the file that was written last is in force', async t => {
    const all = await freePorts(6)
    const server = await superserver(t, cat(all[0]!))
    for (const port of all.slice(1)) {
      writeFileSync(server.file, cat(port))
      process.kill(server.pid, 'SIGHUP')
    }
    await until('the port is bound', () => inodeOf(all[5]!) !== undefined)
    assert.equal(await talk(t, all[5]!, 'last'), 'last')
    for (const port of all.slice(0, 5)) assert.equal(await refusal(port), 'ECONNREFUSED')
  })

  test('a file that cannot be read at SIGHUP changes nothing', async t => {
    const [port] = await freePorts(1)
    const server = await superserver(t, cat(port!))
    const inode = inodeOf(port!)
    const socket = await client(t, port!)
    socket.write('before')
    await once(socket, 'data')
    await server.reload(undefined)
    assert.deepEqual(errors(server), ['cannot read the configuration: everything stays as it is'])
    assert.equal(inodeOf(port!), inode)
    assert.equal(await talk(t, port!, 'x'), 'x')
    socket.end(' and after')
    assert.equal(await socket.all, 'before and after')
    await server.reload('')
    assert.equal(await refusal(port!), 'ECONNREFUSED')
  })

  test('several files are one configuration, in which the last line for a socket is used', async t => {
    const [a, b] = await freePorts(2)
    const files = [confFile(t, cat(a!)), confFile(t, cat(b!) + cat(a!))]
    const { code, stdout } = await run(['inetd', '--verify', ...files])
    assert.equal(code, 1)
    const socket = `tcp 127.0.0.1:${a}`
    assert.deepEqual(stdout.split('\n').slice(0, 2), [
      `${files[0]}:1: Cannot run ${a}: ${files[1]}:2 is used for the socket ${socket}`,
      `${files[1]}:1: TCP port ${b} on 127.0.0.1: a new /bin/cat for each connection, as ${me}, at most 256 a minute`,
    ])
  })

  test('an indented line that looks like an entry is a warning of --verify and in the log', async t => {
    const [a, b] = await freePorts(2)
    const text = `${cat(a!)}  ${cat(b!)}`
    const { code, stdout } = await run(['inetd', '--verify', confFile(t, text)])
    assert.equal(code, 0)
    assert.match(stdout, /:2: This line continues the entry of line 1, as it is indented$/m)
    const server = await superserver(t, text)
    const warning = server.lines.find(({ level }) => level === 'warn')
    assert.match(warning?.msg ?? '', /:2: This line continues the entry of line 1, as it is indented$/)
    assert.equal(await refusal(b!), 'ECONNREFUSED')
  })

  test('a file with 500 entries is read, and read again', async t => {
    const { host, all } = manyPorts(500)
    const server = await superserver(t, all.map(port => cat(port, host)).join(''))
    const ready = await server.line('configuration read')
    assert.deepEqual([ready.services, ready.bad], [500, 0])
    const inode = inodeOf(all[499]!, 'tcp', host)
    assert.ok(inode)
    await server.reload(`\n${all.map(port => cat(port, host)).join('')}`)
    assert.equal(inodeOf(all[499]!, 'tcp', host), inode)
    assert.equal(await talk(t, all[499]!, 'x', { host }), 'x')
    assert.equal(Object.keys(await server.state()).length, 500)
  })

  test('a hundred connections leave no zombie and no descriptor', t => manyConnections(t, 100))

  test('SIGTERM closes the listeners and lets programs finish; inetd ends with the last one', async t => {
    const [port] = await freePorts(1)
    const server = await superserver(t, cat(port!), ['--drain', '30s'])
    const socket = await client(t, port!)
    socket.write('before')
    await once(socket, 'data')
    process.kill(server.pid, 'SIGTERM')
    await until('the port is free', () => inodeOf(port!) === undefined)
    assert.equal(await refusal(port!), 'ECONNREFUSED')
    socket.end(' and after')
    assert.equal(await socket.all, 'before and after')
    assert.deepEqual(await server.ended, { code: 0, signal: null })
  })

  test('programs that still run after --drain are ended, and inetd ends', async t => {
    const [port] = await freePorts(1)
    const server = await superserver(t, cat(port!), ['--drain', '300ms'])
    const socket = await client(t, port!)
    socket.write('x')
    await once(socket, 'data')
    const { pid } = childrenOf(server.pid)[0]!
    process.kill(server.pid, 'SIGTERM')
    assert.deepEqual(await server.ended, { code: 0, signal: null })
    assert.equal(await socket.all, 'x')
    await until('the process has ended', () => stateOf(pid) === undefined)
  })

  test('the admin server has probes, a row for each service, and metrics', async t => {
    const [port, off] = await freePorts(2)
    const failing = `127.0.0.1:${off} stream tcp nowait.1 ${me} /bin/false false\n`
    const server = await superserver(t, cat(port!) + failing)
    const socket = await client(t, port!)
    socket.write('x')
    await once(socket, 'data')
    await talk(t, off!, '')
    await talk(t, off!, '')
    const url = `http://127.0.0.1:${server.admin}`
    await until('there is one child', () => childrenOf(server.pid).length === 1)
    assert.equal((await fetch(`${url}/livez`)).status, 200)
    assert.deepEqual(await (await fetch(`${url}/readyz`)).json(), { status: 'ok', connections: 1 })
    const sockets = (port: number) => `tcp 127.0.0.1:${port}`
    const row = { started: 1, running: 0, refused: 0, failed: 0 }
    assert.deepEqual(await (await fetch(`${url}/state`)).json(), {
      files: [server.file],
      services: [
        { ...row, service: `${port}/tcp`, sockets: sockets(port!), state: 'listening', running: 1 },
        { ...row, service: `${off}/tcp`, sockets: sockets(off!), state: 'off', refused: 1, failed: 1 },
      ],
    })
    const metrics = await (await fetch(`${url}/metrics`)).text()
    for (const [name, service, value] of [
      ['started_total', port, 1],
      ['running', port, 1],
      ['failed_total', off, 1],
      ['refused_total', off, 1],
      ['service_up', port, 1],
      ['service_up', off, 0],
    ])
      assert.ok(
        metrics.includes(
          `roundelay_inetd_${name}{service="${service}/tcp",sockets="tcp 127.0.0.1:${service}"} ${value}\n`,
        ),
        `${name}`,
      )
    socket.end()
  })

  test('at --max-children 2 the third client waits, and is served when there is room', async t => {
    const [port] = await freePorts(1)
    const server = await superserver(t, cat(port!), ['--max-children', '2'])
    const [a, b, c] = [await client(t, port!), await client(t, port!), await client(t, port!)]
    for (const socket of [a, b, c]) socket.write('hello')
    await Promise.all([once(a, 'data'), once(b, 'data')])
    assert.equal(c.soFar(), '')
    assert.equal((await server.state())[`${port}/tcp`]!.running, 2)
    a.end()
    await once(c, 'data')
    assert.equal(c.soFar(), 'hello')
    assert.equal((await server.state())[`${port}/tcp`]!.refused, 0)
    b.end()
    c.end()
  })

  test('connections over --max-per-ip and --rate-per-ip are closed', async t => {
    const [port] = await freePorts(1)
    await superserver(t, cat(port!), ['--max-per-ip', '1', '--rate-per-ip', '2'])
    const a = await client(t, port!)
    a.write('a')
    await once(a, 'data')
    assert.equal(await (await client(t, port!)).all, '')
    a.end()
    assert.equal(await talk(t, port!, 'x', { localAddress: '127.0.0.3' }), 'x')
    let second = ''
    // The first program ends some time after its client.
    for (let i = 0; i < 100 && second === ''; i++) second = await talk(t, port!, 'b')
    assert.equal(second, 'b')
    assert.equal(await (await client(t, port!)).all, '')
  })

  test('echo --stdio serves behind inetd in all three modes', async t => {
    const [nowait, wait, datagrams] = await freePorts(3)
    const echo = `${me} "${process.execPath}" node "${cli}" echo --stdio --idle-timeout 1s`
    const server = await superserver(
      t,
      `127.0.0.1:${nowait} stream tcp nowait ${echo}
127.0.0.1:${wait} stream tcp wait ${echo}
127.0.0.1:${datagrams} dgram udp wait ${echo}
`,
    )
    const peer = await udpClient(t)
    const [one, two, three] = await Promise.all([
      talk(t, nowait!, 'connection'),
      talk(t, wait!, 'listener'),
      peer.ask('datagram', datagrams!),
    ])
    assert.deepEqual([one, two, String(three)], ['connection', 'listener', 'datagram'])
    assert.equal(await talk(t, wait!, 'again'), 'again')
    assert.equal(String(await peer.ask('again', datagrams!)), 'again')
    await until('no child is left', () => childrenOf(server.pid).length === 0)
    assert.equal(await talk(t, wait!, 'from another'), 'from another')
    const states = Object.values(await server.state()).map(({ failed }) => failed)
    assert.deepEqual(states, [0, 0, 0])
  })

  test('a shell behind inetd sees its descriptors, user and environment', async t => {
    const [port] = await freePorts(1)
    const server = await superserver(
      t,
      `127.0.0.1:${port} stream tcp nowait ${me} /bin/sh sh -c "ls -l /proc/self/fd; id; env"`,
    )
    const text = await talk(t, port!, '')
    // ls itself opens one more.
    const fds = [...text.matchAll(/ (\d+) -> (\S+)/g)].map(([, fd, what]) => [fd, what!.replace(/\d+/g, 'N')])
    assert.deepEqual(fds.slice(0, 3), [
      ['0', 'socket:[N]'],
      ['1', 'socket:[N]'],
      ['2', 'socket:[N]'],
    ])
    assert.deepEqual(fds.slice(3), [['3', '/proc/N/fd']])
    assert.match(text, new RegExp(`uid=${userInfo().uid}\\(`))
    for (const variable of [
      'PROTO=TCP',
      'TCPLOCALIP=127.0.0.1',
      `TCPLOCALPORT=${port}`,
      'TCPREMOTEIP=127.0.0.1',
    ])
      assert.ok(text.includes(`\n${variable}\n`), variable)
    assert.match(text, /^TCPREMOTEPORT=\d+$/m)
    assert.deepEqual(errors(server), [])
  })

  test(
    'an ordinary user can run programs as themselves, and entries for other users are refused',
    async t => {
      const [a, b] = await freePorts(2)
      const conf = (user: string, port: number) =>
        `127.0.0.1:${port} stream tcp nowait ${user} /bin/cat cat\n`
      const file = confFile(
        t,
        `${conf('nobody', a!)}${conf('daemon', b!)}127.0.0.1:${b} dgram udp wait root internal echo\n`,
      )
      chmodSync(file, 0o644)
      const child = spawn(process.execPath, [cli, 'inetd', file, '--admin', '127.0.0.1:0'], {
        ...asNobody,
        stdio: ['ignore', 'pipe', 'inherit'],
      })
      let log = ''
      child.stdout.on('data', data => {
        log += data
      })
      const ended = once(child, 'close')
      t.after(async () => {
        child.kill('SIGKILL')
        await ended
      })
      const ready = new Promise<void>(resolve =>
        child.stdout.on('data', () => log.includes('inetd ready') && resolve()),
      )
      await Promise.race([ready, ended])
      assert.match(log, /Cannot run \d+: only root may start programs as daemon, and this is nobody"/)
      assert.equal(await talk(t, a!, 'x'), 'x')
      assert.equal(String(await (await udpClient(t)).ask('internal', b!)), 'internal')
      assert.equal(await refusal(b!), 'ECONNREFUSED')
    },
    nobodyCan ? false : 'needs root, and a checkout that the user nobody may read',
  )

  test('clients of chargen that never read do not use memory or delay others', async t => {
    const [port, echo] = await freePorts(2)
    const server = await superserver(
      t,
      `127.0.0.1:${port} stream tcp nowait ${me} internal chargen
127.0.0.1:${echo} stream tcp nowait ${me} internal echo
`,
    )
    const before = rssMib(server.pid)
    const deaf = await Promise.all(Array.from({ length: 20 }, () => client(t, port!)))
    for (const socket of deaf) socket.pause()
    for (let i = 0; i < 100; i++) assert.equal(await talk(t, echo!, `${i}`), `${i}`)
    const after = rssMib(server.pid)
    t.diagnostic(`from ${before.toFixed()} to ${after.toFixed()} MiB`)
    assert.ok(after - before < 64)
    for (const socket of deaf) socket.destroy()
  })

  test('SIGHUP during the start takes effect after it, and inetd is not ready before', async t => {
    const [admin] = await freePorts(1)
    const { host, all } = manyPorts(800)
    const own = all.slice(500)
    const file = confFile(t, own.map(port => cat(port, host)).join(''))
    const server = start(t, ['inetd', file, '--admin', local(admin!)])
    const seen = new Set<number>()
    for (let hups = 0; hups < 3; ) {
      const response = await fetch(`http://${local(admin!)}/readyz`).catch(() => undefined)
      if (!response) continue
      seen.add(response.status)
      process.kill(server.pid, 'SIGHUP')
      hups++
    }
    await server.line('inetd ready')
    await until(
      'the configuration was read four times',
      () => server.lines.filter(({ msg }) => msg === 'configuration read').length === 4,
    )
    assert.ok([...seen].every(status => status === 503 || status === 200))
    assert.equal((await fetch(`http://${local(admin!)}/readyz`)).status, 200)
    assert.equal(await talk(t, own[299]!, 'served', { host }), 'served')
  })

  test('SIGHUP while programs finish does not open sockets again', async t => {
    const [port] = await freePorts(1)
    const server = await superserver(t, cat(port!), ['--drain', '20s'])
    const socket = await client(t, port!)
    socket.write('x')
    await once(socket, 'data')
    process.kill(server.pid, 'SIGTERM')
    await server.line(line => line.msg.startsWith('closing'))
    await until('the port is free', () => inodeOf(port!) === undefined)
    process.kill(server.pid, 'SIGHUP')
    socket.write('y')
    await once(socket, 'data')
    assert.equal(await refusal(port!), 'ECONNREFUSED')
    socket.end()
    assert.equal((await server.ended).code, 0)
    assert.equal(server.lines.filter(({ msg }) => msg === 'configuration read').length, 1)
  })

  test('services share the limit of descriptors: clients wait, and none is refused', async t => {
    const [one, two, copy] = await freePorts(3)
    const internal = [one, two].map(port => `${local(port!)} stream tcp nowait ${me} internal echo\n`)
    await superserver(t, internal.join('') + cat(copy!), [], {}, 'ulimit -n 120')
    const sockets = []
    for (let i = 0; i < 120; i++) {
      const socket = await client(t, i % 2 ? one! : two!)
      socket.write('x')
      sockets.push(socket)
    }
    assert.equal(await talk(t, copy!, 'a program too'), 'a program too')
    // Each client ends when it has been served, and makes room for another.
    await Promise.all(
      sockets.map(async socket => {
        await until('the echo has come', () => socket.soFar() === 'x')
        socket.end()
      }),
    )
  })

  test(
    'on a machine without IPv6 "every address" means those of IPv4',
    async t => {
      const [one, two] = await freePorts(2)
      const library = join(folder(t), 'without-ipv6.so')
      // As on a kernel that was started without IPv6: socket(2).
      const source = `#define _GNU_SOURCE
      #include <dlfcn.h>
      #include <errno.h>
      #include <sys/socket.h>
      int socket(int domain, int type, int protocol) {
        if (domain == AF_INET6) { errno = EAFNOSUPPORT; return -1; }
        return ((int (*)(int, int, int))dlsym(RTLD_NEXT, "socket"))(domain, type, protocol);
      }`
      const { status, stderr } = spawnSync('cc', ['-shared', '-fPIC', '-o', library, '-xc', '-'], {
        input: source,
      })
      assert.equal(status, 0, String(stderr))
      const lines = [
        `${one} stream tcp nowait ${me} internal echo`,
        `${two} stream tcp nowait ${me} /bin/cat cat`,
      ]
      const server = await superserver(t, `${lines.join('\n')}\n`, [], { LD_PRELOAD: library })
      assert.deepEqual(errors(server), [])
      for (const port of [one, two]) assert.equal(await talk(t, port!, 'IPv4'), 'IPv4')
      assert.equal(await refusal(one!, '::1'), 'ECONNREFUSED')
    },
    !has('cc') && 'no cc',
  )
})
