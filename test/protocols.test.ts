import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  mayAnswer,
  NO_REPLY,
  type Protocol,
  protocol,
  protocolNames,
  SMALL_SERVICE_PORTS,
} from '../src/protocols.ts'

// daytime writes the local time.
process.env.TZ = 'Europe/Vienna'

const clock = { now: Date.parse('2026-11-23T14:33:00Z') / 1000, wallSeconds: () => clock.now }
const named = (name: string): Protocol => protocol(name, clock)
const all = protocolNames.map(named)

/**
 * What a client receives who sends this in one piece and ends, through a buffer of `room` octets; undefined:
 * without end.
 */
function streamed(spoken: Protocol, sent: string, room = 64): string | undefined {
  const MOST = 100
  const session = spoken.session()
  const buffer = Buffer.alloc(Math.max(room, sent.length), 0xff)
  let reply = ''
  const take = (octets: number) => {
    assert.ok(octets >= 0 && octets <= buffer.length, `${octets} octets in ${buffer.length}`)
    reply += buffer.toString('latin1', 0, octets)
    return octets
  }
  if (session.onStart) take(session.onStart(buffer, room))
  if (session.over) return reply
  take(session.onData(buffer, buffer.write(sent, 'latin1'), buffer.length))
  let octets = session.over ? 0 : take(session.onEnd(buffer, room))
  for (let i = 0; !session.over && octets > 0; i++) {
    if (i === MOST) return undefined
    octets = take(session.onDrained?.(buffer, room) ?? 0)
  }
  return reply
}

/** What comes back for a datagram; undefined for nothing. */
function answered(spoken: Protocol, sent: string, room = 2048): Buffer | undefined {
  const octets = Buffer.alloc(Math.max(room, sent.length), 0xff)
  octets.write(sent, 'latin1')
  const length = spoken.datagram(octets, sent.length, room)
  return length === NO_REPLY ? undefined : octets.subarray(0, length)
}

test('the registry has the small services of inetd, each on the port of its RFC', () => {
  assert.deepEqual(
    all.map(({ name, port }) => [name, port]),
    [
      ['echo', 7],
      ['discard', 9],
      ['chargen', 19],
      ['daytime', 13],
      ['time', 37],
    ],
  )
})

test('a name that is not in the registry is an error, even that of a method of every object', () => {
  for (const name of ['unknown', '', 'Echo', 'toString', '__proto__', 'constructor'])
    assert.throws(() => named(name), { message: `there is no protocol "${name}"` })
})

test('every protocol that answers unasked has a port from which no datagram is answered', () => {
  for (const { name, port, datagram } of all)
    if (datagram(Buffer.alloc(100), 0, 100) !== NO_REPLY) assert.ok(!mayAnswer(port, new Set()), name)
})

test('neither ports of small services nor those of the server itself are answered', () => {
  for (const port of SMALL_SERVICE_PORTS) assert.equal(mayAnswer(port, new Set()), false, `${port}`)
  assert.equal(mayAnswer(7007, new Set([7007])), false)
  assert.equal(mayAnswer(7008, new Set([7007])), true)
  assert.equal(mayAnswer(9, new Set()), true, 'discard answers nothing')
})

test('echo (RFC 862) gives back what it receives, and leaves it where it is', () => {
  const echo = named('echo')
  assert.equal(streamed(echo, 'hello'), 'hello')
  assert.equal(streamed(echo, ''), '')
  assert.equal(String(answered(echo, 'hello')), 'hello')
  assert.equal(answered(echo, '')?.length, 0)
  const session = echo.session()
  assert.equal(session.onStart, undefined)
  assert.equal(session.onDrained, undefined)
  const octets = Buffer.from('hello')
  assert.equal(session.onData(octets, 5, 5), 5)
  assert.equal(String(octets), 'hello')
  assert.equal(session.over, false)
})

test('discard (RFC 863) says nothing, and ends when the client does', () => {
  const discard = named('discard')
  assert.equal(streamed(discard, 'hello'.repeat(100_000)), '')
  assert.equal(answered(discard, 'hello'), undefined)
})

const LINES = 95
const PATTERN = Array.from({ length: LINES }, (_, i) =>
  Array.from({ length: 72 }, (_, j) => String.fromCharCode(0x20 + ((i + j) % LINES))).join(''),
)

test('chargen (RFC 864) begins as the pattern in the RFC does', () => {
  assert.equal(PATTERN[0], ` !"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_\`abcdefg`)
  assert.equal(PATTERN[1], `!"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_\`abcdefgh`)
})

test('chargen over TCP is the pattern again and again, whatever the room, until the client ends', () => {
  for (const room of [1, 73, 74, 1000, 7030, 65_536]) {
    const session = named('chargen').session()
    const buffer = Buffer.alloc(room)
    let text = ''
    let octets = session.onStart?.(buffer, room) ?? 0
    while (text.length < 3 * LINES * 74) {
      assert.ok(octets > 0 && octets <= room)
      text += buffer.toString('latin1', 0, octets)
      assert.equal(session.onData(Buffer.from('ignored'), 7, 7), 0)
      assert.equal(session.over, false)
      octets = session.onDrained?.(buffer, room) ?? 0
    }
    text.split('\r\n').forEach((line, i, lines) => {
      const whole = PATTERN[i % LINES]!
      assert.equal(line, i < lines.length - 1 ? whole : whole.slice(0, line.length))
    })
    assert.equal(session.onEnd(buffer, room), 0)
    assert.equal(session.over, true)
  }
})

test('two chargen sessions do not disturb each other', () => {
  const chargen = named('chargen')
  const [a, b] = [chargen.session(), chargen.session()]
  const buffer = Buffer.alloc(100)
  a.onStart?.(buffer, 100)
  b.onStart?.(buffer, 50)
  assert.equal(buffer.toString('latin1', 0, 50), PATTERN[0]!.slice(0, 50))
  b.onDrained?.(buffer, 24)
  assert.equal(buffer.toString('latin1', 0, 24), `${PATTERN[0]!.slice(50)}\r\n`)
})

test('chargen over UDP is a line of the pattern for each datagram, cut to what was received', () => {
  const chargen = named('chargen')
  for (let i = 0; i < 2 * LINES; i++) {
    const line = `${PATTERN[i % LINES]}\r\n`
    assert.equal(String(answered(chargen, 'x'.repeat(i))), line.slice(0, i))
  }
  assert.equal(String(answered(chargen, 'x'.repeat(100), 10)).length, 10, 'nor more than the room')
})

test('over UDP no reply is longer than the request, except those of daytime and time', () => {
  const exceptions: Record<string, number> = { daytime: 26, time: 4 }
  for (const spoken of all)
    for (let length = 0; length < 600; length++) {
      const reply = answered(spoken, 'x'.repeat(length))?.length ?? 0
      const most = exceptions[spoken.name] ?? length
      assert.ok(reply <= most, `${spoken.name}: ${reply} octets for ${length}`)
    }
})

test('daytime (RFC 867) is one line as ctime(3) writes it, whatever it receives', () => {
  const daytime = named('daytime')
  const examples: readonly (readonly [string, string])[] = [
    ['2026-11-23T14:33:00Z', 'Mon Nov 23 15:33:00 2026\r\n'],
    ['2026-07-01T22:05:09.999Z', 'Thu Jul  2 00:05:09 2026\r\n'],
    ['1970-01-01T00:00:00Z', 'Thu Jan  1 01:00:00 1970\r\n'],
  ]
  for (const [date, line] of examples) {
    clock.now = Date.parse(date) / 1000
    for (const sent of ['', 'hello', 'x'.repeat(1000)]) {
      assert.equal(streamed(daytime, sent), line)
      assert.equal(String(answered(daytime, sent)), line)
    }
    assert.equal(line.length, daytime.room)
  }
})

test("time (RFC 868) is four octets, with the RFC's own examples", () => {
  const time = named('time')
  const examples: readonly (readonly [string, number])[] = [
    ['1970-01-01T00:00:00Z', 2_208_988_800],
    ['1976-01-01T00:00:00Z', 2_398_291_200],
    ['1980-01-01T00:00:00Z', 2_524_521_600],
    ['1983-05-01T00:00:00Z', 2_629_584_000],
    ['1983-05-01T00:00:00.999Z', 2_629_584_000],
    // It begins again 2^32 seconds after 1900.
    ['2036-02-07T06:28:15Z', 2 ** 32 - 1],
    ['2036-02-07T06:28:16Z', 0],
    ['2036-02-07T06:28:17Z', 1],
  ]
  for (const [date, seconds] of examples) {
    clock.now = Date.parse(date) / 1000
    const expected = Buffer.alloc(4)
    expected.writeUInt32BE(seconds)
    assert.equal(streamed(time, ''), expected.toString('latin1'), date)
    assert.deepEqual(answered(time, 'anything'), expected, date)
  }
})

test('a reply fits into the room that the protocol asks for', () => {
  for (const spoken of all) {
    const octets = Buffer.alloc(spoken.room)
    assert.ok(spoken.datagram(octets, 0, spoken.room) <= spoken.room, spoken.name)
    assert.notEqual(streamed(spoken, 'hello', spoken.room), undefined, spoken.name)
  }
})
