/** Echo that does not answer `quiet`. */
import { echo, NO_REPLY, type Protocol } from '../../src/protocols.ts'

export const silent: Protocol = {
  ...echo,
  name: 'silent',
  module: import.meta.url,
  datagram: (buffer, length) => (Buffer.from(buffer.subarray(0, length)).equals(quiet) ? NO_REPLY : length),
  piece: (buffer, length) => (Buffer.from(buffer.subarray(0, length)).equals(quiet) ? 0 : length),
}

const quiet = Buffer.from('quiet')
