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
  /** Octets that `datagram` must have in its buffer, however short the datagram is. */
  readonly room: number
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
  room: 0,
  stream(input, output) {
    // `pipe` stops reading while the peer does not read, and passes the half-close on after the last octet.
    input.pipe(output)
  },
  datagram: (_buffer, length) => length,
  piece: (_buffer, length) => length,
}

/** RFC 863: whatever is received is thrown away. */
const discard: Protocol = {
  name: 'discard',
  port: 9,
  module: import.meta.url,
  room: 0,
  stream(input, output) {
    input.on('end', () => output.end()).resume()
  },
  datagram: () => NO_REPLY,
  piece: () => 0,
}

const PRINTABLE = Array.from({ length: 95 }, (_, i) => String.fromCharCode(0x20 + i)).join('')
const LINE_LENGTH = 72

/** RFC 864's pattern: 72 of the 95 printable characters, beginning one further with each line. */
function patternLine(i: number): string {
  const from = i % PRINTABLE.length
  return `${(PRINTABLE + PRINTABLE).slice(from, from + LINE_LENGTH)}\r\n`
}

/** RFC 864: lines without end over TCP, a line for each datagram over UDP, whatever is received. */
function chargen(): Protocol {
  // A stream gets all lines at a time: their beginning comes round again after as many as there are characters.
  const lines = Array.from({ length: PRINTABLE.length }, (_, i) => patternLine(i)).join('')
  let datagrams = 0
  return {
    name: 'chargen',
    port: 19,
    module: import.meta.url,
    room: LINE_LENGTH + 2,
    stream(input, output) {
      const fill = () => {
        while (output.write(lines)) {}
      }
      output.on('drain', fill)
      input.on('end', () => output.off('drain', fill).end()).resume()
      fill()
    },
    datagram: buffer => write(buffer, patternLine(datagrams++)),
    piece: () => 0,
  }
}

/** What time it is: pure code is told. */
export interface Clock {
  /** Whole seconds since 1970, UTC. */
  seconds(): number
  /** As ctime(3) writes it, in local time: `Mon Nov 23 15:33:00 2026`. */
  text(): string
}

/** RFC 867: the time as text, whatever is received. */
const daytime = (clock: Clock): Protocol => said('daytime', 13, () => Buffer.from(`${clock.text()}\r\n`))

/** RFC 868: seconds since 1900 in four octets, whatever is received. */
const time = (clock: Clock): Protocol => said('time', 37, () => secondsSince1900(clock.seconds()))

const SECONDS_1900_TO_1970 = 2_208_988_800

/** Comes round in 2036, as the RFC has it. */
function secondsSince1900(seconds: number): Buffer {
  const octets = Buffer.alloc(4)
  octets.writeUInt32BE((seconds + SECONDS_1900_TO_1970) % 2 ** 32)
  return octets
}

/** A protocol in which the server says one thing and ends. */
function said(name: string, port: number, say: () => Buffer): Protocol {
  return {
    name,
    port,
    module: import.meta.url,
    room: 32,
    stream(input, output) {
      input.resume()
      output.end(say())
    },
    datagram: buffer => write(buffer, say()),
    piece: () => 0,
  }
}

function write(buffer: Uint8Array, reply: string | Buffer): number {
  const octets = Buffer.from(reply)
  buffer.set(octets)
  return octets.length
}

/** The small services of inetd. */
export const smallServices = (clock: Clock): readonly Protocol[] => [
  echo,
  discard,
  chargen(),
  daytime(clock),
  time(clock),
]

/**
 * UDP ports of services that answer whatever they are sent. A datagram "from" one of them is forged or
 * would start an endless exchange between two servers (CERT CA-1996-01, CVE-2024-2169). Port 0 cannot
 * be answered at all.
 */
export const SMALL_SERVICE_PORTS: readonly number[] = [
  0, 7, 13, 17, 19, 37, 53, 69, 123, 161, 389, 1900, 5353, 11211,
]
