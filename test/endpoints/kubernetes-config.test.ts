import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { after, before, type TestContext, test } from 'node:test'
import type { Clock } from '../../src/clock.ts'
import { kubernetesSource } from '../../src/endpoints/kubernetes.ts'
import {
  type Cluster,
  fromKubeconfig,
  inCluster,
  loadCluster,
} from '../../src/endpoints/kubernetes-config.ts'
import { has } from '../support/process.ts'
import { VirtualClock } from '../support/virtual-clock.ts'
import { follow, refuse, slice, startApi } from './api-server.ts'

const tls = { skip: has('openssl') ? false : 'openssl is not installed' }
const pki = mkdtempSync(join(tmpdir(), 'roundelay-pki-'))
after(() => rmSync(pki, { recursive: true }))
const pem = (name: string) => readFileSync(join(pki, name), 'utf8')

/** Two independent authorities, a server's certificate of the first, and a client's. */
before(() => {
  if (tls.skip) return
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: pki, stdio: 'pipe' })
  const ec = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '3']
  for (const ca of ['ca', 'other'])
    openssl('req', '-x509', ...ec, '-subj', `/CN=${ca}`, '-keyout', `${ca}.key`, '-out', `${ca}.crt`)
  const names = {
    server: 'IP:127.0.0.1,IP:::1,DNS:kubernetes',
    named: 'DNS:kubernetes',
    client: 'DNS:client',
  }
  for (const [name, alt] of Object.entries(names)) {
    const extensions = ['-addext', `subjectAltName=${alt}`]
    const signed = ['-CA', 'ca.crt', '-CAkey', 'ca.key', '-keyout', `${name}.key`, '-out', `${name}.crt`]
    openssl('req', '-x509', ...ec, '-subj', `/CN=${name}`, ...extensions, ...signed)
  }
})

const secure = (name = 'server') => ({ cert: pem(`${name}.crt`), key: pem(`${name}.key`) })

function folder(t: TestContext, files: Readonly<Record<string, string>>): string {
  const path = mkdtempSync(join(tmpdir(), 'roundelay-'))
  t.after(() => rmSync(path, { recursive: true }))
  for (const [name, text] of Object.entries(files)) writeFileSync(join(path, name), text)
  return path
}

const followed = (t: TestContext, load: (signal: AbortSignal, clock: Clock) => Promise<Cluster>) =>
  follow(t, kubernetesSource(undefined, 'echo', load))

/** A kubeconfig for one cluster and one user, in a folder with other files. */
function kubeconfig(
  t: TestContext,
  cluster: object,
  user: object,
  files: Readonly<Record<string, string>> = {},
): string {
  const config = {
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'here',
    contexts: [{ name: 'here', context: { cluster: 'c', user: 'u', namespace: 'farm' } }],
    clusters: [{ name: 'c', cluster }],
    users: [{ name: 'u', user }],
  }
  return join(folder(t, { config: JSON.stringify(config), ...files }), 'config')
}

const plugin = (t: TestContext, script: string): string => {
  const path = join(folder(t, { plugin: `#!/bin/sh\n${script}\n` }), 'plugin')
  chmodSync(path, 0o755)
  return path
}

const exec = (command: string, more: object = {}) => ({
  exec: { apiVersion: 'client.authentication.k8s.io/v1', command, args: null, env: null, ...more },
})
const credential = (given: object) =>
  JSON.stringify({ apiVersion: 'client.authentication.k8s.io/v1', kind: 'ExecCredential', status: given })

const never = new AbortController().signal
const still = new VirtualClock()
const load = (path: string, clock: Clock = still) => fromKubeconfig(path, never, clock)

test(
  'a pod uses its ServiceAccount, whose token is read for each request, over IPv4 and IPv6',
  tls,
  async t => {
    for (const host of ['127.0.0.1', '::1']) {
      const api = await startApi(t, { host, tls: secure() })
      api.put(slice('a', ['10.0.0.1']))
      const files = { token: 'first\n', 'ca.crt': pem('ca.crt'), namespace: 'farm\n' }
      const account = folder(t, files)
      const { has, stop, running, longWatch } = followed(t, () =>
        inCluster(host, new URL(api.url).port, account),
      )
      await has('10.0.0.1 rs')
      await api.until(() => api.watches.size === 1)
      // The kubelet does this long before the old token expires; the running watch is not disturbed.
      writeFileSync(join(account, 'token'), 'second\n')
      await longWatch()
      api.endWatches()
      await api.until(() => api.watched().length === 2 && api.watches.size === 1)
      assert.deepEqual(
        api.asked.map(({ kind, token }) => `${kind} ${token}`),
        ['list first', 'watch first', 'watch second'],
      )
      assert.match(api.asked[0]!.url, /\/namespaces\/farm\//)
      stop.abort()
      await running
    }
  },
)

test(
  'an API with a certificate of another authority is refused, until ca.crt is the right one',
  tls,
  async t => {
    const api = await startApi(t, { tls: secure() })
    api.put(slice('a', ['10.0.0.1']))
    const account = folder(t, { token: 'secret', 'ca.crt': pem('other.crt'), namespace: 'farm' })
    const { reported, has, until } = followed(t, () => inCluster('127.0.0.1', new URL(api.url).port, account))
    await until(() => reported.length >= 3)
    const { host } = new URL(api.url)
    const refused = `the Kubernetes API at ${host}: unable to verify the first certificate`
    for (const what of reported) assert.ok(String(what).startsWith(refused), String(what))
    assert.deepEqual(api.asked, [])
    writeFileSync(join(account, 'ca.crt'), pem('ca.crt'))
    await has('10.0.0.1 rs')
  },
)

test('an account whose files are not there yet is reported and waited for', async t => {
  const account = folder(t, {})
  const { reported, until } = followed(t, () => inCluster('127.0.0.1', '1', account))
  await until(() => reported.length >= 3)
  assert.match(String(reported[0]), /ENOENT.*\/(ca\.crt|namespace)'/)
})

test(
  'the name in the certificate must be that of the API, or tls-server-name; both may be waived',
  tls,
  async t => {
    const api = await startApi(t, { tls: secure('named') })
    const ca = { 'certificate-authority-data': Buffer.from(pem('ca.crt')).toString('base64') }
    const server = api.url
    const cases: readonly (readonly [object, RegExp | undefined])[] = [
      [{ server, ...ca }, /: Hostname\/IP does not match certificate's altnames/],
      [{ server, ...ca, 'tls-server-name': 'kubernetes' }, undefined],
      [{ server, ...ca, 'tls-server-name': 'other' }, /: Hostname\/IP does not match certificate's altnames/],
      [{ server }, /: unable to verify the first certificate/],
      [{ server, 'insecure-skip-tls-verify': false }, /: unable to verify the first certificate/],
      [{ server, 'insecure-skip-tls-verify': true }, undefined],
    ]
    for (const [cluster, refused] of cases) {
      const path = kubeconfig(t, cluster, { token: 'secret' })
      const { reported, until } = followed(t, () => load(path))
      await until(() => reported.length > 0)
      if (refused) assert.match(String(reported[0]), refused)
      else assert.deepEqual(reported[0], [], JSON.stringify(cluster))
    }
  },
)

test(
  'a user of a kubeconfig has a token, a file with one, or a certificate, as data or as files beside it',
  tls,
  async t => {
    const api = await startApi(t, {
      tls: { ...secure(), ca: pem('ca.crt'), requestCert: true, rejectUnauthorized: false },
    })
    const data = (name: string) => Buffer.from(pem(name)).toString('base64')
    const certificate = { 'client-certificate': 'me.crt', 'client-key': 'me.key' }
    const inline = { 'client-certificate-data': data('client.crt'), 'client-key-data': data('client.key') }
    const status = { clientCertificateData: pem('client.crt'), clientKeyData: pem('client.key') }
    const files = {
      'ca.pem': pem('ca.crt'),
      'me.crt': pem('client.crt'),
      'me.key': pem('client.key'),
      token: 'from file\n',
    }
    const script = plugin(t, `cat <<'END'\n${credential(status)}\nEND`)
    const cases: readonly (readonly [object, string | undefined, string | undefined])[] = [
      [{ token: 'given' }, 'given', undefined],
      [{ token: 'given', tokenFile: 'token' }, 'from file', undefined],
      [certificate, undefined, 'client'],
      [inline, undefined, 'client'],
      [{ ...certificate, token: 'given' }, 'given', 'client'],
      [exec(script), undefined, 'client'],
      [{}, undefined, undefined],
    ]
    for (const [user, token, client] of cases) {
      api.asked.length = 0
      const path = kubeconfig(t, { server: `${api.url}/`, 'certificate-authority': 'ca.pem' }, user, files)
      const { reported, until, stop, running } = followed(t, () => load(path))
      await until(() => reported.length > 0)
      stop.abort()
      await running
      assert.deepEqual(
        [reported[0], api.asked[0]!.token, api.asked[0]!.client],
        [[], token, client],
        JSON.stringify(user),
      )
      assert.match(api.asked[0]!.url, /^\/apis\/.*\/namespaces\/farm\//)
    }
  },
)

test('an exec plugin receives what its API defines, and is run again when its token has expired or is refused', async t => {
  const api = await startApi(t)
  const command = plugin(
    t,
    `cd "$(dirname "$0")"
echo x >> runs
cat >> stdin
echo "$1 $STAGE $KUBERNETES_EXEC_INFO" > given
cat answer$(wc -l < runs | tr -d ' ')`,
  )
  const at = join(command, '..')
  const answer = (run: number, status: object) => writeFileSync(join(at, `answer${run}`), credential(status))
  const expired = '2020-01-01T00:00:00Z'
  answer(1, { token: 'one', expirationTimestamp: expired })
  answer(2, { token: 'two', expirationTimestamp: '2999-01-01T00:00:00Z' })
  answer(3, { token: 'three' })
  const path = kubeconfig(
    t,
    { server: api.url },
    exec('./plugin', { args: ['get'], env: [{ name: 'STAGE', value: 'test' }] }),
  )
  // The command is relative to the file.
  writeFileSync(join(at, 'config'), readFileSync(path))
  api.answer = ({ token }, response) =>
    token === 'two' && api.watched().length > 0 && refuse(response, 401, 'Unauthorized')
  const { has, failures } = followed(t, () => load(join(at, 'config')))
  await api.until(() => api.watches.size === 1)
  assert.deepEqual(
    api.asked.map(({ kind, token }) => `${kind} ${token}`),
    ['list two', 'watch two', 'list three', 'watch three'],
  )
  assert.deepEqual(failures(), ['the Kubernetes API answered 401: Unauthorized (the token is not accepted)'])
  const [, first, stage, info] = /^(\S+) (\S+) (.*)\n$/.exec(readFileSync(join(at, 'given'), 'utf8')) ?? []
  assert.deepEqual([first, stage], ['get', 'test'])
  const wanted = {
    apiVersion: 'client.authentication.k8s.io/v1',
    kind: 'ExecCredential',
    spec: { interactive: false },
  }
  assert.deepEqual(JSON.parse(info!), wanted)
  api.put(slice('a', ['10.0.0.1']))
  await has('10.0.0.1 rs')
})

test('an exec plugin that fails is reported, and one that hangs does not delay the end', async t => {
  const server = 'http://127.0.0.1:1'
  const cases: readonly (readonly [string, RegExp])[] = [
    [plugin(t, 'echo no session >&2; exit 3'), /failed with exit code 3: no session$/],
    [plugin(t, 'echo hello'), /did not print an ExecCredential$/],
    ['/nowhere/plugin', /failed: spawn \/nowhere\/plugin ENOENT$/],
  ]
  for (const [command, message] of cases) {
    const path = kubeconfig(t, { server }, exec(command))
    const { reported, until } = followed(t, () => load(path))
    await until(() => reported.length > 0)
    assert.match(String(reported[0]), message)
    assert.ok(String(reported[0]).startsWith(`the exec plugin of ${path} `))
  }
  const mark = join(folder(t, {}), 'started')
  const path = kubeconfig(t, { server }, exec(plugin(t, `echo $$ > ${mark}; exec sleep 600`)))
  const { reported, stop, running } = followed(t, (signal, clock) => fromKubeconfig(path, signal, clock))
  while (!existsSync(mark) || !readFileSync(mark, 'utf8').endsWith('\n')) await new Promise(setImmediate)
  const pid = Number(readFileSync(mark, 'utf8'))
  stop.abort()
  await running
  assert.deepEqual(reported, [])
  await gone(pid)
})

test('a token of an exec plugin is renewed when it has expired', async t => {
  const clock = new VirtualClock(Date.parse('2027-01-15T08:00:00Z') / 1000)
  const command = plugin(
    t,
    `echo x >> "$0.runs"
echo '{"status":{"expirationTimestamp":"2027-01-15T09:00:00Z","token":"'$(wc -l < "$0.runs" | tr -d ' ')'"}}'`,
  )
  const { token } = await load(kubeconfig(t, { server: 'http://127.0.0.1:1' }, exec(command)), clock)
  await clock.advance(3_599_999)
  assert.equal(await token(), '1')
  await clock.advance(1)
  assert.equal(await token(), '2')
})

test('an exec plugin that does not end within 30 s is ended', async t => {
  const clock = new VirtualClock()
  const path = kubeconfig(t, { server: 'http://127.0.0.1:1' }, exec(plugin(t, 'exec sleep 600')))
  const message = `the exec plugin of ${path} did not end within 30000 ms`
  const refused = assert.rejects(load(path, clock), new Error(message))
  while (clock.waiting === 0) await new Promise(resolve => setImmediate(resolve))
  await clock.advance(29_999)
  assert.equal(clock.waiting, 1)
  await clock.advance(1)
  await refused
})

/** Until no process has this id. */
async function gone(pid: number): Promise<void> {
  const alive = () => {
    try {
      return process.kill(pid, 0)
    } catch {
      return false
    }
  }
  while (alive()) await new Promise(setImmediate)
}

test('what an exec plugin has started is killed with it, at its limit and at the end of the source', async t => {
  for (const ends of ['limit', 'abort']) {
    const mark = join(folder(t, {}), 'started')
    const script = plugin(t, `sleep 600 & echo $! > ${mark}; wait`)
    const path = kubeconfig(t, { server: 'http://127.0.0.1:1' }, exec(script))
    const clock = new VirtualClock()
    const stop = new AbortController()
    const refused = assert.rejects(fromKubeconfig(path, stop.signal, clock))
    while (!existsSync(mark) || !readFileSync(mark, 'utf8').endsWith('\n')) await new Promise(setImmediate)
    if (ends === 'limit') await clock.advance(30_000)
    else stop.abort()
    await refused
    await gone(Number(readFileSync(mark, 'utf8')))
    assert.equal(clock.waiting, 0)
  }
})

test('a plugin that has ended, but whose child keeps its output open, is over at the limit', async t => {
  const mark = join(folder(t, {}), 'started')
  const path = kubeconfig(
    t,
    { server: 'http://127.0.0.1:1' },
    exec(plugin(t, `sleep 600 & echo $! > ${mark}`)),
  )
  const clock = new VirtualClock()
  const refused = assert.rejects(load(path, clock), /did not end within 30000 ms$/)
  while (!existsSync(mark) || !readFileSync(mark, 'utf8').endsWith('\n')) await new Promise(setImmediate)
  await clock.advance(30_000)
  await refused
  await gone(Number(readFileSync(mark, 'utf8')))
})

test('an exec plugin that writes without end is killed', async t => {
  const path = kubeconfig(t, { server: 'http://127.0.0.1:1' }, exec(plugin(t, 'exec yes')))
  await assert.rejects(load(path), new Error(`the exec plugin of ${path} wrote more than 1048576 octets`))
})

test('a kubeconfig in which something is missing is refused with what is missing', async t => {
  const whole = {
    'current-context': 'here',
    contexts: [{ name: 'here', context: { cluster: 'c', user: 'u' } }],
    clusters: [{ name: 'c', cluster: { server: 'http://127.0.0.1:1' } }],
    users: [{ name: 'u', user: {} }],
  }
  const cases: readonly (readonly [object | null, string])[] = [
    [null, 'has no current-context'],
    [{}, 'has no current-context'],
    [{ ...whole, 'current-context': '' }, 'has no current-context'],
    [{ ...whole, 'current-context': 'there' }, 'has no context "there"'],
    [{ ...whole, contexts: null }, 'has no context "here"'],
    [{ ...whole, clusters: [] }, 'has no cluster "c"'],
    [{ ...whole, users: [{ name: 'v', user: {} }] }, 'has no user "u"'],
    [{ ...whole, clusters: [{ name: 'c', cluster: { server: 'nowhere' } }] }, 'has no URL as server of "c"'],
  ]
  for (const [config, message] of cases) {
    const path = join(folder(t, { config: JSON.stringify(config) }), 'config')
    await assert.rejects(load(path), new Error(`${path} ${message}`))
  }
  const path = join(
    folder(t, {
      config: JSON.stringify({
        ...whole,
        users: null,
        contexts: [{ name: 'here', context: { cluster: 'c' } }],
      }),
    }),
    'config',
  )
  const { namespace, token, server } = await load(path)
  assert.deepEqual([namespace, await token(), server.href], ['default', undefined, 'http://127.0.0.1:1/'])
})

test('a server below a path receives its requests below that path', async t => {
  const api = await startApi(t)
  for (const below of ['/k8s/clusters/c-1', '/k8s/clusters/c-1/']) {
    api.asked.length = 0
    const path = kubeconfig(t, { server: `${api.url}${below}` }, {})
    const { reported, until, stop, running } = followed(t, () => load(path))
    await until(() => reported.length > 0)
    stop.abort()
    await running
    assert.match(api.asked[0]!.url, /^\/k8s\/clusters\/c-1\/apis\/discovery\.k8s\.io\/v1\//)
  }
})

test('KUBECONFIG comes first, of its files the first that exists; then the pod; then the file at home', async t => {
  const names = ['KUBECONFIG', 'KUBERNETES_SERVICE_HOST', 'KUBERNETES_SERVICE_PORT', 'HOME']
  const kept = Object.fromEntries(names.map(name => [name, process.env[name]]))
  const set = (env: NodeJS.ProcessEnv) => {
    for (const name of names) {
      if (env[name] === undefined) delete process.env[name]
      else process.env[name] = env[name]
    }
  }
  t.after(() => set(kept))
  const server = (n: number) => ({ server: `http://127.0.0.${n}:1` })
  const [one, two] = [1, 2].map(n => kubeconfig(t, server(n), {}))
  const HOME = folder(t, {})
  mkdirSync(join(HOME, '.kube'))
  writeFileSync(join(HOME, '.kube', 'config'), readFileSync(kubeconfig(t, server(3), {})))
  const pod = { KUBERNETES_SERVICE_HOST: '127.0.0.4', KUBERNETES_SERVICE_PORT: '1' }
  const cases: readonly (readonly [NodeJS.ProcessEnv, number])[] = [
    [{ HOME, KUBECONFIG: one }, 1],
    [{ HOME, KUBECONFIG: ['', '/nowhere', two, one].join(delimiter) }, 2],
    [{ HOME, KUBECONFIG: one, ...pod }, 1],
    [{ HOME, KUBECONFIG: '' }, 3],
    [{ HOME }, 3],
  ]
  for (const [env, n] of cases) {
    set(env)
    assert.equal((await loadCluster(never, still)).server.hostname, `127.0.0.${n}`, JSON.stringify(env))
  }
  set({ HOME, ...pod })
  // This machine has no files of a ServiceAccount.
  await assert.rejects(loadCluster(never, still), /serviceaccount/)
  set({ HOME, KUBECONFIG: `/nowhere${delimiter}/nor/here` })
  await assert.rejects(
    loadCluster(never, still),
    new Error('there is no kubeconfig at /nowhere or /nor/here'),
  )
  set({ HOME: '/nowhere' })
  await assert.rejects(
    loadCluster(never, still),
    new Error('there is no kubeconfig at /nowhere/.kube/config'),
  )
})
