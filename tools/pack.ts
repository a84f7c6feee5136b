/**
 * `npm pack` runs this before and after it packs. Node refuses TypeScript below node_modules, so the package holds
 * JavaScript, and its manifest has nothing that is only for the checkout.
 */
import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { manPage } from './man-page.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const manifest = join(root, 'package.json')
const dist = join(root, 'dist')
/** The checkout's manifest, while that of the package is in its place. */
const saved = join(root, '.package.json')

/** Among the others is `private`: the checkout must not be published, a package that was made from it may be. */
const PUBLISHED = [
  'name',
  'version',
  'description',
  'license',
  'type',
  'bin',
  'files',
  'dependencies',
] as const

function publishedManifest(checkout: Readonly<Record<string, unknown>>): object {
  const { optionalDependencies } = JSON.parse(readFileSync(join(root, 'tools/node/package.json'), 'utf8'))
  const majors = Object.values<string>(optionalDependencies).map(version => Number.parseInt(version, 10))
  return {
    ...Object.fromEntries(PUBLISHED.map(key => [key, checkout[key]])),
    man: ['./dist/roundelay.1'],
    engines: { node: `>=${Math.min(...majors)}` },
  }
}

function restore(): void {
  rmSync(dist, { recursive: true, force: true })
  if (existsSync(saved)) renameSync(saved, manifest)
}

function prepare(): void {
  // An earlier run may have been killed between the two steps.
  restore()
  const checkout = JSON.parse(readFileSync(manifest, 'utf8'))
  execFileSync(join(root, 'node_modules/.bin/tsc'), ['--project', join(root, 'tsconfig.build.json')], {
    stdio: 'inherit',
  })
  const isAsset = (path: string) => !path.endsWith('.ts')
  cpSync(join(root, 'src'), dist, { recursive: true, filter: isAsset })
  writeFileSync(join(dist, 'roundelay.1'), manPage(checkout))
  cpSync(manifest, saved)
  writeFileSync(manifest, `${JSON.stringify(publishedManifest(checkout), null, 2)}\n`)
}

const steps: Readonly<Record<string, () => void>> = { prepare, restore }
const step = steps[process.argv[2] ?? '']
if (!step) throw new Error('Usage: pack.ts prepare | restore (npm pack runs both)')
step()
