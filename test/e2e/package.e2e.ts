/** The published package, packed and installed into an empty folder as its user does. */
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { Resolver } from 'node:dns/promises'
import { once } from 'node:events'
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { connect } from 'node:net'
import { tmpdir, userInfo } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { text } from 'node:stream/consumers'
import { after, before, describe, type TestContext, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { freePorts } from '../support/ports.ts'
import { portOf, readLines } from '../support/process.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const checkout = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const isRoot = process.getuid?.() === 0

// A program of another user must be able to read what is installed here.
process.umask(0o022)

/** Without the variables of the npm that runs this: with them, another npm would work on the checkout. */
const environment: NodeJS.ProcessEnv = {
  ...Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !/^npm_(?!config_(registry|cache|cafile)$)/.test(name)),
  ),
  PATH: `${dirname(process.execPath)}:${process.env.PATH}`,
}

function run(file: string, args: readonly string[], env: NodeJS.ProcessEnv = {}, cwd = root) {
  return new Promise<{ code: number; stdout: string; stderr: string }>(resolve => {
    execFile(
      file,
      args,
      { cwd, env: { ...environment, ...env }, maxBuffer: 1 << 26 },
      (error, stdout, stderr) => resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
    )
  })
}

async function succeed(...args: Parameters<typeof run>): Promise<string> {
  const { code, stdout, stderr } = await run(...args)
  assert.equal(code, 0, stdout + stderr)
  return stdout
}

describe('the published package', () => {
  const folder = mkdtempSync(join(tmpdir(), 'roundelay-package-'))
  const installed = join(folder, 'user/node_modules/roundelay')
  const command = join(folder, 'user/node_modules/.bin/roundelay')
  const quiet = ['--prefer-offline', '--no-audit', '--no-fund', '--no-update-notifier']
  let packed: readonly string[] = []
  let tarball = ''

  before(async () => {
    // Other users must get into it, and mkdtemp lets nobody in.
    await succeed('chmod', ['755', folder])
    // Packed in a copy: while npm packs, the manifest is that of the package.
    const copy = join(folder, 'checkout')
    const skipped = new Set(['.git', 'node_modules', 'dist'])
    cpSync(root, copy, { recursive: true, filter: path => !skipped.has(basename(path)) })
    symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
    const args = ['pack', '--json', '--silent', '--pack-destination', folder]
    const report = await succeed('npm', args, {}, copy)
    const [{ filename, files }] = JSON.parse(report.slice(report.indexOf('[')))
    packed = files.map(({ path }: { path: string }) => path)
    // The manifest of the checkout is back, and nothing is left over.
    assert.deepEqual(JSON.parse(readFileSync(join(copy, 'package.json'), 'utf8')), checkout)
    for (const name of ['dist', '.package.json']) assert.ok(!existsSync(join(copy, name)), name)
    const user = join(folder, 'user')
    tarball = join(folder, filename)
    await succeed('npm', ['install', '--prefix', user, ...quiet, tarball], {}, folder)
  })
  after(() => rmSync(folder, { recursive: true, force: true }))

  test('it holds JavaScript with its source maps, and no TypeScript, tests or tools', () => {
    for (const path of ['package.json', 'README.md', 'LICENSE', 'bin/roundelay.cjs', 'dist/roundelay.1'])
      assert.ok(packed.includes(path), path)
    const rest = packed.filter(path => !/^(package\.json|README\.md|LICENSE|bin\/|dist\/)/.test(path))
    assert.deepEqual(rest, [])
    assert.deepEqual(
      packed.filter(path => path.endsWith('.ts')),
      [],
    )
    for (const path of packed.filter(path => path.endsWith('.js')))
      assert.ok(packed.includes(`${path}.map`), path)
  })

  test('its manifest says which Node it needs, and has nothing that is only for the checkout', () => {
    const manifest = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8'))
    const { name, version, description, license, type, bin, files, dependencies } = checkout
    const shared = { name, version, description, license, type, bin, files, dependencies }
    assert.deepEqual(manifest, { ...shared, man: ['./dist/roundelay.1'], engines: { node: '>=26' } })
  })

  test('no Node comes with it', () => {
    const modules = join(folder, 'user/node_modules')
    assert.deepEqual(
      readdirSync(modules).filter(name => /^node($|-)/.test(name)),
      [],
    )
    assert.ok(!existsSync(join(modules, '.bin/node')))
    assert.ok(!existsSync(join(modules, 'roundelay-node')))
  })

  test('npm install --global links the command and its man page', async () => {
    const prefix = join(folder, 'global')
    await succeed('npm', ['install', '--global', '--prefix', prefix, ...quiet, tarball], {}, folder)
    assert.equal(await succeed(join(prefix, 'bin/roundelay'), ['--version']), `${checkout.version}\n`)
    assert.match(readFileSync(join(prefix, 'share/man/man1/roundelay.1'), 'utf8'), /^\.TH ROUNDELAY 1 /)
  })

  test('the command says its version, and errors name lines of TypeScript where Node reads source maps', async () => {
    assert.equal(await succeed(command, ['--version']), `${checkout.version}\n`)
    assert.match(await succeed(command, ['--help']), /^Usage: roundelay /)
    const script = `import('${join(installed, 'dist/address.js')}').then(a => a.socketAddress('no port'))`
    const { stderr } = await run(process.execPath, ['--enable-source-maps', '-e', script])
    assert.match(stderr, /src\/address\.ts:\d+/)
  })

  /** Starts a server of the package; its log lines are on `lines`. */
  function start(t: TestContext, args: readonly string[], cwd = folder) {
    const child = spawn(command, args, { cwd, env: environment, stdio: ['pipe', 'pipe', 'inherit'] })
    const ended = once(child, 'close')
    t.after(async () => {
      child.kill('SIGKILL')
      await ended
    })
    return { child, ended, line: readLines(child).line }
  }

  const send = (port: number, ...options: string[]) =>
    succeed(command, ['send', ...options, '--port', String(port), '127.0.0.1', 'hello'])

  for (const [model, transports] of Object.entries({
    'event-loop': ['udp', 'tcp'],
    iterative: ['udp'],
    concurrent: ['tcp'],
    prefork: ['tcp'],
  }))
    test(`echo --model ${model} serves ${transports.join(' and ')}`, async t => {
      const args = ['--listen=127.0.0.1:0', '--admin=127.0.0.1:0', '--drain=0s']
      const { child, ended, line } = start(t, ['echo', '--model', model, ...args])
      const { listen } = await line('echo replica ready')
      const port = portOf((listen as string[])[0])
      for (const transport of transports)
        assert.equal(await send(port, `--${transport}`), '[5 bytes] hello\n')
      child.kill('SIGTERM')
      assert.deepEqual(await ended, [0, null])
    })

  test('dns answers for a replica', async t => {
    const service = ['--service=echo=static:127.0.0.9', '--check=none']
    const { line } = start(t, ['dns', '--listen=127.0.0.1:0', '--admin=127.0.0.1:0', ...service])
    const { listen } = await line('DNS server is listening')
    await line('service ready')
    const resolver = new Resolver()
    resolver.setServers([String((listen as string[])[0])])
    assert.deepEqual(await resolver.resolve4('echo.roundelay.test'), ['127.0.0.9'])
  })

  test('up starts replicas that take turns', async t => {
    const [dns, admin, port, adminPort] = await freePorts(4)
    const ports = [`--listen=127.0.0.1:${dns}`, `--admin=127.0.0.1:${admin}`, `--port=${port}`]
    const { line } = start(t, ['up', ...ports, `--admin-port=${adminPort}`])
    await line('service ready')
    const firsts: string[] = []
    const resolver = new Resolver()
    resolver.setServers([`127.0.0.1:${dns}`])
    for (let i = 0; i < 6; i++) firsts.push((await resolver.resolve4('echo.roundelay.test'))[0]!)
    assert.deepEqual([...new Set(firsts)].sort(), ['127.0.1.1', '127.0.1.2', '127.0.1.3'])
    const options = ['send', '--tcp', '--dns', `127.0.0.1:${dns}`, '--port', String(port)]
    assert.equal(await succeed(command, [...options, 'echo.roundelay.test', 'hello']), '[5 bytes] hello\n')
  })

  test('inetd runs internal services, nowait and wait programs, and those of tcpmux and of another user', async t => {
    const [internal, datagram, nowait, wait, mux, other] = await freePorts(6)
    const me = userInfo().username
    const server = `${process.execPath} node ${command} echo --stdio`
    const conf = [
      '127.0.0.1:',
      `${internal} stream tcp nowait ${me} internal echo`,
      `${datagram} dgram udp wait ${me} internal echo`,
      `${nowait} stream tcp nowait ${me} ${server}`,
      `${wait} stream tcp wait ${me} ${server} --idle-timeout 1s`,
      `${mux} stream tcp nowait ${me} internal tcpmux`,
      `tcpmux/+shout stream tcp nowait ${me} /usr/bin/tr tr a-z A-Z`,
      ...(isRoot ? [`${other} stream tcp nowait nobody /usr/bin/id id -un`] : []),
    ]
    writeFileSync(join(folder, 'inetd.conf'), `${conf.join('\n')}\n`)
    const { child, ended, line } = start(t, ['inetd', 'inetd.conf', '--admin=127.0.0.1:0', '--drain=0s'])
    await line('inetd ready')
    assert.equal(await talk(internal!, 'hello'), 'hello')
    assert.equal(await send(datagram!, '--udp'), '[5 bytes] hello\n')
    assert.equal(await talk(nowait!, 'to a new process'), 'to a new process')
    assert.equal(await talk(wait!, 'to the listening process'), 'to the listening process')
    assert.equal(await talk(mux!, 'shout\r\nhello'), '+Go\r\nHELLO')
    if (isRoot) assert.equal(await talk(other!, ''), 'nobody\n')
    else t.diagnostic('a program of another user: needs root')
    child.kill('SIGTERM')
    assert.deepEqual(await ended, [0, null])
  })
})

/** Says all of it, and resolves with all that comes back. */
async function talk(port: number, said: string): Promise<string> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  socket.end(said)
  return text(socket)
}
