/** The values of a verb's options: from the command line, the environment and the defaults of the table. */
import { Expected, UsageError } from '../errors.ts'
import {
  envText,
  type Flag,
  type FlagName,
  flags,
  flagText,
  type Options,
  type VerbName,
  verbs,
} from './options.ts'

/** Flag before environment before default. An empty environment variable counts as not set. */
export function resolveOptions<V extends VerbName>(
  verb: V,
  given: Readonly<Record<string, unknown>>,
  env: NodeJS.ProcessEnv,
): Options<V> {
  const options: Record<string, unknown> = {}
  const set = new Map<FlagName, 'flag' | 'environment'>()
  for (const [key, fallback] of Object.entries<string | null>(verbs[verb].flags)) {
    const name = key as FlagName
    const flag: Flag = flags[name]
    const fromEnv = env[envText(name)]?.trim() || undefined
    if (given[name] !== undefined) set.set(name, 'flag')
    else if (fromEnv !== undefined) set.set(name, 'environment')
    const [origin, raw] =
      given[name] !== undefined ? [flagText(name), given[name]] : [envText(name), fromEnv ?? fallback]
    if (raw === null || raw === undefined) continue
    const parse = (text: string) => parseNamed(origin, text, flag.parse)
    const texts = Array.isArray(raw) ? raw.map(String) : String(raw).split(/\s+/).filter(Boolean)
    options[name] = flag.repeat ? texts.map(parse) : parse(String(raw))
  }
  return { ...options, given: set } as unknown as Options<V>
}

/** The value of one text, or the error that names it, where it came from and what was expected. */
export function parseNamed<T>(origin: string, text: string, parse: (text: string) => T): T {
  try {
    return parse(text)
  } catch (error) {
    if (!(error instanceof Expected)) throw error
    throw new UsageError(`Cannot parse ${origin} "${text}": expected ${error.message}`)
  }
}
