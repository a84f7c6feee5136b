/** A fixed list of endpoints. */
import type { Endpoint, Source } from './endpoint.ts'

export function staticSource(endpoints: readonly Endpoint[]): Source {
  return async ({ publish }) => publish(endpoints)
}
