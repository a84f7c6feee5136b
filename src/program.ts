/** Where the other files of this program are: those that run in a thread or a process of their own. */

/**
 * URL of the file `name` (without its extension) beside the file whose `import.meta.url` is `from`. It keeps the
 * extension of that file: TypeScript in the checkout and in the image, JavaScript in the published package. `tsc`
 * rewrites the specifiers of imports, but not `new URL('x.ts', import.meta.url)`.
 */
export const programUrl = (name: string, from: string): URL =>
  new URL(`${name}${from.slice(from.lastIndexOf('.'))}`, from)

/** Arguments of every Node that we start: without the first, SIGUSR1 opens its inspector to every local user. */
export const nodeArguments: readonly string[] = ['--disable-sigusr1']
