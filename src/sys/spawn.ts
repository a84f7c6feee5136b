/**
 * Starts programs by posix_spawn(3), which shares the parent's memory until the program begins: Node's own
 * spawn first copies the page tables of a process of 80 MB. Node only waits for children that it started
 * itself, so the end of these is noticed through a pidfd, which becomes readable then: pidfd_open(2), since
 * Linux 5.3.
 */
import { constants } from 'node:os'
import { headers } from './layouts.ts'
import { check, close, lazily } from './libc.ts'

/** Room for posix_spawnattr_t (336 octets in glibc) and posix_spawn_file_actions_t (80), which are opaque. */
const OPAQUE_OCTETS = 512
/** sigset_t, under glibc and musl. */
const SIGSET_OCTETS = 128

const prototypes = {
  posix_spawn:
    'int posix_spawn(void *pid, const char *path, const void *actions, const void *attributes, const char **argv, const char **env)',
  posix_spawn_file_actions_init: 'int posix_spawn_file_actions_init(void *actions)',
  posix_spawn_file_actions_adddup2: 'int posix_spawn_file_actions_adddup2(void *actions, int from, int to)',
  posix_spawn_file_actions_destroy: 'int posix_spawn_file_actions_destroy(void *actions)',
  posix_spawnattr_init: 'int posix_spawnattr_init(void *attributes)',
  posix_spawnattr_setflags: 'int posix_spawnattr_setflags(void *attributes, int16_t flags)',
  posix_spawnattr_setsigdefault: 'int posix_spawnattr_setsigdefault(void *attributes, const void *signals)',
  posix_spawnattr_setsigmask: 'int posix_spawnattr_setsigmask(void *attributes, const void *signals)',
  waitpid: 'int waitpid(int pid, void *status, int options)',
  syscall: 'int64_t syscall(int64_t number, ...)',
} as const

type Calls = ReturnType<ReturnType<typeof lazily<keyof typeof prototypes>>>

export interface Started {
  readonly pid: number
  /** Readable when the program has ended; -1 if there were no descriptors left. The caller closes it. */
  readonly pidfd: number
}

export interface ExitStatus {
  readonly code: number | null
  /** The name of the signal that ended the program. */
  readonly signal: string | null
}

export interface Spawner {
  /**
   * Starts `path` with `fd` as its descriptors 0, 1 and 2, and without any other that is close-on-exec. It
   * gets a session of its own. Throws Node's kind of Error (`code`, `syscall`) if the program cannot be run.
   */
  spawn(fd: number, path: string, argv: readonly string[], env: Readonly<NodeJS.ProcessEnv>): Started
  /** How a program has ended; undefined while it runs. The program remains a zombie until this is asked. */
  exitStatus(program: Started): ExitStatus | undefined
}

/** Undefined on a kernel without pidfds. */
export function createSpawner(): Spawner | undefined {
  const calls = lazily(prototypes)()
  const pidfdOpen = (pid: number): number =>
    Number(calls.syscall(headers.SYS_pidfd_open, 'int', pid, 'int', 0))
  const own = pidfdOpen(process.pid)
  if (own < 0) return undefined
  close(own)
  const attributes = createAttributes(calls)
  return {
    spawn(fd, path, argv, env) {
      const actions = Buffer.alloc(OPAQUE_OCTETS)
      const pid = new Int32Array(1)
      const variables = Object.entries(env).map(([name, value]) => `${name}=${value}`)
      calls.posix_spawn_file_actions_init(actions)
      try {
        for (const to of [0, 1, 2]) calls.posix_spawn_file_actions_adddup2(actions, fd, to)
        // Unlike other calls it returns the errno itself.
        check(
          -calls.posix_spawn(pid, path, actions, attributes, [...argv, null], [...variables, null]),
          'posix_spawn',
        )
      } finally {
        calls.posix_spawn_file_actions_destroy(actions)
      }
      return { pid: pid[0]!, pidfd: pidfdOpen(pid[0]!) }
    },
    exitStatus({ pid }) {
      const status = new Int32Array(1)
      return calls.waitpid(pid, status, headers.WNOHANG) === pid ? decodeStatus(status[0]!) : undefined
    },
  }
}

/** A session of its own, and every signal as a program expects it (Node ignores SIGPIPE), none blocked. */
function createAttributes(calls: Calls): Buffer {
  const { POSIX_SPAWN_SETSID, POSIX_SPAWN_SETSIGDEF, POSIX_SPAWN_SETSIGMASK } = headers
  const flags = POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK
  const attributes = Buffer.alloc(OPAQUE_OCTETS)
  calls.posix_spawnattr_init(attributes)
  calls.posix_spawnattr_setflags(attributes, flags)
  calls.posix_spawnattr_setsigdefault(attributes, Buffer.alloc(SIGSET_OCTETS, 0xff))
  calls.posix_spawnattr_setsigmask(attributes, Buffer.alloc(SIGSET_OCTETS))
  return attributes
}

/** WIFEXITED, WEXITSTATUS and WTERMSIG of <sys/wait.h>. */
function decodeStatus(status: number): ExitStatus {
  const number = status & 0x7f
  if (number === 0) return { code: (status >> 8) & 0xff, signal: null }
  const signal = Object.entries(constants.signals).find(([, value]) => value === number)?.[0]
  return { code: null, signal: signal ?? `signal ${number}` }
}
