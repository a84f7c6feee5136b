/**
 * DNS messages made octet by octet and asked over real sockets, and the zone they are asked of; for tests.
 */
import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { connect, isIPv6, type Socket } from 'node:net'
import type { TestContext } from 'node:test'
import { Packet } from 'dns2'
import { assemble, compilePart, type Zone } from '../../src/dns/compiled.ts'
import { createContext, MAX_MESSAGE_OCTETS, respond } from '../../src/dns/respond.ts'
import { policies } from '../../src/dns/rotation.ts'
import {
  basePart,
  COUNTS_PER_ENDPOINT,
  CURSORS_PER_SERVICE,
  hostsPart,
  servicePart,
  type ZoneOptions,
} from '../../src/dns/zone.ts'
import type { EndpointStatus, Snapshot } from '../../src/endpoints/pool.ts'

export const APEX = 'roundelay.test'
export const SERVICE = `echo.${APEX}`
export const IXFR = 251
export const { TYPE, CLASS, RCODE } = Packet

/** A generator of numbers in [0, 1) that gives the same ones each time (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

const u16 = (...values: number[]): Buffer =>
  Buffer.from(values.flatMap(value => [(value >> 8) & 0xff, value & 0xff]))

/** Labels as they are, so that one may hold a dot. */
export const labels = (...list: string[]): Buffer =>
  Buffer.concat([
    ...list.map(label => Buffer.concat([Buffer.from([label.length]), Buffer.from(label, 'latin1')])),
    Buffer.from([0]),
  ])

export const nameOctets = (name: string): Buffer => labels(...name.split('.').filter(Boolean))

/** A name of exactly so many octets on the wire, within the zone. */
export function longName(octets: number): string {
  let prefix = ''
  for (let left = octets - nameOctets(APEX).length; left > 0; ) {
    const label = Math.min(left === 65 ? 62 : left - 1, 63)
    prefix += `${'x'.repeat(label)}.`
    left -= label + 1
  }
  return prefix + APEX
}

export interface OptOptions {
  readonly size?: number
  readonly version?: number
  readonly flags?: number
  readonly rdata?: Buffer
}

/** An OPT pseudo-record (RFC 6891 6.1.2). */
export const opt = ({ size = 1232, version = 0, flags = 0, rdata = Buffer.alloc(0) }: OptOptions = {}) =>
  Buffer.concat([Buffer.from([0]), u16(TYPE.EDNS, size, version, flags, rdata.length), rdata])

export const option = (code: number, data: string | Buffer = ''): Buffer =>
  Buffer.concat([u16(code, data.length), Buffer.from(data)])

export const NSID = option(3)

/** An A record of the question's own name. */
export const someRecord = Buffer.concat([u16(0xc00c, TYPE.A, CLASS.IN, 0, 5, 4), Buffer.from([10, 0, 0, 1])])

export interface QueryOptions {
  readonly id?: number
  /** Octets 2 and 3. */
  readonly flags?: number
  readonly class?: number
  /** What stands behind the question, section by section. */
  readonly answers?: readonly Buffer[]
  readonly authorities?: readonly Buffer[]
  readonly additionals?: readonly Buffer[]
  readonly questionCount?: number
}

export const RD = 0x0100

/** A name in text or in octets; RD is set as dig does. */
export function query(name: string | Buffer, type: number, options: QueryOptions = {}): Buffer {
  const { id = 0xbeef, flags = RD, answers = [], authorities = [], additionals = [] } = options
  const counts = [options.questionCount ?? 1, answers.length, authorities.length, additionals.length]
  return Buffer.concat([
    u16(id, flags, ...counts),
    typeof name === 'string' ? nameOctets(name) : name,
    u16(type, options.class ?? CLASS.IN),
    ...answers,
    ...authorities,
    ...additionals,
  ])
}

/** A query with an OPT. */
export const ednsQuery = (name: string, type: number, edns: OptOptions = {}, options: QueryOptions = {}) =>
  query(name, type, { ...options, additionals: [opt(edns)] })

/** `10.0.0.1`, `10.0.0.1*3` with a weight. */
export function endpoint(text: string, more: Partial<EndpointStatus> = {}): EndpointStatus {
  const [address, weight = '1'] = text.split('*')
  return {
    address: address!,
    family: isIPv6(address!) ? 6 : 4,
    weight: Number(weight),
    state: 'up',
    terminating: false,
    leaving: false,
    answered: true,
    detail: '',
    activeConnections: undefined,
    ...more,
  }
}

export const snapshot = (
  endpoints: readonly (string | EndpointStatus)[],
  more: Partial<Snapshot> = {},
): Snapshot => ({
  service: SERVICE,
  ready: true,
  failedOpen: false,
  endpoints: endpoints.map(each => (typeof each === 'string' ? endpoint(each) : each)),
  ...more,
})

export const addresses = (count: number): string[] =>
  Array.from({ length: count }, (_, i) => `10.0.${i >> 8}.${i & 0xff}`)

export const policy = (name: string) => {
  const found = policies.find(each => each.name === name)
  assert.ok(found, name)
  return found
}

export const zoneOptions: ZoneOptions = {
  apex: APEX,
  ttlSeconds: 5,
  nsAddresses: ['127.0.0.1'],
  port: 7007,
  policy: policy('cyclic'),
  maxAnswers: Number.POSITIVE_INFINITY,
  serverId: 'test-server',
  version: '1.2.3',
}

interface ResponderOptions extends Partial<ZoneOptions> {
  readonly serial?: number
  readonly allocate?: (octets: number) => ArrayBufferLike
}

/**
 * The parts of a zone with these services, where an endpoint's counts stand in the order of the first
 * Snapshot.
 */
export function parts(snapshots: readonly Snapshot[], options: ZoneOptions, serial = 7) {
  const places = new Map<string, number>()
  const firstCount = (address: string) => {
    if (!places.has(address)) places.set(address, COUNTS_PER_ENDPOINT * places.size)
    return places.get(address)!
  }
  const services = snapshots.flatMap((snapshot, i) => [
    servicePart(options, snapshot, { firstCursor: CURSORS_PER_SERVICE * i, firstCount }),
    hostsPart(options, snapshot),
  ])
  return [basePart(options, serial), ...services]
}

export function compiled(snapshots: readonly Snapshot[], more: ResponderOptions = {}): Zone {
  const { serial, allocate } = more
  const options = { ...zoneOptions, ...more }
  const blocks = parts(snapshots, options, serial).map(part => compilePart(part, options.policy))
  return assemble(blocks, options, allocate)
}

export interface Responder {
  (message: Uint8Array, transport?: 'udp' | 'tcp'): Buffer | undefined
  readonly cursors: Int32Array
  readonly firsts: Float64Array
}

/** `respond` of a zone with these services. */
export function responder(snapshots: readonly Snapshot[], more: ResponderOptions = {}): Responder {
  const zone = compiled(snapshots, more)
  const endpoints = snapshots.reduce((sum, snapshot) => sum + snapshot.endpoints.length, 0)
  const shared = {
    zone,
    cursors: new Int32Array(CURSORS_PER_SERVICE * snapshots.length),
    firsts: new Float64Array(COUNTS_PER_ENDPOINT * endpoints),
    random: seeded(1),
  }
  const contexts = {
    udp: createContext({ ...shared, transport: 'udp' }),
    tcp: createContext({ ...shared, transport: 'tcp' }),
  }
  const output = Buffer.alloc(MAX_MESSAGE_OCTETS)
  const answer = (message: Uint8Array, transport: 'udp' | 'tcp' = 'udp') => {
    const length = respond(message, message.length, output, contexts[transport])
    return length < 0 ? undefined : Buffer.from(output.subarray(0, length))
  }
  return Object.assign(answer, shared)
}

/** A reply taken apart; that it can be, without an error, is asserted. */
export function parse(octets: Buffer | undefined) {
  assert.ok(octets, 'there is a reply')
  const packet = Packet.parse(octets)
  assert.deepEqual(packet.errors, [])
  const { answers, authorities, additionals } = packet
  const flags = octets.readUInt16BE(2)
  return {
    octets,
    id: octets.readUInt16BE(0),
    rcode: packet.header.rcode,
    aa: (flags & 0x0400) !== 0,
    tc: (flags & 0x0200) !== 0,
    flags,
    counts: [4, 6, 8, 10].map(at => octets.readUInt16BE(at)),
    questions: packet.questions,
    answers,
    authorities,
    additionals: additionals.filter(({ type }) => type !== TYPE.EDNS),
    opts: additionals.filter(({ type }) => type === TYPE.EDNS),
    addresses: answers.map(({ address }) => address),
  }
}

export const frame = (message: Buffer): Buffer => Buffer.concat([u16(message.length), message])

/** A UDP client with one socket; answers are told apart by their id. */
export async function dnsUdpClient(t: TestContext, port: number) {
  const socket = createSocket('udp4')
  const waiting = new Map<number, (reply: Buffer) => void>()
  const strays: Buffer[] = []
  socket.on('message', reply => {
    const id = reply.readUInt16BE(0)
    const take = waiting.get(id)
    waiting.delete(id)
    if (take) take(reply)
    else strays.push(reply)
  })
  socket.connect(port, '127.0.0.1')
  await once(socket, 'connect')
  t.after(() => socket.close())
  return {
    /** What nobody asked for. */
    strays,
    send: (message: Buffer) =>
      new Promise<void>((resolve, reject) =>
        socket.send(message, error => (error ? reject(error) : resolve())),
      ),
    ask(message: Buffer): Promise<Buffer> {
      return new Promise((resolve, reject) => {
        const timer = setTimeout(() => reject(new Error('no reply over UDP within 10 s')), 10_000)
        waiting.set(message.readUInt16BE(0), reply => {
          clearTimeout(timer)
          resolve(reply)
        })
        socket.send(message)
      })
    },
  }
}

/**
 * A TCP client; `next` gives the messages in the order they come, and undefined once the server has ended.
 */
export async function dnsTcpClient(t: TestContext, port: number, localAddress = '127.0.0.1') {
  const socket: Socket = connect({ port, host: '127.0.0.1', localAddress, allowHalfOpen: true })
  t.after(() => socket.destroy())
  const closed = new Promise<void>(resolve => socket.once('close', () => resolve()))
  socket.on('error', () => {})
  await once(socket, 'connect')
  const replies = messages(socket)
  return {
    socket,
    closed,
    next: async (): Promise<Buffer | undefined> => (await replies.next()).value as Buffer | undefined,
    ask: async (message: Buffer): Promise<Buffer> => {
      socket.write(frame(message))
      const { value } = await replies.next()
      assert.ok(value, 'a reply over TCP')
      return value
    },
  }
}

async function* messages(socket: Socket): AsyncGenerator<Buffer, undefined> {
  let rest: Buffer = Buffer.alloc(0)
  try {
    // Its own side of the connection is the test's to end.
    for await (const chunk of socket.iterator({ destroyOnReturn: false })) {
      rest = Buffer.concat([rest, chunk])
      while (rest.length >= 2 && rest.length >= 2 + rest.readUInt16BE(0)) {
        const end = 2 + rest.readUInt16BE(0)
        yield rest.subarray(2, end)
        rest = rest.subarray(end)
      }
    }
  } catch {
    // Reset: ended all the same.
  }
  return undefined
}
