/** The address of the Kubernetes API and our credentials there: those of a pod, or of a kubeconfig. */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { delimiter, dirname, join, resolve } from 'node:path'
import type { Clock } from '../clock.ts'

export interface Cluster {
  readonly server: URL
  /** The other options of node:https: the authority, and a client certificate if there is one. */
  readonly tls: {
    readonly ca?: string | Buffer
    readonly cert?: string | Buffer
    readonly key?: string | Buffer
    readonly rejectUnauthorized?: boolean
    readonly servername?: string
  }
  /** Called for each request: a pod's token is replaced about every hour. */
  readonly token: () => Promise<string | undefined>
  readonly namespace: string
}

const EXEC_TIMEOUT_MS = 30_000
const MAX_EXEC_OCTETS = 2 ** 20
const SERVICE_ACCOUNT = '/var/run/secrets/kubernetes.io/serviceaccount'

/**
 * The kubeconfig that KUBECONFIG names; else, in a pod, its ServiceAccount; else ~/.kube/config (client-go's
 * order). Of several files in KUBECONFIG the first that exists is used: they are not merged, unlike in
 * kubectl.
 */
export async function loadCluster(signal: AbortSignal, clock: Clock): Promise<Cluster> {
  const { KUBECONFIG, KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = process.env
  const named = KUBECONFIG?.split(delimiter).filter(Boolean) ?? []
  if (named.length === 0 && host && port) return inCluster(host, port, SERVICE_ACCOUNT)
  const paths = named.length > 0 ? named : [join(homedir(), '.kube', 'config')]
  const path = paths.find(path => existsSync(path))
  if (!path) throw new Error(`there is no kubeconfig at ${paths.join(' or ')}`)
  return fromKubeconfig(path, signal, clock)
}

/** Kubernetes, "Accessing the API from a Pod". `folder` holds `token`, `ca.crt` and `namespace`. */
export async function inCluster(host: string, port: string, folder: string): Promise<Cluster> {
  const read = (name: string) => readFile(join(folder, name), 'utf8')
  const [ca, namespace] = await Promise.all([read('ca.crt'), read('namespace')])
  return {
    server: new URL(`https://${host.includes(':') ? `[${host}]` : host}:${port}`),
    tls: { ca },
    token: async () => (await read('token')).trim(),
    namespace: namespace.trim(),
  }
}

/** The current context of one kubeconfig file: certificates, tokens and exec plugins. */
export async function fromKubeconfig(path: string, signal: AbortSignal, clock: Clock): Promise<Cluster> {
  const { parse } = await import('yaml')
  const config = parse(await readFile(path, 'utf8'))
  const named = (list: string, name: string, key: string) => {
    const found = config?.[list]?.find((entry: { name: string }) => entry.name === name)?.[key]
    if (!found) throw new Error(`${path} has no ${key} "${name}"`)
    return found
  }
  if (!config?.['current-context']) throw new Error(`${path} has no current-context`)
  const context = named('contexts', config['current-context'], 'context')
  const cluster = named('clusters', context.cluster, 'cluster')
  if (!URL.canParse(cluster.server)) throw new Error(`${path} has no URL as server of "${context.cluster}"`)
  // `kubectl proxy` needs no user.
  const user = context.user ? named('users', context.user, 'user') : {}
  // Relative paths are relative to the file.
  const file = (name: string) => readFile(resolve(dirname(path), name))
  const content = async (of: Record<string, string>, key: string) =>
    of[`${key}-data`] ? Buffer.from(of[`${key}-data`]!, 'base64') : of[key] ? await file(of[key]) : undefined
  let exec: ExecCredential = user.exec ? await execCredential(user.exec, path, signal, clock) : {}
  const [ca, cert, key] = await Promise.all([
    content(cluster, 'certificate-authority'),
    content(user, 'client-certificate'),
    content(user, 'client-key'),
  ])
  const tls = {
    ca,
    cert: cert ?? exec.clientCertificateData,
    key: key ?? exec.clientKeyData,
    servername: cluster['tls-server-name'],
    rejectUnauthorized: cluster['insecure-skip-tls-verify'] !== true,
  }
  return {
    server: new URL(cluster.server),
    tls: Object.fromEntries(Object.entries(tls).filter(([, value]) => value !== undefined)),
    token: async () => {
      if (user.tokenFile) return (await file(user.tokenFile)).toString().trim()
      if (user.token) return user.token
      if (Date.parse(exec.expirationTimestamp ?? '') <= clock.wallSeconds() * 1000)
        exec = await execCredential(user.exec, path, signal, clock)
      return exec.token
    },
    namespace: context.namespace ?? 'default',
  }
}

interface ExecCredential {
  readonly token?: string
  readonly clientCertificateData?: string
  readonly clientKeyData?: string
  /** RFC 3339 */
  readonly expirationTimestamp?: string
}

/** client-go credential plugins (client.authentication.k8s.io): a program prints the credentials as JSON. */
async function execCredential(
  exec: {
    command: string
    args?: string[]
    env?: { name: string; value: string }[] | null
    apiVersion: string
  },
  path: string,
  signal: AbortSignal,
  clock: Clock,
): Promise<ExecCredential> {
  const extra = Object.fromEntries((exec.env ?? []).map(({ name, value }) => [name, value]))
  const info = { apiVersion: exec.apiVersion, kind: 'ExecCredential', spec: { interactive: false } }
  const command = exec.command.includes('/') ? resolve(dirname(path), exec.command) : exec.command
  const env = { ...process.env, ...extra, KUBERNETES_EXEC_INFO: JSON.stringify(info) }
  const fails = (why: string, cause: unknown): never => {
    throw new Error(`the exec plugin of ${path} ${why}`, { cause })
  }
  const stdout = await output(command, exec.args ?? [], env, signal, clock).catch((error: Error) =>
    fails(error.message, error),
  )
  try {
    return JSON.parse(stdout).status ?? {}
  } catch (error) {
    // The parser's own message would quote what may be a credential.
    return fails('did not print an ExecCredential', error)
  }
}

/**
 * What a program writes to its standard output. Rejects with what it did instead. A program that hangs is
 * killed together with what it has started, and one that asks for input reads the end of it.
 */
function output(
  command: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  signal: AbortSignal,
  clock: Clock,
): Promise<string> {
  return new Promise((resolve, reject) => {
    // In a process group of its own.
    const child = spawn(command, args, { env, detached: true })
    const written = { stdout: '', stderr: '' }
    const settle = (problem?: string) => {
      cancelLimit()
      signal.removeEventListener('abort', onAbort)
      if (problem === undefined) resolve(written.stdout)
      else reject(new Error(problem))
    }
    const kill = (problem: string) => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
      } catch {
        // The group has ended.
      }
      // A process that has left the group may still hold the other end.
      child.stdout.destroy()
      child.stderr.destroy()
      settle(problem)
    }
    const cancelLimit = clock.after(EXEC_TIMEOUT_MS, () => kill(`did not end within ${EXEC_TIMEOUT_MS} ms`))
    const onAbort = () => kill('was ended')
    signal.addEventListener('abort', onAbort)
    if (signal.aborted) onAbort()
    child.stdin.on('error', () => {}).end()
    for (const name of ['stdout', 'stderr'] as const)
      child[name].setEncoding('utf8').on('data', (text: string) => {
        written[name] += text
        if (written[name].length > MAX_EXEC_OCTETS) kill(`wrote more than ${MAX_EXEC_OCTETS} octets`)
      })
    child.on('error', error => settle(`failed: ${error.message}`))
    child.on('close', (code, killedBy) => {
      const why = `failed with ${killedBy ?? `exit code ${code}`}: ${written.stderr.trim()}`
      settle(code === 0 ? undefined : why)
    })
  })
}
