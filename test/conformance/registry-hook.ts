/**
 * Loaded before a program by `--import`: it then imports the registry of the tests in place of
 * `src/protocols.ts`.
 */
import { registerHooks } from 'node:module'

const real = new URL('../../src/protocols.ts', import.meta.url).href
const ours = new URL('registry.ts', import.meta.url).href

registerHooks({
  resolve(specifier, context, next) {
    const resolved = next(specifier, context)
    const asked = resolved.url === real && !context.parentURL?.includes('/test/')
    return asked ? { ...resolved, url: ours } : resolved
  },
})
