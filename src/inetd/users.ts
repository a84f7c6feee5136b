/**
 * Finds in passwd(5) and group(5) what a process needs to run as a user. Pure. Directory services are not
 * asked.
 */

export interface Account {
  readonly name: string
  readonly uid: number
  readonly gid: number
  /** Whether the user is a member of groups other than `gid`. */
  readonly supplementary: boolean
}

/** `passwd` and `group` are the texts of the files. Throws an Error that names the missing user or group. */
export function findAccount(passwd: string, group: string, user: string, groupName?: string): Account {
  const found = rows(passwd).find(([name, , uid, gid]) => name === user && isId(uid) && isId(gid))
  if (!found) throw new Error(`there is no user "${user}" in /etc/passwd`)
  const groups = rows(group).filter(([, , gid]) => isId(gid))
  const named = groupName === undefined ? undefined : groups.find(([name]) => name === groupName)
  if (groupName !== undefined && !named) throw new Error(`there is no group "${groupName}" in /etc/group`)
  const gid = Number(named ? named[2] : found[3])
  const supplementary = groups.some(
    ([, , id, members = '']) => Number(id) !== gid && members.split(',').includes(user),
  )
  return { name: user, uid: Number(found[2]), gid, supplementary }
}

const rows = (text: string): string[][] =>
  text
    .split('\n')
    .filter(line => line && !line.startsWith('#'))
    .map(line => line.split(':'))

/**
 * As libc has it: decimal and in range. The greatest number, (uid_t) -1, is no id. An empty text would be 0,
 * root.
 */
const isId = (text: string | undefined): boolean =>
  text !== undefined && /^\d{1,10}$/.test(text) && Number(text) < 0xffff_ffff
