/**
 * Runs our inetd and those of Debian with the same file, and one client script that records what each does.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, chmodSync, constants, lstatSync, rmSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import type { TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { childrenOf, client, folder, program, refusal, stateOf, talk, told } from '../inetd/client.ts'
import { freePorts } from '../support/ports.ts'
import { cli } from '../support/process.ts'
import { type UdpClient, udpClient } from '../support/udp.ts'
import { until } from '../support/until.ts'

export interface Kind {
  readonly name: string
  /** The program and its arguments before the configuration file. */
  readonly argv: readonly string[]
  /** How ::1 is written before a service: the one point in which the three files differ. */
  readonly v6: string
}

export const ours: Kind = {
  name: 'roundelay',
  argv: [process.execPath, cli, 'inetd', '--admin', '127.0.0.1:0', '--drain', '0s'],
  v6: '[::1]',
}

const KNOWN_PLACES = ['/usr/sbin/inetd', '/usr/sbin/inetutils-inetd', '/usr/sbin/openbsd-inetd']

/** The inetds of Debian that are installed, or those that ROUNDELAY_TEST_INETD lists. */
export function others(): readonly Kind[] {
  const places = process.env.ROUNDELAY_TEST_INETD?.split(':').filter(Boolean) ?? KNOWN_PLACES
  const here = places.filter(path => {
    try {
      accessSync(path, constants.X_OK)
      return true
    } catch {
      return false
    }
  })
  return here.map(path =>
    basename(path).startsWith('inetutils')
      ? { name: 'inetutils-inetd', argv: [path, '--debug', '--environment', '--pidfile'], v6: '::1' }
      : { name: 'openbsd-inetd', argv: [path, '-i'], v6: '[::1]' },
  )
}

/** The behaviour of an inetd, by name. */
export type Observed = Readonly<Record<string, string>>

const TIMEOUT = 'nothing'
/** For answers that may be slow. */
const PATIENCE_MS = 5000
/** For answers that must not come, where no event shows that they never will. */
const SHORT_MS = 500

/** Runs the script against one inetd, on addresses of its own. */
export async function observe(t: TestContext, kind: Kind, host: string): Promise<Observed> {
  const seen: Record<string, string> = {}
  const dir = folder(t)
  const file = join(dir, 'inetd.conf')
  const [
    catPort,
    acceptPort,
    datagramPort,
    loopPort,
    missingPort,
    moveFrom,
    moveTo,
    tellPort,
    badPort,
    deafPort,
  ] = await freePorts(10)
  const [userPort, orphanPort] = await freePorts(2)
  const unix = join(dir, 'unix.sock')
  const [tell, accept, recvfrom] = [program(t, 'tell'), program(t, 'accept'), program(t, 'recvfrom')]
  const conf = (moving: number) => `# The same for all.
${['echo', 'discard', 'chargen', 'daytime', 'time']
  .map(
    name => `${host}:${name} stream tcp nowait root internal\n${host}:${name} dgram udp wait root internal\n`,
  )
  .join('')}${['echo', 'discard', 'chargen', 'daytime', 'time']
  .map(name => `${kind.v6}:${name} dgram udp6 wait root internal\n`)
  .join('')}${kind.v6}:${catPort} stream tcp6 nowait root /bin/cat cat
${host}:tcpmux stream tcp nowait root internal
tcpmux/+hello stream tcp nowait root /bin/echo echo hello
tcpmux/copy stream tcp nowait root /bin/cat cat
${host}:${catPort} stream tcp nowait root /bin/cat cat
${host}:${acceptPort} stream tcp wait root ${accept} accept 2
${host}:${datagramPort} dgram udp wait root ${recvfrom} recvfrom 2
${host}:${loopPort} stream tcp nowait.3 root /bin/cat cat
${host}:${badPort} stream sctp-over-pigeons nowait root /bin/cat cat
${host}:${missingPort} stream tcp nowait root /nonexistent/program program
${host}:${deafPort} dgram udp wait.10 root /bin/true true
${host}:${moving} stream tcp nowait root /bin/cat cat
${host}:${tellPort} stream tcp nowait root ${tell} odd-name argument
${host}:${userPort} stream tcp nowait nobody ${tell} tell
${host}:${orphanPort} stream tcp nowait root /bin/cat cat
${unix} stream unix nowait nobody /bin/cat cat
`
  writeFileSync(file, conf(moveFrom!))
  chmodSync(file, 0o644)
  const [command, ...args] = kind.argv
  const child: ChildProcess = spawn(command!, [...args, file], {
    cwd: '/',
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  child.stdout?.on('data', data => {
    output += data
  })
  child.stderr?.on('data', data => {
    output += data
  })
  const pid = child.pid as number
  let over = false
  const ended = once(child, 'exit').then(([code, signal]) => {
    over = true
    return String(signal ?? code)
  })
  t.after(async () => {
    child.kill('SIGKILL')
    await ended
  })
  const listens = async (port: number) => (await refusal(port, host)) === undefined
  const eventually = async (holds: () => Promise<boolean>) => {
    const deadline = Date.now() + 10_000
    while (!(await holds())) {
      if (Date.now() > deadline) throw new Error(`${kind.name}: ${output}`)
      await sleep(10)
    }
  }
  await eventually(() => listens(orphanPort!))
  const say = (port: number | string, text: string) =>
    talk(t, port, text, typeof port === 'string' ? {} : { host })
  const attempt = async (name: string, what: () => Promise<string>, patienceMs = PATIENCE_MS) => {
    const timeout = new AbortController()
    const late = sleep(patienceMs, TIMEOUT, { signal: timeout.signal })
    late.catch(() => {})
    seen[name] = await Promise.race([what(), late]).catch(error => error.code ?? error.message)
    timeout.abort()
  }
  /** The answer to a datagram from a new socket, or TIMEOUT. */
  const answerTo = async (payload: string, port: number, patienceMs = PATIENCE_MS): Promise<Buffer> => {
    const socket = await udpClient(t, '::1')
    const { got } = socket
    socket.send(payload, port)
    for (const end = Date.now() + patienceMs; got.length === 0 && Date.now() < end; ) await sleep(2)
    return got[0] ?? Buffer.from(TIMEOUT)
  }
  const ask = async (port: number, text: string) => String(await answerTo(text, port))
  const internalServices = async () => {
    const DAYTIME = /^[A-Z][a-z]{2} [A-Z][a-z]{2} [ 123]\d \d\d:\d\d:\d\d \d{4}\r\n$/
    await attempt('echo/tcp', () => say(7, 'hello'))
    await attempt('echo/udp', () => ask(7, 'hello'))
    await attempt('echo/udp, an empty datagram', async () => JSON.stringify(await ask(7, '')))
    await attempt('discard/tcp', async () => JSON.stringify(await say(9, 'hello')))
    await attempt('discard/udp', async () => String(await answerTo('hello', 9, SHORT_MS)))
    await attempt('daytime/tcp', async () => String(DAYTIME.test(await say(13, ''))))
    await attempt('daytime/udp', async () => String(DAYTIME.test(await ask(13, 'x'))))
    const isNow = (text: Buffer) =>
      `${text.length} octets, right: ${Math.abs(text.readUInt32BE() - 2_208_988_800 - Date.now() / 1000) < 3}`
    await attempt('time/tcp', async () => isNow(Buffer.from(await say(37, ''), 'latin1')))
    await attempt('time/udp', async () => isNow(await answerTo('x', 37)))
    // Room for a whole line: some answer with no more than they received.
    const long = '.'.repeat(100)
    await attempt('chargen/udp, octets', async () => `${(await answerTo(long, 19)).length}`)
    await attempt(
      'chargen/udp, octets for an empty datagram',
      async () => `${(await answerTo('', 19)).length}`,
    )
    await attempt('chargen/udp, the next is another line', async () => {
      const [a, b] = [await ask(19, long), await ask(19, long)]
      return String(a !== b)
    })
    const silent = await client(t, 13, { host })
    await attempt(
      'daytime/tcp, who ends',
      async () => `the server, after ${(await silent.all).length} octets`,
    )
    silent.destroy()
  }
  const chargenOverTcp = async () => {
    const stream = await client(t, 19, { host })
    await until('20,000 octets have come', () => stream.soFar().length > 20_000)
    stream.destroy()
    const lines = stream.soFar().split('\r\n').slice(0, 200)
    seen['chargen/tcp, the first line'] = lines[0]!
    seen['chargen/tcp, all lines'] = lines
      .every((line, i) => line.length === 72 && line === lineAfter(lines[0]!, i))
      .toString()
    const half = await client(t, 19, { host })
    half.end()
    await once(half, 'data')
    await attempt(
      'chargen/tcp, after the client half-closed',
      async () => {
        await half.all
        return 'ends'
      },
      SHORT_MS,
    )
    half.destroy()
  }

  // Over IPv4, one address can have the service, and another the port that a datagram seems to come from.
  const datagramsOverV4 = async () => {
    const overV4 = async (socket: UdpClient) => {
      socket.send('hello', 7, host)
      for (const end = Date.now() + 2000; socket.got.length === 0 && Date.now() < end; ) await sleep(2)
      return String(socket.got[0] ?? TIMEOUT)
    }
    await attempt('echo/udp, over 127.0.0.1', async () => overV4(await udpClient(t)))
    for (const from of [7, 19, 53, 600, 1023]) {
      const forged = await udpClient(t, '127.0.0.1', from).catch(() => undefined)
      if (!forged) continue
      forged.send('hello', 7, host)
      // The service reads datagrams in order: when a later one is answered, this one has been read.
      if (seen['echo/udp, over 127.0.0.1'] !== TIMEOUT) await overV4(await udpClient(t))
      seen[`echo/udp, from port ${from}`] = String(forged.got[0] ?? TIMEOUT)
    }
  }
  const tcpmux = () =>
    Promise.all([
      attempt('tcpmux, help', async () => JSON.stringify((await say(1, 'help\r\n')).split('\r\n').sort())),
      attempt('tcpmux, +service', async () => JSON.stringify(await say(1, 'hello\r\n'))),
      attempt('tcpmux, service', async () => JSON.stringify(await say(1, 'copy\r\nthe rest'))),
      attempt('tcpmux, in capitals', async () => JSON.stringify(await say(1, 'COPY\r\nthe rest'))),
      attempt('tcpmux, no such service', async () => JSON.stringify(await say(1, 'none\r\n'))),
      attempt('tcpmux, no line', async () => JSON.stringify(await say(1, ''))),
    ])
  const programs = async () => {
    await attempt('nowait', () => say(catPort!, 'hello'))
    await attempt('nowait, over ::1', () => talk(t, catPort!, 'hello', { host: '::1' }))
    await attempt('wait: the same program twice, then another', async () => {
      const pids: string[] = []
      for (const text of ['a', 'b', 'c', 'd']) {
        const [, pid, rest] = /^(\d+) (.*)$/.exec(await say(acceptPort!, text)) ?? []
        if (rest !== text) return `${rest} for ${text}`
        pids.push(pid!)
      }
      return pids.map(pid => pids.indexOf(pid)).join(' ')
    })
    await attempt('dgram wait: the same program twice, then another', async () => {
      const pids: string[] = []
      const peer = await udpClient(t)
      for (const text of ['a', 'b', 'c', 'd']) {
        const [, pid, rest] = /^(\d+) (.*)$/.exec(String(await peer.ask(text, datagramPort!, host))) ?? []
        if (rest !== text) return `${rest} for ${text}`
        pids.push(pid!)
      }
      return pids.map(pid => pids.indexOf(pid)).join(' ')
    })
    const own = told(await say(tellPort!, ''))
    for (const field of ['fds', 'same', 'blocking', 'timeouts', 'ids', 'groups', 'ignored', 'blocked', 'cwd'])
      seen[`program: ${field}`] = String(own[field])
    const { PATH, ...env } = own.env
    seen['program: PATH in its environment'] = String(PATH === process.env.PATH)
    seen['program: variables of the connection'] = Object.keys(env)
      .filter(name => /^(PROTO|(TCP|UDP)(LOCAL|REMOTE))/.test(name))
      .join(' ')
    const user = told(await say(userPort!, ''))
    for (const field of ['ids', 'groups']) seen[`program of nobody: ${field}`] = String(user[field])
    await attempt('a program that is missing', async () => JSON.stringify(await say(missingPort!, '')))
    await attempt('after a bad line', () => say(catPort!, 'works'))
    await attempt('a bad line', async () => (await refusal(badPort!, host)) ?? 'listens')
    await attempt('unix', () => say(unix, 'hello'))
    const socketFile = lstatSync(unix, { throwIfNoEntry: false })
    seen['unix: mode and owner'] = socketFile
      ? `${(socketFile.mode & 0o777).toString(8)} ${socketFile.uid}`
      : 'none'
  }
  // These do not depend on each other, and most of the time passes in waiting.
  await Promise.all([internalServices(), chargenOverTcp(), datagramsOverV4(), tcpmux(), programs()])

  // Programs that are started too often.
  await attempt('over .3 a minute', async () => {
    const all = []
    for (let i = 0; i < 5; i++) all.push((await say(loopPort!, 'x').catch(error => error.code)) || 'closed')
    return all.join(' ')
  })
  const peer = await udpClient(t)
  peer.send('never read', deafPort!, host)
  await attempt('a datagram that nobody reads', async () => {
    let most = 0
    for (let i = 0; i < 10; i++) {
      await sleep(20)
      most = Math.max(most, childrenOf(pid).filter(({ state }) => state === 'Z').length)
    }
    return most > 1 ? 'zombies' : await say(catPort!, 'no harm')
  })

  // SIGHUP.
  const orphan = await client(t, orphanPort!, { host })
  orphan.write('before ')
  await once(orphan, 'data')
  const held = await client(t, catPort!, { host })
  writeFileSync(file, conf(moveTo!).replace(`${host}:${orphanPort} `, '# '))
  process.kill(pid, 'SIGHUP')
  await eventually(() => listens(moveTo!))
  await eventually(async () => !(await listens(orphanPort!)))
  await attempt('SIGHUP: a service that moved', () => say(moveTo!, 'moved'))
  await attempt('SIGHUP: where it was', async () => String(await refusal(moveFrom!, host)))
  await attempt('SIGHUP: a connection to a service that did not change', async () => {
    held.end('held')
    return held.all
  })
  await attempt('SIGHUP: a program of a service that was removed', async () => {
    orphan.end('and after')
    return orphan.all
  })
  await attempt('SIGHUP: a service that was off for looping', async () => say(loopPort!, 'back'))
  rmSync(file)
  process.kill(pid, 'SIGHUP')
  await sleep(SHORT_MS)
  await attempt('SIGHUP without the file', () => say(catPort!, 'hello'))

  // SIGTERM.
  if (over) {
    seen.SIGTERM = 'has ended before'
    return seen
  }
  const last = await client(t, catPort!, { host })
  last.write('before ')
  await once(last, 'data')
  const running = childrenOf(pid).filter(({ state }) => state !== 'Z')
  process.kill(pid, 'SIGTERM')
  seen.SIGTERM = await ended
  seen['SIGTERM: programs that run'] = running.every(({ pid }) => stateOf(pid) !== undefined)
    ? 'live on'
    : 'are ended'
  seen['SIGTERM: the unix socket'] = lstatSync(unix, { throwIfNoEntry: false }) ? 'stays' : 'is removed'
  last.destroy()
  return seen
}

/** Line `i` of chargen after the first, whose number is 0. */
function lineAfter(first: string, i: number): string {
  const from = first.charCodeAt(0) - 0x20
  return Array.from({ length: 72 }, (_, j) => String.fromCharCode(0x20 + ((from + i + j) % 95))).join('')
}
