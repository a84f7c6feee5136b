/**
 * The documentation agrees with the program: its tables of flags and metrics, and its links. `WRITE_DOCS=1`
 * writes the tables.
 */
import assert from 'node:assert/strict'
import { existsSync, globSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import {
  envText,
  type Flag,
  type FlagName,
  flags,
  flagText,
  helpText,
  type VerbName,
  verbs,
} from '../src/commands/options.ts'
import { metrics } from '../src/ops/metrics.ts'
import { run } from './support/process.ts'

const root = join(import.meta.dirname, '..')
const reference = join(root, 'docs/reference.md')
const escapePipes = (text: string) => text.replaceAll('|', '\\|')
const table = (rows: string[][]) => rows.map(row => `| ${row.map(escapePipes).join(' | ')} |`).join('\n')

function flagTable(verb: VerbName): string {
  const rows = Object.entries<string | null>(verbs[verb].flags).map(([key, fallback]) => {
    const name = key as FlagName
    const { value, repeat, short }: Flag = flags[name]
    const flag = `${short ? `\`${short}\`, ` : ''}\`${flagText(name)}${value ? ` ${value}` : ''}\``
    const shown = fallback === null || !value ? '' : `\`${fallback}\``
    return [flag, `\`${envText(name)}\``, shown, `${helpText(verb, name)}${repeat ? '; repeatable' : ''}`]
  })
  return table([['flag', 'env', 'default', 'description'], ['---', '---', '---', '---'], ...rows])
}

function metricTable(): string {
  const rows = Object.entries(metrics).map(([name, { type, labels, help }]) => [
    `\`${name}\``,
    type,
    labels.map(l => `\`${l}\``).join(' '),
    help,
  ])
  return table([['metric', 'type', 'labels', 'meaning'], ['---', '---', '---', '---'], ...rows])
}

const blocks: Record<string, string> = { metrics: metricTable() }
for (const verb of Object.keys(verbs) as VerbName[]) blocks[`flags of ${verb}`] = flagTable(verb)

test('the tables of flags and metrics in docs/reference.md are those of the program', () => {
  let text = readFileSync(reference, 'utf8')
  for (const [name, block] of Object.entries(blocks)) {
    const [start, end] = [`<!-- ${name} -->\n`, `<!-- end -->`]
    const from = text.indexOf(start)
    assert.notEqual(from, -1, `docs/reference.md lacks ${start}`)
    const to = text.indexOf(end, from)
    const expected = `${block}\n`
    if (process.env.WRITE_DOCS) text = text.slice(0, from + start.length) + expected + text.slice(to)
    else assert.equal(text.slice(from + start.length, to), expected, name)
  }
  if (process.env.WRITE_DOCS) writeFileSync(reference, text)
})

const documents = globSync('{*.md,docs/**/*.md}', { cwd: root }).sort()
const withoutCode = (markdown: string) => markdown.replaceAll(/^```[\s\S]*?^```$/gm, '')

/** The anchors that GitHub gives to the headings. */
function anchors(markdown: string): Set<string> {
  const headings = [...withoutCode(markdown).matchAll(/^#+ +(.+)$/gm)].map(match => match[1]!)
  return new Set(
    headings.map(heading =>
      heading
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
        .replaceAll(' ', '-'),
    ),
  )
}

test('every relative link in the documentation leads to a file and a heading that exist', () => {
  let count = 0
  for (const document of documents) {
    const text = withoutCode(readFileSync(join(root, document), 'utf8'))
    for (const [link, target = '', anchor] of text.matchAll(/\]\(([^)#\s]*)(?:#([^)\s]+))?\)/g)) {
      if (/^[a-z]+:/.test(target)) continue
      count++
      const path = target === '' ? join(root, document) : join(root, dirname(document), target)
      assert.ok(existsSync(path), `${document}: ${link}`)
      if (anchor) assert.ok(anchors(readFileSync(path, 'utf8')).has(anchor), `${document}: ${link}`)
    }
  }
  assert.ok(count > 20)
})

test('the README is short, and the lines of the documentation end at 110 columns, except in tables and code', () => {
  assert.ok(readFileSync(join(root, 'README.md'), 'utf8').split('\n').length <= 200)
  for (const document of documents)
    for (const [i, line] of withoutCode(readFileSync(join(root, document), 'utf8'))
      .split('\n')
      .entries())
      assert.ok(line.startsWith('|') || line.length <= 110, `${document}: ${line.slice(0, 40)}… (${i + 1})`)
})

test('--help of every verb names its flags, defaults and environment twins, and no others', async () => {
  for (const verb of Object.keys(verbs) as VerbName[]) {
    const { stdout, code } = await run([verb, '--help'])
    assert.equal(code, 0)
    const text = stdout.replace(/\s+/g, ' ')
    const defaults: Record<string, string | null> = verbs[verb].flags
    for (const [key, fallback] of Object.entries(defaults)) {
      const name = key as FlagName
      const { value }: Flag = flags[name]
      const shown = fallback === null || !value ? '' : `[default: ${fallback}] `
      assert.ok(
        text.includes(`${flagText(name)}${value ? ` <${value}>` : ''} ${helpText(verb, name)}`),
        `${verb} ${name}`,
      )
      assert.ok(text.includes(`${shown}(${envText(name)})`), `${verb} ${name}`)
    }
    const named = [...stdout.matchAll(/^ {2}(?:-\w, )?(--[a-z-]+)/gm)].map(match => match[1])
    assert.deepEqual(named, [...Object.keys(defaults).map(name => flagText(name as FlagName)), '--help'])
  }
})
