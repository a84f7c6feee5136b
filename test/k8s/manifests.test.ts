/** The manifests, validated as strictly as can be without a cluster. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { globSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { parseAllDocuments } from 'yaml'
import { resolveOptions } from '../../src/commands/resolve-options.ts'
import { portOf, start } from '../support/process.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))

// biome-ignore lint/suspicious/noExplicitAny: manifests are trees of anything; the schemas below give them types.
type Manifest = any

const parse = (text: string, name: string): Manifest[] =>
  parseAllDocuments(text, { strict: true, uniqueKeys: true }).map(document => {
    assert.deepEqual(document.errors, [], name)
    return document.toJS()
  })
const parseFile = (file: string) => parse(readFileSync(join(root, file), 'utf8'), file)
const files = globSync('k8s/*.yaml', { cwd: root }).sort()
const manifests: Manifest[] = files.flatMap(parseFile)
const extras: Manifest[] = globSync('k8s/extras/*', { cwd: root }).sort().flatMap(parseFile)
const all = (kind: string) => manifests.filter(manifest => manifest.kind === kind)
const one = (kind: string, name: string) => {
  const found = all(kind).filter(manifest => manifest.metadata.name === name)
  assert.equal(found.length, 1, `${kind} ${name}`)
  return found[0]
}
const deployments = () => all('Deployment')
const pod = (deployment: Manifest) => deployment.spec.template.spec
const container = (deployment: Manifest) => pod(deployment).containers[0]
const podLabels = (deployment: Manifest) => deployment.spec.template.metadata.labels
const matches = (selector: Record<string, string>, labels: Record<string, string>) =>
  Object.entries(selector).every(([key, value]) => labels[key] === value)

/** Where kubernetes-models keeps a kind, as in `apps/v1`. */
const moduleOf = ({ apiVersion }: Manifest) => `kubernetes-models/${apiVersion}`

/** Errors of the compiler for manifests as literals of the types made from Kubernetes' OpenAPI: unknown fields too. */
function typeErrors(documents: readonly Manifest[]): string {
  // Below node_modules, so that the types are found and the working tree stays clean.
  const folder = join(root, 'node_modules/.cache/manifests')
  mkdirSync(folder, { recursive: true })
  const imports = documents.map((d, i) => `import type { I${d.kind} as T${i} } from '${moduleOf(d)}'`)
  const constants = documents.map((d, i) => `export const d${i}: T${i} = ${JSON.stringify(d, null, 1)}`)
  writeFileSync(join(folder, 'manifests.ts'), [...imports, ...constants].join('\n'))
  const args = [
    '--noEmit',
    '--strict',
    '--skipLibCheck',
    '--module',
    'nodenext',
    '--ignoreConfig',
    '--types',
    '',
  ]
  const tsc = join(root, 'node_modules/.bin/tsc')
  const { stdout, error } = spawnSync(tsc, [...args, join(folder, 'manifests.ts')], { encoding: 'utf8' })
  rmSync(folder, { recursive: true })
  if (error) throw error
  return stdout
}

test('every manifest is valid under the OpenAPI schema of Kubernetes, and has no field that it does not know', async () => {
  for (const manifest of manifests) {
    const { [manifest.kind]: Model } = await import(moduleOf(manifest))
    new Model(manifest).validate()
  }
  assert.equal(typeErrors(manifests), '')
})

test('the schema check finds unknown fields, wrong types and missing ones, wherever they stand', async () => {
  const spoiled = structuredClone(one('Deployment', 'echo'))
  container(spoiled).readinessProbe.httpGet.pth = '/readyz'
  assert.match(typeErrors([spoiled]), /'pth' does not exist|may only specify known properties/)
  const { Deployment } = await import('kubernetes-models/apps/v1')
  const broken = structuredClone(one('Deployment', 'echo'))
  broken.spec.replicas = 'three'
  assert.throws(() => new Deployment(broken).validate(), /replicas/)
  delete broken.spec.selector
  assert.throws(() => new Deployment(broken).validate(), /selector/)
})

test('kubectl apply -f k8s finds nothing but manifests, the namespace first', () => {
  // kubectl does not read the files of folders in it.
  const names = files.map(file => relative('k8s', file))
  assert.deepEqual(readdirSync(join(root, 'k8s')).sort(), [...names, 'extras'])
  assert.ok(!files.some(file => file.includes('kustomization')))
  assert.equal(manifests[0].kind, 'Namespace')
  for (const { kind, metadata } of manifests.slice(1))
    assert.equal(metadata.namespace, 'roundelay', `${kind} ${metadata.name}`)
  const objects = manifests.map(({ kind, metadata }) => `${kind} ${metadata.name}`)
  assert.deepEqual([...new Set(objects)], objects)
})

test('the kustomization lists each file of the folder, in the order of kubectl apply -f', () => {
  const [kustomization, ...others] = parseFile('kustomization.yaml')
  assert.deepEqual(others, [])
  assert.deepEqual(kustomization, {
    apiVersion: 'kustomize.config.k8s.io/v1beta1',
    kind: 'Kustomization',
    resources: files,
  })
})

const works = (...args: string[]) => spawnSync('kubectl', args).status === 0
const needsKubectl = { skip: works('version', '--client') ? false : 'needs kubectl' }

function kustomize(folder: string): Manifest[] {
  const { status, stdout, stderr } = spawnSync('kubectl', ['kustomize', folder], { encoding: 'utf8' })
  assert.equal(status, 0, stderr)
  return parse(stdout, folder)
}

test('kubectl apply -k applies the same objects as kubectl apply -f', needsKubectl, () => {
  const byName = (a: Manifest, b: Manifest) => key(a).localeCompare(key(b))
  const key = ({ kind, metadata }: Manifest) => `${kind} ${metadata.name}`
  const built = kustomize(root)
  assert.deepEqual(built.toSorted(byName), manifests.toSorted(byName))
  const order = built.map(key)
  assert.ok(order.indexOf('Service dns') < order.indexOf('Deployment dns'))
})

test('everything has the recommended labels, with the version of package.json', () => {
  for (const { kind, metadata } of [...manifests, ...extras]) {
    const recommended = Object.entries(metadata.labels).filter(([key]) =>
      key.startsWith('app.kubernetes.io/'),
    )
    assert.deepEqual(
      Object.fromEntries(recommended),
      {
        'app.kubernetes.io/name': metadata.name,
        'app.kubernetes.io/instance': 'roundelay',
        'app.kubernetes.io/version': version,
        'app.kubernetes.io/part-of': 'roundelay',
      },
      `${kind} ${metadata.name}`,
    )
  }
  for (const deployment of deployments()) assert.equal(container(deployment).image, `roundelay:${version}`)
})

test('selectors match the labels of the pods that they mean, and of no others', () => {
  const selectors: [string, Record<string, string>, string][] = [
    ...deployments().map((d): [string, Record<string, string>, string] => [
      'Deployment',
      d.spec.selector.matchLabels,
      d.metadata.name,
    ]),
    ...all('Service').map((s): [string, Record<string, string>, string] => [
      'Service',
      s.spec.selector,
      s.metadata.name,
    ]),
    ...all('PodDisruptionBudget').map((p): [string, Record<string, string>, string] => [
      'PDB',
      p.spec.selector.matchLabels,
      p.metadata.name,
    ]),
    ...all('NetworkPolicy').map((n): [string, Record<string, string>, string] => [
      'NetworkPolicy',
      n.spec.podSelector.matchLabels,
      n.metadata.name,
    ]),
    ['egress of dns', one('NetworkPolicy', 'dns').spec.egress[1].to[0].podSelector.matchLabels, 'echo'],
    ['spread', pod(one('Deployment', 'echo')).topologySpreadConstraints[0].labelSelector.matchLabels, 'echo'],
    [
      'anti-affinity',
      pod(one('Deployment', 'dns')).affinity.podAntiAffinity
        .preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector.matchLabels,
      'dns',
    ],
  ]
  for (const [what, selector, name] of selectors) {
    const matched = deployments()
      .filter(d => matches(selector, podLabels(d)))
      .map(d => d.metadata.name)
    assert.deepEqual(matched, [name], `${what} of ${name}`)
  }
  const { scaleTargetRef } = one('HorizontalPodAutoscaler', 'echo').spec
  assert.ok(
    all(scaleTargetRef.kind).some(
      d => d.apiVersion === scaleTargetRef.apiVersion && d.metadata.name === scaleTargetRef.name,
    ),
  )
})

test('dns may reach the API server wherever it listens, and nothing else but the replicas', () => {
  const [api, checks, ...others] = one('NetworkPolicy', 'dns').spec.egress
  assert.deepEqual(others, [])
  assert.ok(checks.to)
  // Without `to` the rule is for every destination.
  assert.deepEqual(Object.keys(api), ['ports'])
  assert.deepEqual(
    api.ports.map((p: Manifest) => `${p.port}/${p.protocol}`),
    ['443/TCP', '6443/TCP', '8443/TCP', '16443/TCP'],
  )
  assert.deepEqual(one('NetworkPolicy', 'echo').spec.egress, [])
})

test('named ports are ports of the container, with its protocol; numbers are those that it listens on', () => {
  for (const { metadata, spec } of [...all('Service'), ...all('NetworkPolicy')]) {
    const { ports } = container(one('Deployment', metadata.name))
    const named: [string, string][] = spec.ports
      ? spec.ports.map((p: Manifest) => [p.targetPort, p.protocol])
      : spec.ingress.flatMap((rule: Manifest) => rule.ports.map((p: Manifest) => [p.port, p.protocol]))
    for (const [name, protocol] of named)
      assert.ok(
        ports.some((p: Manifest) => p.name === name && p.protocol === protocol),
        `${metadata.name}: ${name}/${protocol}`,
      )
  }
  const targets = container(one('Deployment', 'echo')).ports.map(
    (p: Manifest) => `${p.containerPort}/${p.protocol}`,
  )
  const egress = one('NetworkPolicy', 'dns').spec.egress[1].ports.map(
    (p: Manifest) => `${p.port}/${p.protocol}`,
  )
  assert.deepEqual(egress.toSorted(), targets.toSorted())
  assert.deepEqual(targets.toSorted(), ['7007/TCP', '7007/UDP', '8080/TCP'])
})

const SERVICE_ADDRESS = '10.96.0.53'

/** The variables of a pod that are ours, with what Kubernetes puts into them. */
function environmentOf(deployment: Manifest): Record<string, string> {
  const ours = container(deployment).env.filter(({ name }: Manifest) => name.startsWith('ROUNDELAY_'))
  return Object.fromEntries(
    ours.map(({ name, value }: Manifest) => [name, value.replace('$(DNS_SERVICE_HOST)', SERVICE_ADDRESS)]),
  )
}

/** The options that a pod's arguments and environment come to, as the program itself reads them. */
const optionsOf = <V extends 'echo' | 'dns'>(verb: V) =>
  resolveOptions(verb, argumentsOf(one('Deployment', verb)), environmentOf(one('Deployment', verb)))

function argumentsOf(deployment: Manifest) {
  const [verb, ...args] = container(deployment).args
  assert.equal(verb, deployment.metadata.name)
  const given: Record<string, unknown> = {}
  for (const arg of args) {
    const [, flag, value] = /^--([a-z-]+)=(.*)$/.exec(arg) ?? assert.fail(arg)
    const name = flag!.replace(/-[a-z]/g, (c: string) => c[1]!.toUpperCase())
    if (['listen', 'service', 'check'].includes(name))
      given[name] = [...((given[name] as string[]) ?? []), value]
    else given[name] = value
  }
  return given
}

test('the arguments are ones that the program takes, and it listens where the ports say', () => {
  const echo = optionsOf('echo')
  const dns = optionsOf('dns')
  const portOf = (name: string, port: string) =>
    container(one('Deployment', name)).ports.find((p: Manifest) => p.name === port).containerPort
  assert.equal(echo.listen[0]!.port, portOf('echo', 'echo-udp'))
  assert.equal(echo.listen[0]!.port, portOf('echo', 'echo-tcp'))
  assert.equal(echo.admin.port, portOf('echo', 'admin'))
  assert.equal(dns.listen[0]!.port, portOf('dns', 'dns-udp'))
  assert.equal(dns.listen[0]!.port, portOf('dns', 'dns-tcp'))
  assert.equal(dns.admin.port, portOf('dns', 'admin'))
  assert.deepEqual(dns.check, [
    { kind: 'udp', port: 7007 },
    { kind: 'http', port: 8080, path: '/readyz' },
  ])
  assert.deepEqual([dns.service?.[0]?.name, dns.service?.[0]?.text], ['echo', 'kubernetes:echo'])
  for (const deployment of deployments()) {
    const { annotations } = deployment.spec.template.metadata
    assert.equal(annotations['prometheus.io/port'], String(portOf(deployment.metadata.name, 'admin')))
    assert.equal(annotations['prometheus.io/path'], '/metrics')
  }
})

test('a pod may take as long as its drain and grace, and drains longer than caches and servers need to forget it', () => {
  const dns = optionsOf('dns')
  const detection = dns.checkInterval * dns.fall + dns.checkTimeout
  for (const name of ['echo', 'dns'] as const) {
    const deployment = one('Deployment', name)
    const { drain, grace } = optionsOf(name)
    assert.ok(drain >= dns.ttl * 1000 + detection, name)
    const most = pod(deployment).terminationGracePeriodSeconds * 1000
    assert.ok(most >= drain + grace && most >= dns.ttl * 1000 + detection + drain, name)
  }
})

test('probes ask routes that the server has, at its admin port', async () => {
  const source = readFileSync(join(root, 'src/ops/http.ts'), 'utf8')
  for (const deployment of deployments())
    for (const [kind, path] of [
      ['startupProbe', '/livez'],
      ['livenessProbe', '/livez'],
      ['readinessProbe', '/readyz'],
    ]) {
      const probe = container(deployment)[kind!]
      assert.deepEqual(probe.httpGet, { path, port: 'admin' })
      assert.ok(source.includes(`'${path}':`))
    }
})

test('the pods keep to Pod Security restricted, which the namespace enforces', () => {
  assert.equal(manifests[0].metadata.labels['pod-security.kubernetes.io/enforce'], 'restricted')
  // The Pod Security Standards, "Restricted", control by control.
  for (const deployment of deployments()) {
    const spec = pod(deployment)
    for (const field of ['hostNetwork', 'hostPID', 'hostIPC', 'initContainers', 'volumes'])
      assert.equal(spec[field], undefined, field)
    assert.equal(spec.securityContext.runAsNonRoot, true)
    assert.ok(spec.securityContext.runAsUser > 0)
    assert.equal(spec.securityContext.seccompProfile.type, 'RuntimeDefault')
    assert.equal(spec.securityContext.sysctls, undefined)
    assert.equal(spec.containers.length, 1)
    const { securityContext, ports } = container(deployment)
    assert.deepEqual(securityContext, {
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
    })
    for (const port of ports) {
      assert.equal(port.hostPort, undefined)
      assert.ok(port.containerPort >= 1024)
    }
    assert.equal(spec.enableServiceLinks, deployment.metadata.name === 'dns')
    assert.equal(spec.automountServiceAccountToken, deployment.metadata.name === 'dns')
    const { requests, limits } = container(deployment).resources
    assert.ok(requests.cpu && requests.memory && limits.memory)
  }
})

test('the rights of dns are those that its source uses, in its namespace, and nobody else has any', () => {
  const [role] = all('Role')
  assert.deepEqual(role.rules, [
    { apiGroups: ['discovery.k8s.io'], resources: ['endpointslices'], verbs: ['list', 'watch'] },
  ])
  const [binding] = all('RoleBinding')
  assert.equal(binding.roleRef.name, role.metadata.name)
  assert.equal(binding.roleRef.kind, 'Role')
  assert.deepEqual(binding.subjects, [{ kind: 'ServiceAccount', name: 'dns', namespace: 'roundelay' }])
  assert.equal(pod(one('Deployment', 'dns')).serviceAccountName, one('ServiceAccount', 'dns').metadata.name)
  assert.equal(all('ClusterRole').length + all('ClusterRoleBinding').length, 0)
  const called = readFileSync(join(root, 'src/endpoints/kubernetes.ts'), 'utf8').matchAll(
    /\/apis?\/[a-z0-9./]+/g,
  )
  assert.deepEqual([...new Set([...called].map(([path]) => path))], ['/apis/discovery.k8s.io/v1/namespaces/'])
})

test('rollouts and disruptions leave enough: no pod goes before its successor is ready', () => {
  for (const deployment of deployments()) {
    assert.equal(deployment.spec.strategy.rollingUpdate.maxUnavailable, 0)
    const budget = one('PodDisruptionBudget', deployment.metadata.name)
    const replicas = deployment.spec.replicas ?? one('HorizontalPodAutoscaler', 'echo').spec.minReplicas
    assert.ok(replicas > budget.spec.maxUnavailable)
    // Old pods end when the new ones are available, and by then those must be in the answer.
    const { checkInterval, checkTimeout, rise } = optionsOf('dns')
    assert.ok(deployment.spec.minReadySeconds * 1000 >= checkInterval * rise + checkTimeout)
  }
})

test('the autoscaler owns the number of replicas: an apply does not set it back', () => {
  const { minReplicas, maxReplicas } = one('HorizontalPodAutoscaler', 'echo').spec
  assert.deepEqual([minReplicas, maxReplicas], [3, 10])
  assert.ok(!('replicas' in one('Deployment', 'echo').spec))
})

test('a client is not pinned to one DNS server, and the headless Service names the pods', () => {
  const { sessionAffinity, sessionAffinityConfig } = one('Service', 'dns').spec
  assert.deepEqual([sessionAffinity, sessionAffinityConfig], [undefined, undefined])
  assert.equal(one('Service', 'echo').spec.clusterIP, 'None')
})

test('server-side apply can follow client-side apply: atomic structures contain their defaults', () => {
  // Atomic structures in which the API server fills in a default, each with the fields that must be written.
  const atomic: Record<string, readonly string[]> = {
    fieldRef: ['apiVersion', 'fieldPath'],
    resourceFieldRef: ['containerName', 'divisor', 'resource'],
    scaleTargetRef: ['apiVersion', 'kind', 'name'],
    roleRef: ['apiGroup', 'kind', 'name'],
  }
  let seen = 0
  const walk = (tree: Manifest) => {
    if (tree === null || typeof tree !== 'object') return
    for (const [key, value] of Object.entries<Manifest>(tree)) {
      if (atomic[key]) {
        seen++
        assert.deepEqual(Object.keys(value).toSorted(), atomic[key].toSorted(), key)
      }
      walk(value)
    }
  }
  manifests.forEach(walk)
  assert.equal(seen, 3 + 3 + 1 + 1)
  // The lists of a NetworkPolicy are atomic as well.
  for (const { spec } of all('NetworkPolicy'))
    for (const { ports } of [...spec.ingress, ...spec.egress])
      for (const port of ports) assert.deepEqual(Object.keys(port), ['port', 'protocol'])
})

test('new dns pods go to different nodes: outgoing pods do not count', () => {
  const { podAffinityTerm } = pod(one('Deployment', 'dns')).affinity.podAntiAffinity
    .preferredDuringSchedulingIgnoredDuringExecution[0]
  assert.deepEqual(podAffinityTerm.matchLabelKeys, ['pod-template-hash'])
})

test('the name server is the Service, which exists before the pods and is in their environment', () => {
  const index = (kind: string) => manifests.indexOf(one(kind, 'dns'))
  assert.ok(index('Service') < index('Deployment'))
  const { env } = container(one('Deployment', 'dns'))
  assert.ok(env.some((e: Manifest) => e.name === 'ROUNDELAY_NS_ADDRESS' && e.value === '$(DNS_SERVICE_HOST)'))
  assert.deepEqual(optionsOf('dns').nsAddress, [SERVICE_ADDRESS])
  // Kubernetes leaves the name of a missing variable as it is written, and the program refuses that.
  const unset = { ROUNDELAY_NS_ADDRESS: '$(DNS_SERVICE_HOST)' }
  assert.throws(() => resolveOptions('dns', {}, unset), /ROUNDELAY_NS_ADDRESS/)
})

test('everything that a Service or a check reaches listens in both IP families', () => {
  for (const name of ['echo', 'dns'] as const) {
    assert.equal(one('Service', name).spec.ipFamilyPolicy, 'PreferDualStack')
    const { listen, admin } = optionsOf(name)
    assert.deepEqual(
      listen.map(({ address }) => address),
      ['0.0.0.0', '::'],
    )
    assert.equal(admin.address, '::')
  }
})

test('an admin address of [::] accepts IPv4 as well, so one address is enough for both families', async t => {
  const { line } = start(t, ['echo', '--listen=127.0.0.1:0', '--admin=[::]:0'])
  const { admin } = await line('echo replica ready')
  for (const host of ['127.0.0.1', '[::1]'])
    assert.equal((await fetch(`http://${host}:${portOf(admin)}/readyz`)).status, 200, host)
})

test('the PodMonitor reads the admin port of every pod', () => {
  assert.deepEqual(
    extras.map(({ kind, metadata }) => `${kind} ${metadata.namespace}/${metadata.name}`),
    ['PodMonitor roundelay/roundelay'],
  )
  const { selector, podMetricsEndpoints, podTargetLabels } = extras[0].spec
  assert.deepEqual(podMetricsEndpoints, [{ port: 'admin', path: '/metrics' }])
  for (const deployment of deployments()) {
    assert.ok(matches(selector.matchLabels, podLabels(deployment)))
    assert.ok(container(deployment).ports.some((p: Manifest) => p.name === 'admin'))
    for (const label of podTargetLabels) assert.ok(label in podLabels(deployment))
  }
})

test('the overlay of the guide sets image, tag, replicas, zone and TTL', needsKubectl, t => {
  const guide = readFileSync(join(root, 'docs/kubernetes.md'), 'utf8')
  const [, overlay] = /```yaml\n(# kustomization\.yaml\n[\s\S]*?)```/.exec(guide) ?? assert.fail('no overlay')
  const folder = mkdtempSync(join(tmpdir(), 'roundelay-overlay-'))
  t.after(() => rmSync(folder, { recursive: true }))
  // The guide's overlay is in a folder beside the checkout; here it is wherever temporary files are.
  const base = relative(folder, root)
  assert.match(overlay!, /^resources: \[\.\.\/roundelay\]$/m)
  writeFileSync(join(folder, 'kustomization.yaml'), overlay!.replace('../roundelay', base))
  const built = kustomize(folder)
  const find = (kind: string, name: string) =>
    built.find(({ kind: k, metadata }) => k === kind && metadata.name === name)
  for (const name of ['echo', 'dns'])
    assert.match(container(find('Deployment', name)).image, /^registry\.example\.com\/.*roundelay:\S+$/)
  assert.equal(find('HorizontalPodAutoscaler', 'echo').spec.minReplicas, 5)
  const given = environmentOf(find('Deployment', 'dns'))
  const { zone, ttl, nsAddress } = resolveOptions('dns', argumentsOf(find('Deployment', 'dns')), given)
  assert.deepEqual([zone, ttl, nsAddress], ['lab.example.com', 2, [SERVICE_ADDRESS]])
})
