/** What the tests of inetd share: programs to run behind it, clients, and the state of processes. */

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { connect, type NetConnectOpts, type Socket } from 'node:net'
import { tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'
import { test as nodeTest, type TestContext } from 'node:test'
import { whyUnavailable } from '../../src/sys/available.ts'
import { closeOnExec } from '../../src/sys/libc.ts'
import { freePorts } from '../support/ports.ts'
import { has, type Running, start } from '../support/process.ts'
import { until } from '../support/until.ts'

export const root = process.getuid?.() === 0

// Descriptors that the test runner inherited must not reach programs.
for (const fd of readdirSync('/proc/self/fd').map(Number)) if (fd > 2) closeOnExec(fd)

const why = await whyUnavailable()
const needs =
  why ?? (has('perl') ? undefined : 'the programs behind inetd are written in Perl, which is not here')

/** The one of node:test, skipped where inetd or the programs behind it cannot run. */
export const test = (name: string, body: (t: TestContext) => void | Promise<void>, skip?: string | false) =>
  nodeTest(name, { skip: (needs ?? skip) || false, timeout: 60_000 }, body)

/**
 * A loopback address that no other test process uses, and ports of it: for tests that need hundreds, of which
 * another process could take one on 127.0.0.1 before they are bound.
 */
export function manyPorts(count: number): { readonly host: string; readonly all: readonly number[] } {
  const host = `127.64.${(process.pid >> 8) & 0xff}.${process.pid & 0xff}`
  return { host, all: Array.from({ length: count }, (_, i) => 10_000 + i) }
}

/** A folder that everybody may read. It is removed when the test ends. */
export function folder(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'roundelay-inetd-'))
  chmodSync(path, 0o755)
  t.after(() => rmSync(path, { recursive: true, force: true }))
  return path
}

/** Programs in Perl. They report their process id, so that tests see which process answered. */
const programs = {
  /** Accepts on descriptor 0 as many clients as its argument says, and ends if none arrives for 10 s. */
  accept: `
    my $left = shift // 1;
    $SIG{ALRM} = sub { exit 0 };
    while ($left-- > 0) {
      alarm 10;
      accept(my $client, STDIN) or die "accept: $!";
      $client->autoflush(1);
      my $text = join '', <$client>;
      print $client "$$ $text";
      close $client;
    }`,
  /** Answers as many datagrams on descriptor 0 as its argument says. */
  recvfrom: `
    my $left = shift // 1;
    $SIG{ALRM} = sub { exit 0 };
    while ($left-- > 0) {
      alarm 10;
      my $peer = recv(STDIN, my $text, 65536, 0) // die "recv: $!";
      send(STDOUT, "$$ $text", 0, $peer);
    }`,
  /**
   * Reports its descriptors, ids and environment: to the connection, the first client, or the sender of the
   * first datagram.
   */
  tell: `
    opendir(my $dir, '/proc/self/fd');
    my $own = fileno $dir;
    # Perl opens its script, and keeps it.
    my @fds = grep { /\\d/ && $_ != $own && readlink("/proc/self/fd/$_") ne $0 } readdir $dir;
    closedir $dir;
    open(my $status, '<', '/proc/self/status');
    my %status = map { /^(\\w+):\\s*(.*)/ } <$status>;
    open(my $cmdline, '<', '/proc/self/cmdline');
    my $flags = fcntl(STDIN, F_GETFL, 0);
    my $text = join "\\n",
      'fds ' . join(' ', sort { $a <=> $b } @fds),
      'same ' . (readlink('/proc/self/fd/0') eq readlink('/proc/self/fd/1') && readlink('/proc/self/fd/1') eq readlink('/proc/self/fd/2') ? 1 : 0),
      'blocking ' . ($flags & O_NONBLOCK ? 0 : 1),
      'timeouts ' . join(' ', map { join '.', unpack 'q2', getsockopt(STDIN, SOL_SOCKET, $_) } SO_RCVTIMEO, SO_SNDTIMEO),
      'ids ' . join(' ', split /\\s+/, "$status{Uid} $status{Gid}"),
      'groups ' . join(' ', sort split ' ', $status{Groups}),
      # Perl itself ignores SIGFPE.
      'ignored ' . (hex($status{SigIgn}) & ~(1 << 7)), "blocked $status{SigBlk}",
      'cmdline ' . join(' ', split /\\0/, <$cmdline>),
      'cwd ' . readlink('/proc/self/cwd'),
      (map { "env $_=" . ($ENV{$_} =~ s/\\n/ /gr) } sort keys %ENV), '';
    if (($ARGV[-1] // '') eq 'accept') { accept(my $client, STDIN); print $client $text }
    elsif (($ARGV[-1] // '') eq 'recvfrom') { my $peer = recv(STDIN, my $b, 65536, 0); send(STDOUT, $text, 0, $peer) }
    else { syswrite STDOUT, $text }`,
} as const

/** Creates a program and returns its path. It is removed when the test ends. */
export function program(t: TestContext, name: keyof typeof programs): string {
  const path = join(folder(t), name)
  writeFileSync(
    path,
    `#!/usr/bin/env perl\nuse strict; use Socket; use Fcntl; use IO::Handle;\n${programs[name]}\n`,
  )
  chmodSync(path, 0o755)
  return path
}

export interface Told {
  readonly env: Readonly<Record<string, string>>
  readonly [field: string]: unknown
}

/** Parses the report of the program `tell`. */
export function told(text: string): Told {
  const lines = text.split('\n').filter(Boolean)
  const pair = (line: string, by: string) => {
    const at = line.indexOf(by)
    return [line.slice(0, at), line.slice(at + by.length)]
  }
  const fields = lines.filter(line => !line.startsWith('env ')).map(line => pair(line, ' '))
  const env = lines.filter(line => line.startsWith('env ')).map(line => pair(line.slice(4), '='))
  return { ...Object.fromEntries(fields), env: Object.fromEntries(env) }
}

/**
 * A connection, with a promise of all that it receives until the other side ends it. It is destroyed when the
 * test ends.
 */
export async function client(
  t: TestContext,
  where: number | string,
  options: Partial<NetConnectOpts> & { readonly host?: string } = {},
): Promise<Socket & { readonly all: Promise<string>; readonly soFar: () => string }> {
  const target = typeof where === 'string' ? { path: where } : { port: where, host: '127.0.0.1' }
  const socket = connect({ ...target, allowHalfOpen: true, ...options } as NetConnectOpts)
  t.after(() => void socket.destroy())
  let got = ''
  const all = new Promise<string>(resolve => {
    // A reset is an end too: tests look at what was received before it.
    for (const event of ['end', 'error', 'close']) socket.on(event, () => resolve(got))
  })
  socket.setEncoding('latin1').on('data', data => {
    got += data
  })
  await once(socket, 'connect')
  return Object.assign(socket, { all, soFar: () => got })
}

/** Connects, sends `text`, half-closes, and resolves with all that comes back. */
export async function talk(
  t: TestContext,
  where: number | string,
  text: string,
  options: Partial<NetConnectOpts> & { readonly host?: string } = {},
): Promise<string> {
  const socket = await client(t, where, options)
  socket.end(text)
  const all = await socket.all
  socket.destroy()
  return all
}

/** Resolves with undefined if a connection can be made, otherwise with the code of the error. */
export async function refusal(port: number, host = '127.0.0.1'): Promise<string | undefined> {
  const socket = connect({ port, host })
  const code = await once(socket, 'connect').then(
    () => undefined,
    error => error.code,
  )
  socket.destroy()
  return code
}

/** Child processes that run, and zombies. */
export function childrenOf(pid: number): { readonly pid: number; readonly state: string }[] {
  const tasks = readdirSync(`/proc/${pid}/task`)
  const pids = tasks.flatMap(task =>
    readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
  )
  return pids.flatMap(pid => {
    const state = stateOf(pid)
    return state === undefined ? [] : [{ pid, state }]
  })
}

/** As in proc_pid_stat(5); undefined if there is no such process. */
export function stateOf(pid: number): string | undefined {
  try {
    return /\) (\w)/.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))?.[1]
  } catch {
    return undefined
  }
}

/** What each descriptor of a process refers to. */
export const descriptorsOf = (pid: number): string[] =>
  readdirSync(`/proc/${pid}/fd`)
    .map(fd => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`)
      } catch {
        return ''
      }
    })
    .filter(Boolean)

/** The inode of a listening TCP or a UDP socket over IPv4. It identifies the socket. */
export function inodeOf(port: number, table: 'tcp' | 'udp' = 'tcp', host = '127.0.0.1'): string | undefined {
  const hex = (number: number, digits: number) => number.toString(16).toUpperCase().padStart(digits, '0')
  const octets = host.split('.').map(octet => hex(Number(octet), 2))
  // The kernel prints the address as one number of this machine, which is little-endian.
  const address = `${octets.reverse().join('')}:${hex(port, 4)}`
  const state = table === 'tcp' ? '0A' : '07'
  return readFileSync(`/proc/net/${table}`, 'utf8')
    .split('\n')
    .map(line => line.trim().split(/\s+/))
    .find(fields => fields[1] === address && fields[3] === state)?.[9]
}

export interface Superserver extends Running {
  readonly file: string
  readonly admin: number
  /** Writes the file and sends SIGHUP. Resolves when inetd has read it, or has failed to. */
  reload(conf: string | undefined): Promise<void>
  state(): Promise<Record<string, { readonly service: string; readonly [field: string]: unknown }>>
}

/** `roundelay inetd` with this configuration; `shell` as for `start`. */
export async function superserver(
  t: TestContext,
  conf: string,
  args: readonly string[] = [],
  env: NodeJS.ProcessEnv = {},
  shell?: string,
): Promise<Superserver> {
  const file = join(folder(t), 'inetd.conf')
  writeFileSync(file, conf)
  const running = start(t, ['inetd', file, '--admin', '127.0.0.1:0', ...args], env, shell)
  const ready = await running.line('inetd ready')
  const admin = Number(/:(\d+)$/.exec(String(ready.admin))?.[1])
  const reads = () =>
    running.lines.filter(({ msg }) => /^(configuration read|cannot read the conf)/.test(msg)).length
  return {
    ...running,
    file,
    admin,
    async reload(text) {
      const before = reads()
      if (text === undefined) rmSync(file)
      else writeFileSync(file, text)
      process.kill(running.pid, 'SIGHUP')
      await until('the configuration was read', () => reads() > before)
    },
    async state() {
      const { services } = (await (await fetch(`http://127.0.0.1:${admin}/state`)).json()) as {
        services: { service: string }[]
      }
      return Object.fromEntries(services.map(row => [row.service, row]))
    },
  }
}

/** Connects `count` times, a few at a time, and checks that inetd keeps no process and no descriptor. */
export async function manyConnections(t: TestContext, count: number): Promise<void> {
  const [port] = await freePorts(1)
  const me = userInfo().username
  const server = await superserver(t, `127.0.0.1:${port} stream tcp nowait.0 ${me} /bin/cat cat`)
  assert.equal(await talk(t, port!, 'warm up'), 'warm up')
  await until('no child is left', () => childrenOf(server.pid).length === 0)
  // Connections to the admin server come and go by themselves, so that there may be fewer in the end.
  const before = descriptorsOf(server.pid)
  let left = count
  const worker = async () => {
    while (left-- > 0) {
      const text = `connection ${left}`
      assert.equal(await talk(t, port!, text), text)
    }
  }
  await Promise.all(Array.from({ length: 16 }, worker))
  await until('no child is left', () => childrenOf(server.pid).length === 0)
  await until('the descriptors are closed', () => descriptorsOf(server.pid).length <= before.length)
  const { started, running, failed, refused } = (await server.state())[`${port}/tcp`]!
  const expected = { started: count + 1, running: 0, failed: 0, refused: 0 }
  assert.deepEqual({ started, running, failed, refused }, expected)
}

interface Member {
  readonly name: string
  readonly uid: number
  readonly gid: number
  /** All of them, as in `Groups` of proc_pid_status(5). */
  readonly groups: string
}

/** A user of this machine, other than root, who is in more groups than that of passwd(5). */
function findMember(wanted: (name: string) => boolean): Member | undefined {
  const rows = (file: string) =>
    readFileSync(file, 'utf8')
      .split('\n')
      .map(line => line.split(':'))
  const groups = rows('/etc/group')
  for (const [name, , uid, gid] of rows('/etc/passwd')) {
    const others = groups.filter(([, , id, members = '']) => id !== gid && members.split(',').includes(name!))
    if (!name || others.length === 0 || uid === '0' || !wanted(name)) continue
    const all = [...new Set([gid, ...others.map(([, , id]) => id)])].sort().join(' ')
    return { name, uid: Number(uid), gid: Number(gid), groups: all }
  }
  return undefined
}

const TEST_USERS = 'roundelay-test'

/** Likewise. If there is none, root creates one until the test ends. */
export function member(t: TestContext): Member | undefined {
  // Those of other test processes do not stay.
  const found = findMember(name => !name.startsWith(TEST_USERS))
  if (found || !root || !has('useradd') || !has('groupadd')) return found
  const name = `${TEST_USERS}-${process.pid}`
  execFileSync('groupadd', ['--system', name])
  t.after(() => execFileSync('groupdel', [name]))
  execFileSync('useradd', ['--system', '--no-create-home', '-g', 'nogroup', '-G', name, name])
  t.after(() => execFileSync('userdel', [name]))
  return findMember(other => other === name)
}

/** Why a test that needs a member is skipped. */
export const noMember = 'no user here is in two groups, and only root can create one'
