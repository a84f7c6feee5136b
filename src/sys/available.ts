/** Whether this machine can use the rest of this folder. Callers import it only after this check. */

/** Undefined when the Linux socket API can be called; otherwise the reason why it cannot. */
export async function whyUnavailable(): Promise<string | undefined> {
  const { platform, arch } = process
  if (platform !== 'linux') return `this is ${platform}, not Linux`
  if (arch !== 'x64' && arch !== 'arm64')
    return `the layouts of ${arch} are not known, only those of x64 and arm64`
  try {
    await import('./libc.ts')
    return undefined
  } catch (error) {
    return `koffi cannot be loaded: ${(error as Error).message}`
  }
}
