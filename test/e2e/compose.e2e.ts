/** `docker compose up`, and what can happen to it. One farm for all tests, in their order. */
import assert from 'node:assert/strict'
import { Resolver } from 'node:dns/promises'
import { appendFileSync, cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Transport } from '../../src/address.ts'
import { openEcho } from '../../src/client/echo.ts'
import { dnsTcpClient, dnsUdpClient, parse, query, TYPE } from '../dns/message.ts'
import { run } from '../support/process.ts'
import { becomesTrue, type Container, docker, inspect, needsEngine, root } from './docker.ts'

const NAME = 'echo.roundelay.test'
const DNS_PORT = 5300
const ECHO_PORT = 7007
const KILLS = 20
const LOOKUPS = 300
const MIN_ROUNDS = 2000
/** Targets are half of these; a machine may be busy. */
const MAX_MEDIAN_MS = 2000
const MAX_SEEN_MS = 4000

const compose = (...args: string[]) => docker('compose', ...args)
const containers = async (...services: string[]) =>
  (await compose('ps', '--quiet', ...services)).split('\n').filter(Boolean)
const addressOf = async (id: string) =>
  (await inspect<Container>(id)).NetworkSettings.Networks.roundelay_farm!.IPAddress

const resolver = new Resolver({ timeout: 5000, tries: 2 })
resolver.setServers([`127.0.0.1:${DNS_PORT}`])
const answer = () => resolver.resolve4(NAME)
const answered = (fits: (answer: string[]) => boolean, name: string) =>
  becomesTrue(name, async () => fits(await answer()))

/** How often each stands first. */
function countFirsts(firsts: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const first of firsts) counts[first] = (counts[first] ?? 0) + 1
  return counts
}

function summary(times: readonly number[]): { median: number; max: number } {
  const sorted = times.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return {
    median: Math.round((sorted[middle]! + sorted[sorted.length - 1 - middle]!) / 2),
    max: sorted[sorted.length - 1]!,
  }
}

/** Lines of the logs that nobody wants to see. */
function complaints(logs: string): string[] {
  return logs.split('\n').filter(line => {
    if (!line.startsWith('{')) return line !== ''
    return ['error', 'fatal'].includes(JSON.parse(line).level) || /\\n\s+at /.test(line)
  })
}
// Compose erases a line in front of each, terminal or not.
const logs = async () => (await compose('logs', '--no-log-prefix', '--no-color')).replaceAll('\u001b[2K', '')

describe('docker compose', needsEngine, () => {
  let ours = false

  before(async () => {
    const running = await compose('--profile=client', 'ps', '--all', '--quiet')
    assert.equal(running, '', 'the farm is up already: docker compose down first')
    ours = true
    await compose('up', '--detach', '--build', '--wait')
  })

  after(async () => {
    if (ours) await compose('--profile=client', 'down', '--timeout=1')
  })

  test('once up, the answers rotate exactly, over UDP and TCP', async t => {
    const ms = await answered(all => all.length === 3, 'three answered')
    t.diagnostic(`three answered ${ms} ms after up --wait`)
    const addresses = (await Promise.all((await containers('echo')).map(addressOf))).sort()
    assert.equal(addresses.length, 3)
    for (const address of addresses) assert.match(address, /^10\.53\.1\.[1-9]/)
    for (const open of [dnsUdpClient, dnsTcpClient]) {
      const client = await open(t, DNS_PORT)
      const firsts: string[] = []
      for (let i = 0; i < 30; i++) {
        const reply = parse(await client.ask(query(NAME, TYPE.A, { id: i + 1 })))
        const order = reply.addresses as string[]
        const start = addresses.indexOf(order[0]!)
        assert.deepEqual(order, [...addresses.slice(start), ...addresses.slice(0, start)])
        firsts.push(order[0]!)
      }
      assert.deepEqual(firsts.slice(3), firsts.slice(0, -3))
      assert.deepEqual(countFirsts(firsts), Object.fromEntries(addresses.map(address => [address, 10])))
    }
  })

  test('the hardening that the file declares is in force, in every service', async () => {
    const script = `
      const status = fs.readFileSync('/proc/1/status', 'utf8')
      const field = name => status.match(name + ':\\\\s+(\\\\w+)')[1]
      const write = path => { try { fs.writeFileSync(path, '') } catch ({ code }) { return code } }
      console.log(JSON.stringify([field('Uid'), field('CapBnd'), field('NoNewPrivs'),
        ...['/app/x', '/tmp/x', '/home/node/x'].map(write)]))`
    const wanted = ['1000', '0000000000000000', '1', 'EROFS', 'EROFS', 'EROFS']
    for (const id of await containers()) {
      const { HostConfig, Config } = await inspect<Container>(id)
      assert.equal(HostConfig.ReadonlyRootfs, true)
      assert.deepEqual(HostConfig.CapDrop, ['ALL'])
      assert.ok(HostConfig.SecurityOpt.includes('no-new-privileges:true'))
      assert.equal(HostConfig.Memory, 256 << 20)
      assert.equal(HostConfig.PidsLimit, 64)
      assert.equal(Config.User, 'node')
      assert.ok(Config.StopTimeout > 7 + 5)
      assert.deepEqual(JSON.parse(await docker('exec', id, 'node', '-e', script)), wanted)
    }
    const inClient = await compose('run', '--rm', '--entrypoint=node', 'client', '-e', script)
    assert.deepEqual(JSON.parse(inClient), wanted)
  })

  test('the client uses plain names, and disturbs nobody', async () => {
    const before = await containers()
    const send = ['run', '--rm', 'client', 'send']
    assert.equal(await compose(...send, NAME, 'hello'), '[5 bytes] hello')
    assert.equal(await compose(...send, '--tcp', NAME, 'hello'), '[5 bytes] hello')
    assert.match(
      await compose('run', '--rm', 'client'),
      /^\[5 bytes\] hello {2}from 10\.53\.1\.\d+:7007 udp in/,
    )
    await compose('up', '--detach', '--wait')
    assert.deepEqual(await containers(), before)
  })

  test('a second docker compose up --detach builds from the cache and replaces no container', async () => {
    const before = await containers()
    await compose('up', '--detach')
    assert.deepEqual(await containers(), before)
  })

  test('npm start beside it says which port is taken', async () => {
    const { code, stderr } = await run(['up'])
    assert.deepEqual([code, stderr], [2, 'roundelay: Cannot listen on 127.0.0.1:5300: the port is in use\n'])
  })

  test('rotation survives the sorting of getaddrinfo', async t => {
    // AF_INET alone and together with AF_INET6; the kernel and Node leave the order of glibc alone.
    const script = `(async () => {
      const firsts = []
      for (const family of [4, 0]) for (let i = 0; i < ${LOOKUPS}; i++)
        firsts.push((await dns.promises.lookup('${NAME}', { family, all: true, order: 'verbatim' }))[0].address)
      console.log(JSON.stringify(firsts))
    })()`
    const firsts: string[] = JSON.parse(
      await compose('run', '--rm', '--entrypoint=node', 'client', '-e', script),
    )
    for (const [family, from] of [
      ['AF_INET', 0],
      ['AF_UNSPEC', LOOKUPS],
    ] as const) {
      const counts = countFirsts(firsts.slice(from, from + LOOKUPS))
      t.diagnostic(`${LOOKUPS} look-ups, ${family}: ${JSON.stringify(counts)}`)
      assert.deepEqual(Object.values(counts), [LOOKUPS / 3, LOOKUPS / 3, LOOKUPS / 3])
    }
  })

  test('a replica that is killed leaves the answer', async t => {
    const ids = await containers('echo')
    const times: number[] = []
    for (let i = 0; i < KILLS; i++) {
      const id = ids[i % ids.length]
      const address = await addressOf(id!)
      await answered(all => all.length === 3 && all.includes(address), `${address} is back`)
      const begun = performance.now()
      const killed = docker('kill', id!)
      let held = begun
      // For a while longer, in case it comes back.
      while (performance.now() - held < 300 || held === begun) {
        if ((await answer()).includes(address)) held = performance.now()
        await sleep(5)
        assert.ok(held - begun < 10_000)
      }
      times.push(Math.round(held - begun))
      await killed
      await docker('start', id!)
    }
    const { median, max } = summary(times)
    t.diagnostic(
      `${KILLS} kills, until no answer holds the replica: median ${median} ms, max ${max} ms (${times})`,
    )
    assert.ok(median < MAX_MEDIAN_MS)
    await answered(all => all.length === 3, 'all are back')
  })

  test('a replica that is paused leaves the answer, though Docker still names it', async t => {
    const [id] = await containers('echo')
    const [dns] = await containers('dns')
    const address = await addressOf(id!)
    const paused = performance.now()
    await docker('pause', id!)
    try {
      await answered(all => !all.includes(address), `${address} leaves`)
      t.diagnostic(`left ${Math.round(performance.now() - paused)} ms after docker pause`)
      const named = await docker(
        ...[
          'exec',
          dns!,
          'node',
          '-p',
          `dns.promises.resolve4('echo').then(all => console.log(all.join())), ''`,
        ],
      )
      assert.match(named, new RegExp(address.replaceAll('.', '\\.')))
    } finally {
      await docker('unpause', id!)
    }
    const back = await answered(all => all.includes(address), `${address} is back`)
    t.diagnostic(`back ${back} ms after docker unpause`)
  })

  test('more replicas are seen while it runs, and fewer', async t => {
    const begun = performance.now()
    const more = compose('up', '--detach', '--scale=echo=7')
    await answered(all => all.length === 7, 'seven answered')
    const seen = Date.now()
    const total = Math.round(performance.now() - begun)
    await more
    const ids = await containers('echo')
    const started = await Promise.all(
      ids.map(async id => Date.parse((await inspect<Container>(id)).State.StartedAt)),
    )
    const sinceStart = seen - Math.max(...started)
    t.diagnostic(
      `--scale echo=7: answered ${sinceStart} ms after the last start, ${total} ms after the command`,
    )
    assert.ok(sinceStart < MAX_SEEN_MS)
    const firsts: string[] = []
    for (let i = 0; i < 70; i++) firsts.push((await answer())[0]!)
    assert.deepEqual(Object.values(countFirsts(firsts)), Array(7).fill(10))
    assert.deepEqual(complaints(await logs()), [])

    // A client brings nothing back to its declared shape: neither the scale nor what was killed.
    await docker('kill', ids[0]!)
    await answered(all => all.length === 6, 'six answered')
    await compose('run', '--rm', 'client', 'send', 'echo.roundelay.test', 'hello')
    assert.equal((await answer()).length, 6)

    const downFrom = performance.now()
    const fewer = compose('up', '--detach', '--scale=echo=3')
    await answered(all => all.length === 3, 'three answered')
    t.diagnostic(`--scale echo=3: answered ${Math.round(performance.now() - downFrom)} ms after the command`)
    await fewer
    assert.equal((await containers('echo')).length, 3)
  })

  test('a rolling restart costs no client a single echo', async t => {
    const stop = new AbortController()
    t.after(() => stop.abort())
    const failures: string[] = []
    const echoes = { uncached: 0, cached: 0 }
    /** Looks up and echoes, UDP and TCP in turn, until told to stop. */
    const client = async (name: keyof typeof echoes, lookUp: () => Promise<string>) => {
      for (let i = 0; !stop.signal.aborted; i++) {
        const transport: Transport = i % 2 ? 'tcp' : 'udp'
        let address = '?'
        try {
          address = await lookUp()
          await echoOnce(transport, address)
          echoes[name]++
        } catch (error) {
          failures.push(`${name} ${transport} ${address}: ${(error as Error).message}`)
        }
        await sleep(2)
      }
    }
    const clients = [client('uncached', async () => (await answer())[0]!), client('cached', cached())]
    for (const id of await containers('echo')) {
      const address = await addressOf(id)
      const restarted = docker('restart', id)
      const left = await answered(all => !all.includes(address), `${address} leaves`)
      await restarted
      const now = await addressOf(id)
      const back = await answered(all => all.includes(now), `${now} is back`)
      t.diagnostic(`${address} left after ${left} ms, was back ${back} ms after its restart`)
    }
    // Caches still hold the last one's old answer.
    await sleep(1000)
    stop.abort()
    await Promise.all(clients)
    t.diagnostic(`echoes ${JSON.stringify(echoes)}, failed ${failures.length}`)
    assert.deepEqual(failures, [])
    assert.ok(Math.min(echoes.uncached, echoes.cached) >= MIN_ROUNDS)
  })

  test('it ends in good order, and its logs hold no complaint', async t => {
    const begun = performance.now()
    await compose('stop')
    t.diagnostic(`docker compose stop took ${Math.round(performance.now() - begun)} ms`)
    for (const id of (await compose('ps', '--all', '--quiet')).split('\n'))
      assert.equal((await inspect<Container>(id)).State.ExitCode, 0)
    const text = await logs()
    assert.match(text, /"ended"/)
    assert.deepEqual(complaints(text), [])
    await compose('down')
    const left = '--filter=label=com.docker.compose.project=roundelay'
    assert.equal(await docker('ps', '--all', '--quiet', left), '')
    assert.equal(await docker('network', 'ls', '--quiet', left), '')
  })
})

describe('docker compose up after the code has changed', needsEngine, () => {
  const folder = mkdtempSync(join(tmpdir(), 'roundelay-compose-'))
  // Names of its own: the others may stand for what somebody uses.
  const names = ['compose', '--project-name=roundelay-e2e-rebuilt', `--project-directory=${folder}`]
  after(async () => {
    await docker(...names, 'down', '--timeout=1', '--rmi=all')
    rmSync(folder, { recursive: true })
  })

  test('builds the image again and replaces the containers', async () => {
    const project = readFileSync(join(root, 'docker-compose.yml'), 'utf8')
      .replaceAll(/image: roundelay:\S+/g, 'image: roundelay:e2e-rebuilt')
      .replace(/, tags: \[[^\]]*\]/, '')
    for (const name of ['Dockerfile', '.dockerignore', 'package.json', 'package-lock.json', 'LICENSE', 'src'])
      cpSync(join(root, name), join(folder, name), { recursive: true })
    writeFileSync(join(folder, 'docker-compose.yml'), project)
    const up = async () => {
      await docker(...names, 'up', '--detach', '--no-deps', '--scale=echo=1', 'echo')
      return docker(...names, 'ps', '--quiet', 'echo')
    }
    const first = await up()
    assert.equal(await up(), first)
    appendFileSync(join(folder, 'src/cli.ts'), '// A change.\n')
    const second = await up()
    assert.notEqual(second, first)
    assert.match(await docker('exec', second, 'tail', '-1', '/app/src/cli.ts'), /A change/)
  })
})

/** As a resolver's cache: each answer is used for all of its TTL, every address of it in turn. */
function cached(): () => Promise<string> {
  let addresses: string[] = []
  let expires = 0
  let uses = 0
  return async () => {
    if (performance.now() >= expires) {
      const records = await resolver.resolve4(NAME, { ttl: true })
      addresses = records.map(({ address }) => address)
      expires = performance.now() + records[0]!.ttl * 1000
    }
    return addresses[uses++ % addresses.length]!
  }
}

async function echoOnce(transport: Transport, address: string): Promise<void> {
  const limit = AbortSignal.timeout(5000)
  const payload = Buffer.from(`over ${transport} to ${address}`)
  const session = await openEcho(transport, { address, port: ECHO_PORT }, limit)
  try {
    assert.deepEqual(await session.exchange(payload, limit), payload)
  } finally {
    session.close()
  }
}
