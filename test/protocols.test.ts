import assert from 'node:assert/strict'
import { once } from 'node:events'
import { PassThrough, Readable, Writable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { test } from 'node:test'
import { NO_REPLY, type Protocol, SMALL_SERVICE_PORTS, smallServices } from '../src/protocols.ts'

const clock = { now: 0, seconds: () => clock.now, text: () => 'Mon Nov 23 15:33:00 2026' }
const named = (name: string): Protocol => {
  const found = smallServices(clock).find(protocol => protocol.name === name)
  assert.ok(found, name)
  return found
}

/** What a client gets who sends this and ends. */
function streamed(protocol: Protocol, sent: string): Promise<Buffer> {
  const output = new PassThrough()
  protocol.stream(Readable.from(sent ? [Buffer.from(sent)] : []), output)
  return buffer(output)
}

/** What comes back for a datagram; undefined for nothing. */
function answered(protocol: Protocol, sent: string): Buffer | undefined {
  const octets = Buffer.alloc(Math.max(protocol.room, sent.length), 0xff)
  octets.write(sent, 'latin1')
  const length = protocol.datagram(octets, sent.length)
  return length === NO_REPLY ? undefined : octets.subarray(0, length)
}

test('the small services are those of inetd, each on the port of its RFC', () => {
  assert.deepEqual(
    smallServices(clock).map(({ name, port }) => [name, port]),
    [
      ['echo', 7],
      ['discard', 9],
      ['chargen', 19],
      ['daytime', 13],
      ['time', 37],
    ],
  )
})

test('all that answer unasked are ports from which no datagram is answered', () => {
  for (const { name, port, datagram } of smallServices(clock))
    if (datagram(Buffer.alloc(100), 0) !== NO_REPLY) assert.ok(SMALL_SERVICE_PORTS.includes(port), name)
})

test('echo (RFC 862) gives back what it gets', async () => {
  const echo = named('echo')
  assert.equal(String(await streamed(echo, 'hello')), 'hello')
  assert.equal(String(answered(echo, 'hello')), 'hello')
  assert.equal(answered(echo, '')?.length, 0)
  assert.equal(echo.piece(Buffer.from('hello'), 5), 5)
})

test('discard (RFC 863) says nothing, and ends when the client does', async () => {
  const discard = named('discard')
  assert.equal((await streamed(discard, 'hello'.repeat(100_000))).length, 0)
  assert.equal(answered(discard, 'hello'), undefined)
  assert.equal(discard.piece(Buffer.from('hello'), 5), 0)
})

const LINES = 95
const PATTERN = Array.from({ length: LINES }, (_, i) =>
  Array.from({ length: 72 }, (_, j) => String.fromCharCode(0x20 + ((i + j) % LINES))).join(''),
)

test('chargen (RFC 864) begins as the pattern in the RFC does', () => {
  assert.equal(PATTERN[0], ` !"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_\`abcdefg`)
  assert.equal(PATTERN[1], `!"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_\`abcdefgh`)
})

/** A client that reads, a piece each turn of the event loop, until it has had enough. */
async function readSome(
  protocol: Protocol,
  input: Readable,
  octets: number,
  enough: () => void,
): Promise<string> {
  let text = ''
  const output = new Writable({
    highWaterMark: 1000,
    write(chunk, _encoding, done) {
      text += chunk
      if (text.length > octets) enough()
      setImmediate(done)
    },
  })
  protocol.stream(input, output)
  await once(output, 'finish')
  return text
}

test('chargen over TCP is the whole pattern, again and again, until the client ends', async () => {
  const input = new PassThrough()
  input.write('ignored')
  const text = await readSome(named('chargen'), input, 3 * LINES * 74, () => input.end())
  const lines = text.split('\r\n').slice(0, -1)
  lines.forEach((line, i) => {
    assert.equal(line, PATTERN[i % LINES])
  })
  assert.ok(lines.length >= 3 * LINES)
})

test('chargen writes no more than is taken', () => {
  let written = 0
  const stuck = new Writable({
    highWaterMark: 1000,
    write(chunk) {
      // Never calls back: a client that does not read.
      written += chunk.length
    },
  })
  named('chargen').stream(new PassThrough(), stuck)
  assert.ok(written + stuck.writableLength <= 2 * LINES * 74, `${written} octets and ${stuck.writableLength}`)
})

test('chargen over UDP is one line of the pattern for each datagram, the next each time', () => {
  const chargen = named('chargen')
  for (let i = 0; i < 2 * LINES; i++)
    assert.equal(String(answered(chargen, i % 2 ? 'x'.repeat(i) : '')), `${PATTERN[i % LINES]}\r\n`)
})

test('daytime (RFC 867) is one line, without regard to what it is sent', async () => {
  const daytime = named('daytime')
  for (const sent of ['', 'hello', 'x'.repeat(1000)]) {
    assert.equal(String(await streamed(daytime, sent)), 'Mon Nov 23 15:33:00 2026\r\n')
    assert.equal(String(answered(daytime, sent)), 'Mon Nov 23 15:33:00 2026\r\n')
  }
})

test("time (RFC 868) is four octets, with the RFC's own examples", async () => {
  const time = named('time')
  const examples: readonly (readonly [string, number])[] = [
    ['1970-01-01T00:00:00Z', 2_208_988_800],
    ['1976-01-01T00:00:00Z', 2_398_291_200],
    ['1980-01-01T00:00:00Z', 2_524_521_600],
    ['1983-05-01T00:00:00Z', 2_629_584_000],
    // It comes round: 2^32 seconds after 1900.
    ['2036-02-07T06:28:15Z', 2 ** 32 - 1],
    ['2036-02-07T06:28:16Z', 0],
    ['2036-02-07T06:28:17Z', 1],
  ]
  for (const [date, seconds] of examples) {
    clock.now = Date.parse(date) / 1000
    const expected = Buffer.alloc(4)
    expected.writeUInt32BE(seconds)
    assert.deepEqual(await streamed(time, ''), expected, date)
    assert.deepEqual(answered(time, 'anything'), expected, date)
  }
})

test('a reply fits into the room that is asked for', () => {
  for (const protocol of smallServices(clock)) {
    const octets = Buffer.alloc(protocol.room)
    assert.ok(protocol.datagram(octets, 0) <= protocol.room, protocol.name)
  }
})
