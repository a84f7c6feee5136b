/**
 * The protocols that the servers speak: echo, discard, chargen, daytime and time. Everything here is pure,
 * and the only time is that of the clock which is handed in, so every server model runs the same code.
 * Threads and child processes receive the name of a protocol and look it up here themselves.
 */
import type { Clock } from './clock.ts'

/**
 * `datagram` returns this where the protocol sends no reply. An empty reply is a reply: RFC 862 asks for it.
 */
export const NO_REPLY = -1

export interface Protocol {
  readonly name: string
  /** The well-known port. */
  readonly port: number
  /**
   * Octets of a reply that does not depend on what was received: every buffer that is handed in has at least
   * this room. 0 where a reply is never longer than what was received.
   */
  readonly room: number
  /**
   * Answers one UDP datagram in place: reads `length` octets of `buffer`, writes at most `room` octets of
   * reply into the same buffer, and returns the length of the reply or `NO_REPLY`.
   */
  datagram(buffer: Uint8Array, length: number, room: number): number
  /** Begins the conversation on one TCP connection. */
  session(): Session
}

/**
 * One TCP connection as the protocol sees it. Each function writes at most `room` octets of reply to the
 * beginning of `buffer`, and returns how many. The server sends them all before it uses the buffer again.
 */
export interface Session {
  /**
   * When true, the server ends the connection after it has sent the last reply. It calls nothing any more.
   */
  readonly over: boolean
  /** The client has connected. Absent where the client speaks first. */
  onStart?(buffer: Uint8Array, room: number): number
  /**
   * Answers one piece of the stream in place, wherever TCP has cut the stream. `room` is at least `length`.
   */
  onData(buffer: Uint8Array, length: number, room: number): number
  /** All that the session gave was sent. Absent where the session never goes on by itself. */
  onDrained?(buffer: Uint8Array, room: number): number
  /** The client sends no more. From now on the session is over as soon as it gives no octets. */
  onEnd(buffer: Uint8Array, room: number): number
}

type WallClock = Pick<Clock, 'wallSeconds'>

const registry = { echo, discard, chargen, daytime, time } as const satisfies Record<
  string,
  (clock: WallClock) => Protocol
>

export type ProtocolName = keyof typeof registry

export const protocolNames = Object.keys(registry) as readonly ProtocolName[]

/** Throws for a name that is not in `protocolNames`. */
export function protocol(name: string, clock: WallClock): Protocol {
  if (!Object.hasOwn(registry, name)) throw new Error(`there is no protocol "${name}"`)
  return registry[name as ProtocolName](clock)
}

/** RFC 862: sends everything back, without touching or copying an octet. */
function echo(): Protocol {
  return {
    name: 'echo',
    port: 7,
    room: 0,
    datagram: (_buffer, length) => length,
    session: () => new ListeningSession(true),
  }
}

/** RFC 863: throws everything away. */
function discard(): Protocol {
  return {
    name: 'discard',
    port: 9,
    room: 0,
    datagram: () => NO_REPLY,
    session: () => new ListeningSession(false),
  }
}

/** The client speaks, and its end is the end of the session. */
class ListeningSession implements Session {
  readonly #echoes: boolean
  over = false

  constructor(echoes: boolean) {
    this.#echoes = echoes
  }

  onData(_buffer: Uint8Array, length: number): number {
    return this.#echoes ? length : 0
  }

  onEnd(): number {
    this.over = true
    return 0
  }
}

const PRINTABLE = Array.from({ length: 95 }, (_, i) => String.fromCharCode(0x20 + i)).join('')
const LINE_OCTETS = 72 + '\r\n'.length

/**
 * RFC 864's pattern: 72 of the 95 printable characters in each line, beginning one character further each
 * time.
 */
function chargenPattern(): Uint8Array {
  const twice = PRINTABLE + PRINTABLE
  const line = (i: number) => `${twice.slice(i, i + LINE_OCTETS - 2)}\r\n`
  return Buffer.from(Array.from(PRINTABLE, (_, i) => line(i)).join(''))
}

/**
 * RFC 864: over TCP lines without end, whatever is received. Over UDP one line for each datagram, cut to the
 * length of the request: a longer reply would let a forged request amplify an attack (US-CERT TA14-017A).
 */
function chargen(): Protocol {
  const pattern = chargenPattern()
  let next = 0
  return {
    name: 'chargen',
    port: 19,
    room: 0,
    datagram(buffer, length, room) {
      const octets = Math.min(length, room, LINE_OCTETS)
      buffer.set(pattern.subarray(next, next + octets))
      next = (next + LINE_OCTETS) % pattern.length
      return octets
    },
    session() {
      let at = 0
      const speak = (buffer: Uint8Array, room: number): number => {
        for (let filled = 0; filled < room; ) {
          const piece = pattern.subarray(at, at + room - filled)
          buffer.set(piece, filled)
          filled += piece.length
          at = (at + piece.length) % pattern.length
        }
        return room
      }
      const session = {
        over: false,
        onStart: speak,
        onData: () => 0,
        onDrained: speak,
        onEnd() {
          session.over = true
          return 0
        },
      }
      return session
    },
  }
}

const DAYTIME_OCTETS = 'Mon Nov 23 15:33:00 2026\r\n'.length

/** RFC 867: the local time as text, in the format of ctime(3). */
function daytime(clock: WallClock): Protocol {
  return oneStatement('daytime', 13, DAYTIME_OCTETS, buffer => {
    const now = new Date(clock.wallSeconds() * 1000)
    // As in "Mon Nov 23 2026"; ctime(3) writes the day with a space where this has a zero.
    const [weekday, month, day = '', year] = now.toDateString().split(' ')
    const clockTime = now.toTimeString().slice(0, 'hh:mm:ss'.length)
    buffer.set(Buffer.from(`${weekday} ${month} ${day.replace(/^0/, ' ')} ${clockTime} ${year}\r\n`))
  })
}

const TIME_OCTETS = 4
const SECONDS_1900_TO_1970 = 2_208_988_800

/** RFC 868: seconds since 1900 as a 32-bit number, which begins again at 0 in 2036. */
function time(clock: WallClock): Protocol {
  return oneStatement('time', 37, TIME_OCTETS, buffer => {
    const seconds = Math.floor(clock.wallSeconds()) + SECONDS_1900_TO_1970
    new DataView(buffer.buffer, buffer.byteOffset).setUint32(0, seconds % 2 ** 32)
  })
}

/** A protocol in which the server makes one statement of `octets` octets, whatever it receives. */
function oneStatement(
  name: string,
  port: number,
  octets: number,
  state: (buffer: Uint8Array) => void,
): Protocol {
  const write = (buffer: Uint8Array): number => {
    state(buffer)
    return octets
  }
  return {
    name,
    port,
    room: octets,
    datagram: write,
    session() {
      const session = {
        over: false,
        onStart(buffer: Uint8Array) {
          session.over = true
          return write(buffer)
        },
        onData: () => 0,
        onEnd: () => 0,
      }
      return session
    },
  }
}

/**
 * UDP ports of services that answer whatever they receive. A datagram "from" one of them is forged, or would
 * start an endless exchange between two servers (CERT CA-1996-01, CVE-2024-2169). Port 0 cannot be answered
 * at all.
 */
export const SMALL_SERVICE_PORTS: readonly number[] = [
  0, 7, 13, 17, 19, 37, 53, 69, 123, 161, 389, 1900, 5353, 11211,
]

/** Whether a datagram from this port may be answered by a server that has these ports itself. */
export const mayAnswer = (peerPort: number, ownPorts: ReadonlySet<number>): boolean =>
  !SMALL_SERVICE_PORTS.includes(peerPort) && !ownPorts.has(peerPort)
