/** Where the Kubernetes API is and who we are there: as a pod, or as a kubeconfig says. */
import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { delimiter, dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'

export interface Cluster {
  readonly server: URL
  /** What node:https needs besides: `ca`, and a client certificate where there is one. */
  readonly tls: {
    readonly ca?: string | Buffer
    readonly cert?: string | Buffer
    readonly key?: string | Buffer
    readonly rejectUnauthorized?: boolean
    readonly servername?: string
  }
  /** Read anew for each request: a pod's token is replaced every hour or so. */
  readonly token: () => Promise<string | undefined>
  readonly namespace: string
}

const SERVICE_ACCOUNT = '/var/run/secrets/kubernetes.io/serviceaccount'

/** In a pod its ServiceAccount, else the kubeconfig (`KUBECONFIG` or ~/.kube/config). */
export function loadCluster(): Promise<Cluster> {
  const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = process.env
  if (host && port) return inCluster(host, port, SERVICE_ACCOUNT)
  const path = process.env.KUBECONFIG?.split(delimiter).find(Boolean) ?? join(homedir(), '.kube', 'config')
  return fromKubeconfig(path)
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
export async function fromKubeconfig(path: string): Promise<Cluster> {
  const { parse } = await import('yaml')
  const config = parse(await readFile(path, 'utf8'))
  const named = (list: string, name: string, key: string) => {
    const found = config?.[list]?.find((entry: { name: string }) => entry.name === name)?.[key]
    if (!found) throw new Error(`${path} has no ${key} "${name}"`)
    return found
  }
  const context = named('contexts', config?.['current-context'], 'context')
  const cluster = named('clusters', context.cluster, 'cluster')
  const user = named('users', context.user, 'user')
  // Relative paths are relative to the file.
  const file = (name: string) => readFile(resolve(dirname(path), name))
  const content = async (of: Record<string, string>, key: string) =>
    of[`${key}-data`] ? Buffer.from(of[`${key}-data`], 'base64') : of[key] ? await file(of[key]) : undefined
  const exec = user.exec ? await execCredential(user.exec, path) : {}
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
    token: async () =>
      user.tokenFile ? (await file(user.tokenFile)).toString().trim() : (user.token ?? exec.token),
    namespace: context.namespace ?? 'default',
  }
}

interface ExecCredential {
  readonly token?: string
  readonly clientCertificateData?: string
  readonly clientKeyData?: string
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
): Promise<ExecCredential> {
  const extra = Object.fromEntries((exec.env ?? []).map(({ name, value }) => [name, value]))
  const info = { apiVersion: exec.apiVersion, kind: 'ExecCredential', spec: { interactive: false } }
  const command = exec.command.includes('/') ? resolve(dirname(path), exec.command) : exec.command
  const env = { ...process.env, ...extra, KUBERNETES_EXEC_INFO: JSON.stringify(info) }
  const { stdout } = await promisify(execFile)(command, exec.args ?? [], { env })
  return JSON.parse(stdout).status ?? {}
}
