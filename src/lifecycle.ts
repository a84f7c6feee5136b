/** How things end. */

/** Waits for `done`; calls `cut`, which must bring it about, when `deadline` aborts. */
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
  /** Stops listening, finishes what is open, cuts it off when `deadline` aborts; resolves when all is closed. */
  close(deadline: AbortSignal): Promise<void>
}
