/** Where Node keeps compiled code, for this process and for those that it starts. */
import { lstatSync, mkdirSync, realpathSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, isAbsolute, join } from 'node:path'

/** What the rule needs to know of a folder. */
export interface Folder {
  readonly uid: number
  readonly mode: number
}

/**
 * Whether code in a folder can only be from `uid` or root. `path` has no symbolic links, and
 * `folderAt` describes it and its parents. Node checks only a CRC: who can write to the cache runs code as us.
 */
export function isTrusted(path: string, uid: number, folderAt: (path: string) => Folder): boolean {
  if (!isAbsolute(path) || path === '/tmp' || path.startsWith('/tmp/')) return false
  for (let at = path; ; at = dirname(at)) {
    const folder = folderAt(at)
    if ((folder.uid !== uid && folder.uid !== 0) || (folder.mode & 0o022) !== 0) return false
    if (at === dirname(at)) break
  }
  // The folder itself must not even be read by others, which shows that we created it.
  return (folderAt(path).mode & 0o777) === 0o700
}

/**
 * The folder that the environment names, which is the decision of the one who set it; otherwise a private folder
 * of this user. Undefined where there is none that is safe: Node's own default, in the folder for temporary
 * files, could have been created and filled by anybody.
 */
export function compileCacheFolder(env: NodeJS.ProcessEnv = process.env): string | undefined {
  if (env.NODE_COMPILE_CACHE) return env.NODE_COMPILE_CACHE
  const uid = process.getuid?.()
  if (uid === undefined) return undefined
  try {
    const home = env.HOME ?? homedir()
    // `sudo` and `su` may keep HOME, whose owner is then another user.
    if (!isAbsolute(home) || lstatSync(realpathSync(home)).uid !== uid) return undefined
    const wanted = join(env.XDG_CACHE_HOME || join(home, '.cache'), 'roundelay')
    if (!isAbsolute(wanted)) return undefined
    mkdirSync(wanted, { recursive: true, mode: 0o700 })
    const folder = realpathSync(wanted)
    return isTrusted(folder, uid, lstatSync) ? folder : undefined
  } catch {
    // There is no such folder, it cannot be created, or the user has no home, as in containers.
    return undefined
  }
}

/**
 * For the environment of a child that is Node: in force before its first file is loaded, a third less memory
 * each.
 */
export function compileCache(): { readonly NODE_COMPILE_CACHE?: string } {
  const folder = compileCacheFolder()
  return folder === undefined ? {} : { NODE_COMPILE_CACHE: folder }
}
