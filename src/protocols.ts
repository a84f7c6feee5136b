/** The protocols that the servers speak: pure, so that every server model runs the same code. */
import type { Readable, Writable } from 'node:stream'

/** Returned by `datagram` where the protocol sends no reply. */
export const NO_REPLY = -1

export interface Protocol {
  readonly name: string
  /** The well-known port. */
  readonly port: number
  /** URL of the file that exports it under its name: how a thread or a process of a server comes by it. */
  readonly module: string
  /** Serves one TCP connection, which is paused: to pipe or resume it is up to this. Must not hold more than the streams' own buffers. */
  stream(input: Readable, output: Writable): void
  /**
   * Answers one UDP datagram in place: reads `length` octets of `buffer`, writes the reply into the
   * same buffer and returns its length in octets, or `NO_REPLY`.
   */
  datagram(buffer: Uint8Array, length: number): number
  /**
   * Answers one piece of a TCP stream in place, however TCP cut it: for servers whose loop is receive, answer,
   * send. Returns the reply's length in octets, 0 where there is none.
   */
  piece(buffer: Uint8Array, length: number): number
}

/** RFC 862: whatever is received is sent back, to the octet. */
export const echo: Protocol = {
  name: 'echo',
  port: 7,
  module: import.meta.url,
  stream(input, output) {
    // `pipe` stops reading while the peer does not read, and passes the half-close on after the last octet.
    input.pipe(output)
  },
  datagram: (_buffer, length) => length,
  piece: (_buffer, length) => length,
}

/**
 * UDP ports of services that answer whatever they are sent. A datagram "from" one of them is forged or
 * would start an endless exchange between two servers (CERT CA-1996-01, CVE-2024-2169). Port 0 cannot
 * be answered at all.
 */
export const SMALL_SERVICE_PORTS: readonly number[] = [
  0, 7, 13, 17, 19, 37, 53, 69, 123, 161, 389, 1900, 5353, 11211,
]
