/** ARCHITECTURE.md's rules, read off the import lines. */
import assert from 'node:assert/strict'
import { globSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { test } from 'node:test'

const root = new URL('..', import.meta.url).pathname
const files = globSync('src/**/*.ts', { cwd: root }).map(path => {
  const text = readFileSync(join(root, path), 'utf8')
  const code = text.replaceAll(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '')
  const clause = String.raw`(?:^(?:import|export)\s+(?:type\s+)?(?:[\w*{}\s,]+?\sfrom\s+)?|\bimport\()`
  const imports = [...text.matchAll(new RegExp(`${clause}['"]([^'"]+)['"]`, 'gm'))]
  const typeOnly = [...text.matchAll(/^import type\b[^'"]*?['"]([^'"]+)['"]/gm)].map(match => match[1])
  return { path, text, code, imports: imports.map(match => match[1]), typeOnly }
})

/** Folder or file → the ones it may import, besides its own. */
const base = [
  'protocols',
  'sys',
  'address',
  'lifecycle',
  'clock',
  'say',
  'errors',
  'compile-cache',
  'program',
]
const siblings: Record<string, readonly string[]> = {
  // net: until `src/dns` has an encoder of its own.
  dns: ['endpoints', 'net'],
  endpoints: ['client'],
  net: ['dns'],
  servers: ['net'],
  inetd: ['servers', 'net'],
  client: [],
  ops: [],
  lab: ['dns', 'endpoints', 'client'],
}
const below: Record<string, readonly string[]> = {
  cli: ['commands', ...base],
  commands: [...Object.keys(siblings), ...base],
  ...Object.fromEntries(Object.entries(siblings).map(([name, others]) => [name, [...others, ...base]])),
  sys: ['address', 'program'],
  address: ['errors'],
  lifecycle: [],
  say: [],
  clock: [],
  errors: [],
  'compile-cache': [],
  program: [],
  protocols: ['clock'],
}
const layerOf = (path: string) => path.split('/')[1]!.replace(/\.ts$/, '')

test('imports point down', () => {
  for (const { path, imports } of files)
    for (const target of imports.filter(name => name!.startsWith('.'))) {
      const from = layerOf(path)
      const to = layerOf(join(dirname(path), target!))
      assert.ok(from === to || below[from]?.includes(to), `${path} must not import ${target}`)
    }
})

test('pure files import no sockets, timers or process, and ask for neither time nor randomness', () => {
  const pure = [
    'protocols',
    'dns/name',
    'dns/query',
    'dns/rotation',
    'dns/zone',
    'dns/respond',
    'endpoints/endpoint',
    'endpoints/health',
    'endpoints/choose',
    'inetd/conf',
    'inetd/entry',
    'servers/pool-size',
    'inetd/users',
    'sys/layouts',
    'client/report',
    'client/payload',
  ]
  for (const name of pure) {
    const file = files.find(({ path }) => path === `src/${name}.ts`)
    assert.ok(file, `${name} is gone`)
    const { code, imports, typeOnly } = file
    assert.deepEqual(
      imports.filter(i => i!.startsWith('node:') && !typeOnly.includes(i)),
      [],
      name,
    )
    assert.doesNotMatch(
      code,
      /\b(process|performance|setTimeout|setInterval|setImmediate)\b|\bDate(\.|\(\))|Math\.random/,
      name,
    )
  }
})

test('each library stays in its folder', () => {
  const homes = {
    koffi: 'sys',
    dns2: ['net', 'dns'],
    '@godaddy/terminus': 'ops',
    yaml: 'endpoints',
    commander: 'cli',
    pino: 'ops',
    'prom-client': 'ops',
  }
  for (const [library, home] of Object.entries(homes))
    for (const { path, imports } of files)
      if (imports.includes(library))
        assert.ok([home].flat().includes(layerOf(path)), `${path} must not import ${library}`)
})

test('there are no barrels and no catch-all files, and only cli.ts ends the process', () => {
  for (const { path, text } of files) {
    assert.doesNotMatch(path, /(index|utils?|types|helpers?|common)\.ts$/)
    if (path !== 'src/cli.ts') assert.doesNotMatch(text, /process\.exit\(/, path)
  }
})
