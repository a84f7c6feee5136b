/** ARCHITECTURE.md's rules, checked on the text of the source. */
import assert from 'node:assert/strict'
import { globSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

interface Import {
  /** As it is written: `node:fs`, `koffi`, `./zone.ts`. */
  readonly name: string
  /** The file that it means, as `src/dns/zone.ts`; undefined for packages and Node's modules. */
  readonly path: string | undefined
  /** What stands between `import` and `from`. */
  readonly names: string
  /** A type import is erased: it loads nothing. */
  readonly typeOnly: boolean
}

interface File {
  readonly path: string
  /** The text without comments. */
  readonly code: string
  readonly imports: readonly Import[]
  /** Top-level statements. Biome indents everything else. */
  readonly statements: readonly string[]
}

const files: readonly File[] = globSync('src/**/*.ts', { cwd: root })
  .sort()
  .map(path => {
    const code = withoutComments(readFileSync(join(root, path), 'utf8'))
    return { path, code, imports: importsOf(path, code), statements: code.split(/\n(?=[\w({[`'"/@;])/) }
  })
const byPath = new Map(files.map(file => [file.path, file]))

/** Comments at the start of a line or after code. A `//` inside a string has no blank before it. */
function withoutComments(text: string): string {
  return text.replaceAll(/^\s*\/\*[\s\S]*?\*\/|(?:^|\s)\/\/.*$|\/\*\*.*?\*\//gm, '')
}

function importsOf(path: string, code: string): readonly Import[] {
  const resolve = (name: string) => (name.startsWith('.') ? join(dirname(path), name) : undefined)
  const statements = /^(?:import|export)\s+(type\s+)?(?:([\w*{}\s,]+?)\s+from\s+)?'([^']+)'/gm
  // `import { type A }` is not erased: an import of nothing is left, and loads the file.
  const found = [...code.matchAll(statements)].map(([, type, names = '', name]) => ({
    name: name!,
    path: resolve(name!),
    names,
    typeOnly: type !== undefined,
  }))
  const dynamic = [...code.matchAll(/(\btypeof )?\bimport\('([^']+)'\)/g)].map(([, type, name]) => ({
    name: name!,
    path: resolve(name!),
    names: '',
    typeOnly: type !== undefined,
  }))
  return [...found, ...dynamic]
}

/** Says everything that is wrong at once. */
const none = (problems: readonly string[]) => assert.deepEqual(problems, [])

/**
 * Programs are the files that are run, in a process or in a thread. Only they do anything when they are
 * loaded.
 */
const programs = [
  'src/cli.ts',
  'src/inetd/exec.ts',
  'src/servers/child.ts',
  'src/servers/iterative-thread.ts',
  'src/sys/watcher-thread.ts',
]

/** The folder, or the file directly below src/. */
const layerOf = (path: string) => path.split('/')[1]!.replace(/\.ts$/, '')

const base = [
  'protocols',
  'loop-guard',
  'sys',
  'address',
  'lifecycle',
  'clock',
  'say',
  'errors',
  'compile-cache',
  'program',
]
/** Which siblings a folder may import. `(types)`: only their types. `(pure)`: only their pure files. */
const siblings: Readonly<Record<string, readonly string[]>> = {
  dns: ['endpoints (types)'],
  endpoints: ['client'],
  net: ['dns'],
  servers: ['net'],
  inetd: ['servers', 'net'],
  client: [],
  ops: [],
  lab: ['dns (pure)', 'endpoints (pure)', 'client (pure)'],
}
const layers: Readonly<Record<string, readonly string[]>> = {
  cli: ['commands', ...base],
  commands: [...Object.keys(siblings), ...base],
  ...Object.fromEntries(Object.entries(siblings).map(([name, others]) => [name, [...others, ...base]])),
  sys: ['address', 'program'],
  address: ['errors'],
  lifecycle: ['clock'],
  say: ['clock'],
  clock: [],
  errors: [],
  'compile-cache': [],
  program: [],
  protocols: ['clock'],
  'loop-guard': ['clock'],
}

test('imports point down, and between siblings only along the arrows of the design', () => {
  const wrong = (path: string, { name, path: target, typeOnly }: Import) => {
    if (target === undefined) return []
    if (!byPath.has(target)) return [`${path} imports ${name}, which does not exist`]
    const [from, to] = [layerOf(path), layerOf(target)]
    const arrow = layers[from]?.find(text => text.split(' ')[0] === to)
    if (from === to) return []
    if (!arrow) return [`${path} must not import ${name}`]
    if (arrow.endsWith('(types)') && !typeOnly) return [`${path} may import only types from ${name}`]
    if (arrow.endsWith('(pure)') && !isPure(target))
      return [`${path} must not import ${name}, which is not pure`]
    return []
  }
  none(files.flatMap(({ path, imports }) => imports.flatMap(found => wrong(path, found))))
})

test('no file imports itself through others, type imports included', () => {
  const cycles: string[] = []
  const done = new Set<string>()
  const visit = (path: string, above: readonly string[]) => {
    if (above.includes(path)) cycles.push([...above.slice(above.indexOf(path)), path].join(' → '))
    if (done.has(path) || above.includes(path)) return
    for (const { path: target } of byPath.get(path)?.imports ?? [])
      if (target) visit(target, [...above, path])
    done.add(path)
  }
  for (const { path } of files) visit(path, [])
  none(cycles)
})

/** Files, without their extension, and folders. */
const pure = [
  'protocols',
  'loop-guard',
  'address',
  'dns/',
  'endpoints/choose',
  'endpoints/endpoint',
  'endpoints/health',
  'endpoints/hold',
  'endpoints/resolv-conf',
  'inetd/conf',
  'inetd/entry',
  'inetd/users',
  'servers/pool-size',
  'sys/layouts',
  'client/pace',
  'client/payload',
  'client/report',
  'client/tally',
  'lab/',
]
const isPure = (path: string) =>
  pure.some(name => (name.endsWith('/') ? path.startsWith(`src/${name}`) : path === `src/${name}.ts`))

/** What pure files may import of Node's modules: it computes, and reaches nothing. */
const computes = ({ name, names }: Import) =>
  ['node:util', 'node:crypto', 'node:buffer'].includes(name) ||
  (name === 'node:net' && /^\{\s*(isIP(v[46])?[\s,]*)+\}$/.test(names))

test('pure files reach no socket, timer, process or package, also not through what they import', () => {
  const reaches =
    /\b(process|performance|set(Timeout|Interval|Immediate)|fetch)\b(?!['":])|Date\.now|Date\(\)|Math\.random/
  const problems: string[] = []
  const visit = (file: File, above: readonly string[], reached: Set<string>) => {
    if (reached.has(file.path)) return
    reached.add(file.path)
    const way = [...above, file.path]
    const found = reaches.exec(file.code)
    if (found) problems.push(`${way.join(' → ')}: ${found[0]}`)
    for (const one of file.imports) {
      if (one.typeOnly) continue
      const next = one.path === undefined ? undefined : byPath.get(one.path)
      if (next) visit(next, way, reached)
      else if (!computes(one)) problems.push([...way, one.name].join(' → '))
    }
  }
  for (const file of files) if (isPure(file.path)) visit(file, [], new Set())
  none(problems)
})

test('each package stays in its folder', () => {
  const homes: Readonly<Record<string, readonly string[]>> = {
    koffi: ['sys'],
    dns2: ['net'],
    '@godaddy/terminus': ['ops'],
    pino: ['ops'],
    'pino-pretty': ['ops'],
    'prom-client': ['ops'],
    commander: ['cli'],
    yaml: ['endpoints'],
  }
  const isWrong = (path: string, { name, path: target }: Import) =>
    target === undefined && !name.startsWith('node:') && !homes[name]?.includes(layerOf(path))
  none(
    files.flatMap(({ path, imports }) =>
      imports.filter(found => isWrong(path, found)).map(({ name }) => `${path} must not import ${name}`),
    ),
  )
})

test('there are no barrels and no catch-all files, and only cli.ts ends the process', () => {
  for (const { path, code } of files) {
    assert.doesNotMatch(path, /(index|utils?|types|helpers?|common)\.ts$/)
    assert.doesNotMatch(code, /^export (\*|\{[^}]*\}) from /m, `${path} exports what another file declares`)
    if (path !== 'src/cli.ts') assert.doesNotMatch(code, /process\.exit\(/, path)
  }
})

/** The name of a top-level constant, and what it is initialised with. */
const constantOf = (statement: string) =>
  /^(?:export )?const (\w+)(?:: [\s\S]*?)? =\s+([\s\S]*)$/.exec(statement)

test('no module has state that changes', () => {
  const problems: string[] = []
  for (const { path, statements } of files) {
    // A program that is loaded once, as the whole of its process, has no importers that could be surprised.
    if (path === 'src/cli.ts') continue
    const users = files.filter(file => file.path === path || file.imports.some(found => found.path === path))
    for (const statement of statements) {
      if (/^(export )?(let|var) /.test(statement)) problems.push(`${path}: ${statement.trim()}`)
      const [, name, value] = constantOf(statement) ?? []
      if (!name || !value) continue
      if (/^(<|(async )?(\([^)]*\)|\w+)(: [^=]+)? =>)/.test(value)) continue
      // The exception: sys/ binds C functions at the first call, and always gets the same functions.
      if (/^(lazily|memoize)\(/.test(value) && layerOf(path) !== 'sys')
        problems.push(`${path}: ${name} keeps what it has computed`)
      const changed = new RegExp(
        String.raw`(?<![\w.$])${name}(\.\w+|\[[^\]]*\])*(` +
          String.raw`\.(set|add|delete|clear|push|pop|shift|unshift|splice|sort|reverse|fill|copy|write\w*)\(|` +
          String.raw`(\.\w+|\[[^\]]*\])(\+\+|--| *([-+*/|&^]|\|\||&&|\?\?|<<|>>>?)?=(?![=>])))`,
      )
      for (const user of users) {
        const isShadowed = new RegExp(String.raw`^\s+(const|let) (\w+, |[{[][^=]*\b)?${name}\b`, 'm')
        const found = isShadowed.test(user.code) ? null : changed.exec(user.code)
        if (found) problems.push(`${user.path} changes ${name} of ${path}: ${found[0]}`)
      }
    }
  }
  none(problems)
})

test('to import a file does nothing: only programs act, and only where they are run', () => {
  const declares =
    /^(import|(export )?(type|interface|declare|(async )?function\*?|(abstract )?class|const)) /
  const isRun = /^if \((import\.meta\.main|!isMainThread && workerData)/
  const acts = new RegExp(
    String.raw`(?<![.\w])(process|performance|Date|fetch|koffi\.\w+|enableCompileCache|` +
      'new (Worker|Socket|Server)|set(Timeout|Interval|Immediate)|create(Server|Socket|Connection)|' +
      String.raw`(read|write|open|exists|mkdir|stat)\w*Sync|spawn\w*|fork|exec\w*|await)\b(?!['":])|Math\.random`,
  )
  const problems: string[] = []
  for (const { path, statements } of files) {
    if (path === 'src/cli.ts') continue
    for (const statement of statements) {
      if (/^([}\])]|\s*$)/.test(statement) || (programs.includes(path) && isRun.test(statement))) continue
      // What a function does is done when it is called.
      const [, value = ''] = /^(?:export )?const [\s\S]*? =\s+([\s\S]*)$/.exec(statement) ?? []
      const evaluated = value.replace(/=>[\s\S]*$/, '')
      if (!declares.test(statement) || acts.test(evaluated)) problems.push(`${path}: ${statement.trim()}`)
    }
  }
  none(problems)
})

test('signals are handled in ops/shutdown and cli.ts; inetd alone gives SIGHUP another meaning', () => {
  const handlers: Readonly<Record<string, readonly string[]>> = {
    'src/cli.ts': ['SIGTERM'],
    'src/ops/shutdown.ts': ['SIGTERM'],
    'src/commands/inetd.ts': ['SIGHUP'],
  }
  const handled = /\bprocess[\s\S]{0,80}?\.(?:on|once|addListener)\(\s*(?:'(SIG\w+)'|(signal)\b)/g
  const chained = /\.(?:on|once|addListener)\(\s*'(SIG(?:TERM|INT|HUP|QUIT|USR1|USR2))'/g
  none(
    files.flatMap(({ path, code }) =>
      [...new Set([...code.matchAll(handled), ...code.matchAll(chained)].map(([, name = 'SIGTERM']) => name))]
        .filter(signal => /TERM|INT|HUP|QUIT|USR/.test(signal) && !handlers[path]?.includes(signal))
        .map(signal => `${path} must not handle ${signal}`),
    ),
  )
})
