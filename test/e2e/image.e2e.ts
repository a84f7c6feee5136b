/** The image, as its user runs it. */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { becomesTrue, docker, inspect, needsEngine, root, startContainer } from './docker.ts'

// Not the release's name, which may stand for an image that somebody uses.
const IMAGE = 'roundelay:e2e'
const MAX_LAYERS_BYTES = 8_000_000
const manifest = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'))

interface Image {
  readonly Config: {
    readonly User: string
    readonly Entrypoint: readonly string[]
    readonly Healthcheck: { readonly Test: readonly string[] }
    readonly Labels: Readonly<Record<string, string>>
    readonly ExposedPorts: Readonly<Record<string, unknown>>
  }
}

describe('image', needsEngine, () => {
  before(() => docker('buildx', 'bake', '--load', `--set=image.tags=${IMAGE}`))
  after(() => docker('image', 'rm', IMAGE))

  test('every verb runs without root, network, capabilities or a writable file system', async () => {
    const bare = ['run', '--rm', '--read-only', '--cap-drop=ALL', '--network=none', IMAGE]
    assert.equal(await docker(...bare, '--version'), manifest.version)
    assert.match(await docker(...bare, '--help'), /^Usage: roundelay /)
    for (const verb of ['dns', 'echo', 'up', 'send', 'check'])
      assert.match(await docker(...bare, verb, '--help'), new RegExp(`^Usage: roundelay ${verb} `))
    assert.match(await docker('run', '--rm', IMAGE, 'dns', '--help'), /--service <NAME=SOURCE>/)
  })

  test('it says what it is, and starts without a shell', async () => {
    const { Config } = await inspect<Image>(IMAGE)
    assert.equal(Config.User, 'node')
    assert.deepEqual(Config.Entrypoint, ['node', '--disable-sigusr1', '/app/src/cli.ts'])
    const start = ['CMD', 'node', '--disable-sigusr1', '/app/src/cli.ts', 'check']
    assert.deepEqual(Config.Healthcheck.Test.slice(0, start.length), start)
    assert.ok(Config.ExposedPorts['7007/udp'] && Config.ExposedPorts['5300/tcp'])
    const oci = (name: string) => Config.Labels[`org.opencontainers.image.${name}`]
    assert.equal(oci('title'), 'Roundelay')
    assert.equal(oci('description'), manifest.description)
    assert.equal(oci('version'), manifest.version)
    assert.equal(oci('licenses'), manifest.license)
    const ofCompose = (await docker('compose', '--profile=client', 'config', '--images')).split('\n')
    assert.deepEqual([...new Set(ofCompose)], [`roundelay:${manifest.version}`])
  })

  test('it holds the program and what that needs, nothing else', async () => {
    const list = `console.log(JSON.stringify({
      top: fs.readdirSync('/app').sort(),
      src: fs.globSync('src/**/*.ts', { cwd: '/app' }).sort(),
      modules: fs.globSync(['*/package.json', '@*/*/package.json'], { cwd: '/app/node_modules' }),
      found: fs.globSync(['/app/**/{.git,.github,test,tests}', '/app/**/*.{md,map}', '/app/**/*.d.ts'])
    }))`
    const { top, src, modules, found } = JSON.parse(
      await docker('run', '--rm', '--entrypoint=node', IMAGE, '-e', list),
    )
    assert.deepEqual(top, ['.cache', 'LICENSE', 'node_modules', 'package.json', 'src'])
    assert.ok(src.includes('src/cli.ts'))
    const names: string[] = modules.map((path: string) => path.replace(/\/package\.json$/, ''))
    const missing = Object.keys(manifest.dependencies).filter(name => !names.includes(name))
    const extra = Object.keys(manifest.devDependencies).filter(name => names.includes(name))
    assert.deepEqual({ missing, extra, found }, { missing: [], extra: [], found: [] })
    // No second Node, and the binary that koffi takes from one of its optional packages.
    assert.deepEqual(
      names.filter(name => /^(node|roundelay)($|-)/.test(name)),
      [],
    )
    assert.equal(names.filter(name => name.startsWith('@koromix/koffi-')).length, 1)
  })

  test('docker run roundelay echo --model prefork serves: the socket API of Linux can be called in it', async t => {
    const container = await startContainer(t, IMAGE, ['echo', '--model', 'prefork'])
    await container.becomes('healthy')
    const send = ['node', '/app/src/cli.ts', 'send', '--tcp', '127.0.0.1', 'hello']
    assert.equal(await docker('exec', container.id, ...send), '[5 bytes] hello')
  })

  test('a release is made for two platforms, with SBOM and provenance, under the version of package.json', async () => {
    const { target } = JSON.parse(await docker('buildx', 'bake', '--print', 'release'))
    assert.deepEqual(Object.keys(target), ['release'])
    assert.deepEqual(target.release.platforms, ['linux/amd64', 'linux/arm64'])
    assert.deepEqual(target.release.attest, ['type=sbom', 'type=provenance,mode=max'])
    assert.deepEqual(target.release.tags, [`roundelay:${manifest.version}`, 'roundelay:latest'])
    const byDefault = JSON.parse(await docker('buildx', 'bake', '--print'))
    assert.deepEqual(Object.keys(byDefault.target), ['image'])
    assert.deepEqual(byDefault.target.image.tags, target.release.tags)
  })

  test('its layers are small', async t => {
    const sizes = async (image: string) =>
      (await docker('history', '--human=false', '--format={{.Size}}', image)).split('\n').map(Number)
    const [, base] = /^ARG NODE_IMAGE=(\S+)$/m.exec(await readFile(join(root, 'Dockerfile'), 'utf8')) ?? []
    const [all, below] = [await sizes(IMAGE), await sizes(base!)]
    const added = all.slice(0, all.length - below.length).reduce((sum, size) => sum + size, 0)
    t.diagnostic(`this project's layers: ${(added / 1e6).toFixed(2)} MB`)
    assert.ok(added > 0 && added < MAX_LAYERS_BYTES, `${added} bytes`)
  })

  test('the compile cache in it is used: a server is much smaller than without', async t => {
    const verbs = { echo: ['echo'], dns: ['dns', '--service=echo=static:127.0.0.1', '--check=none'] }
    const measure = async (args: string[], options: string[]) => {
      const container = await startContainer(t, IMAGE, args, options)
      await container.becomes('healthy')
      const read = `console.log(/RssAnon:\\s+(\\d+)/.exec(fs.readFileSync('/proc/1/status', 'utf8'))[1])`
      return Number(await container.node(read)) / 1024
    }
    for (const [name, args] of Object.entries(verbs)) {
      const used = await measure(args, [])
      const unused = await measure(args, ['--env=NODE_DISABLE_COMPILE_CACHE=1'])
      t.diagnostic(
        `${name}: private memory ${used.toFixed(1)} MiB, without the cache ${unused.toFixed(1)} MiB`,
      )
      assert.ok(used < 0.8 * unused)
    }
  })

  test('a frozen server becomes unhealthy, a thawed one healthy again; no shell is needed for it', async t => {
    const noShell = ['sh', 'dash', 'bash'].map(name => `--volume=/dev/null:/usr/bin/${name}:ro`)
    const quick = ['--health-interval=500ms', '--health-timeout=1s']
    const container = await startContainer(t, IMAGE, ['echo'], [...noShell, ...quick])
    await container.becomes('healthy')
    await assert.rejects(docker('exec', container.id, 'sh', '-c', 'true'), /not found|permission denied/)
    await docker('kill', '--signal=STOP', container.id)
    await container.becomes('unhealthy')
    await docker('kill', '--signal=CONT', container.id)
    await container.becomes('healthy')
  })

  test('a machine without IPv6 is no matter', async t => {
    const folder = await mkdtemp(join(tmpdir(), 'roundelay-'))
    t.after(() => rm(folder, { recursive: true }))
    // socket(AF_INET6, …) fails with EAFNOSUPPORT, as where the kernel has no IPv6.
    const args = [{ index: 0, value: 10, op: 'SCMP_CMP_EQ' }]
    const noIpv6 = { names: ['socket'], action: 'SCMP_ACT_ERRNO', errnoRet: 97, args }
    const profile = join(folder, 'ipv4-only.json')
    await writeFile(profile, JSON.stringify({ defaultAction: 'SCMP_ACT_ALLOW', syscalls: [noIpv6] }))
    for (const args of [['echo'], ['dns', '--service=echo=static:127.0.0.1', '--check=none'], ['up']]) {
      const container = await startContainer(t, IMAGE, args, [`--security-opt=seccomp=${profile}`])
      await container.becomes('healthy')
      assert.doesNotMatch(await container.logs(), /"level":"(error|fatal)"|\n\s+at /)
    }
  })

  describe('as PID 1', () => {
    const dns = ['dns', '--service=echo=static:127.0.0.1', '--check=none']

    /** Stops a healthy server in some way; resolves with its exit code and how long it took to end. */
    const end = async (t: Parameters<typeof startContainer>[0], args: string[], stop: string[]) => {
      const container = await startContainer(t, IMAGE, args)
      await container.becomes('healthy')
      const begun = performance.now()
      await docker(...stop, container.id)
      const code = await container.exitCode()
      return { code, ms: Math.round(performance.now() - begun), log: await container.logs() }
    }

    test('docker stop: it drains, and exits 0 within its drain', async t => {
      const stop = ['stop', '--time=20']
      const cases: [ms: number, args: string[]][] = [
        [7000, ['echo']],
        [1000, ['echo', '--drain=1s']],
        [1000, [...dns, '--drain=1s']],
      ]
      const ends = await Promise.all(cases.map(([, args]) => end(t, args, stop)))
      for (const [i, { code, ms, log }] of ends.entries()) {
        const [drainMs, args] = cases[i]!
        t.diagnostic(`${args.join(' ')}: exit code ${code} after ${ms} ms`)
        assert.equal(code, 0)
        assert.ok(ms >= drainMs && ms < drainMs + 2000, `${ms} ms`)
        assert.match(log, /"draining: .*"ended"/s)
      }
    })

    test('Ctrl-C ends it with 0 and without a drain', async t => {
      for (const args of [['echo'], dns]) {
        const { code, ms } = await end(t, args, ['kill', '--signal=INT'])
        assert.equal(code, 0)
        assert.ok(ms < 3000, `${ms} ms`)
      }
    })

    test('a second signal ends it at once', async t => {
      const container = await startContainer(t, IMAGE, ['echo', '--drain=1m'])
      await container.becomes('healthy')
      await docker('kill', '--signal=TERM', container.id)
      await container.said('draining')
      const begun = performance.now()
      await docker('kill', '--signal=INT', container.id)
      assert.equal(await container.exitCode(), 130)
      assert.ok(performance.now() - begun < 3000)
    })

    test('a client that waits for a reply ends too', async t => {
      // A frozen process has its port open, and never answers.
      const server = await startContainer(t, IMAGE, ['echo'])
      await server.becomes('healthy')
      await docker('kill', '--signal=STOP', server.id)
      const client = ['send', '--timeout=1m', '127.0.0.1', 'hello']
      const { id, node } = await startContainer(t, IMAGE, client, [`--network=container:${server.id}`])
      // A UDP socket whose peer is 127.0.0.1:7007.
      const sockets = `console.log(fs.readFileSync('/proc/net/udp', 'utf8'))`
      await becomesTrue('it waits', async () => (await node(sockets)).includes(' 0100007F:1B5F '))
      await docker('stop', '--time=3', id)
      assert.equal(Number(await docker('wait', id)), 143)
    })
  })
})
