/** How things end. */

/** Waits for `done`. When `deadline` aborts it calls `cut`, which must make `done` resolve. */
export async function untilDeadline(
  done: Promise<unknown>,
  deadline: AbortSignal,
  cut: () => void,
): Promise<void> {
  if (deadline.aborted) cut()
  else deadline.addEventListener('abort', cut, { once: true })
  await done
  deadline.removeEventListener('abort', cut)
}

/** A running server. */
export interface Service {
  readonly name: string
  /**
   * Stops listening, lets open work finish, and cuts it off when `deadline` aborts. Resolves when all is
   * closed.
   */
  close(deadline: AbortSignal): Promise<void>
}
