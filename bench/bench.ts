/** `npm run bench NAME`: measures, prints a table, and stops by itself. */
import { rmSync } from 'node:fs'

const benches: Record<string, () => Promise<{ run: () => Promise<void> }>> = {
  models: () => import('./models.ts'),
  inetd: () => import('./inetd.ts'),
  snapshot: () => import('./snapshot.ts'),
}

const name = process.argv[2] ?? ''
if (!Object.hasOwn(benches, name)) {
  process.stderr.write(`Cannot run bench "${name}": expected one of ${Object.keys(benches).join(', ')}\n`)
  process.exit(2)
}
const { run } = await benches[name]!()
const { machine, workspace } = await import('./measure.ts')
try {
  process.stdout.write(`${machine()}\n\n`)
  await run()
} finally {
  rmSync(workspace(), { recursive: true, force: true })
}
