/** What the README says of flags and metrics is what the program has. `WRITE_README=1` writes it there. */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
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

const path = new URL('../README.md', import.meta.url)
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

test('the tables of flags and metrics in the README are those of the program', () => {
  let readme = readFileSync(path, 'utf8')
  for (const [name, block] of Object.entries(blocks)) {
    const [start, end] = [`<!-- ${name} -->\n`, `\n<!-- end -->`]
    const from = readme.indexOf(start)
    assert.notEqual(from, -1, `README.md lacks ${start}`)
    const to = readme.indexOf(end, from)
    if (process.env.WRITE_README) readme = readme.slice(0, from + start.length) + block + readme.slice(to)
    else assert.equal(readme.slice(from + start.length, to), block, name)
  }
  if (process.env.WRITE_README) writeFileSync(path, readme)
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
