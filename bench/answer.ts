/** One DNS answer beside dns2's encoder, for the same reply: what `respond` costs, without sockets. */
import assert from 'node:assert/strict'
import { Packet, type Resource, type Writer } from 'dns2'
import { systemClock } from '../src/clock.ts'
import { Authority } from '../src/dns/authority.ts'
import { policies } from '../src/dns/rotation.ts'
import type { EndpointStatus } from '../src/endpoints/pool.ts'
import { alternate, count, median, table } from './measure.ts'

const APEX = 'roundelay.test'
const SERVICE = `echo.${APEX}`
const TTL_SECONDS = 5
const ROUND_MS = 200
/** Between two looks at the time. */
const BATCH = 200
/** How many endpoints another service of the same zone has: they must make no difference. */
const MANY = 10_000

interface Contestant {
  readonly name: string
  readonly what: string
  readonly encoder: 'roundelay' | 'dns2'
  readonly answer: () => Uint8Array | undefined
}

export async function run(): Promise<void> {
  const cases = [
    contestants('3 records', 3, 0),
    contestants('20 records', 20, 0),
    contestants(`3 records, ${count(MANY)} other endpoints`, 3, MANY),
  ]
  const results = await alternate(cases.flat(), async ({ answer }) => nanoseconds(answer))
  const rows = cases.map(([ours, theirs]) => {
    const [own, reference] = [ours, theirs].map(each => median(results.get(each) ?? [], one => one))
    return [ours.what, 'A', count(own!), count(reference!), (reference! / own!).toFixed(0)]
  })
  const head = ['answer', 'type', 'ns, roundelay', 'ns, dns2', 'times faster']
  process.stdout.write(`${table(head, rows)}\n`)
}

function contestants(what: string, records: number, others: number): [ours: Contestant, theirs: Contestant] {
  const authority = new Authority(
    {
      apex: APEX,
      ttlSeconds: TTL_SECONDS,
      nsAddresses: ['127.0.0.1'],
      port: 7007,
      policy: policies[0]!,
      serverId: 'bench',
      version: '0',
      services: [SERVICE, `other.${APEX}`],
      maxAnswers: Number.POSITIVE_INFINITY,
      clock: systemClock,
      random: Math.random,
    },
    {
      failed(error) {
        throw error
      },
    },
  )
  const addresses = Array.from({ length: records }, (_, i) => `10.1.0.${i}`)
  const otherAddresses = Array.from({ length: others }, (_, i) => `10.2.${i >> 8}.${i & 255}`)
  authority.update({ service: SERVICE, ready: true, failedOpen: false, endpoints: addresses.map(endpoint) })
  const other = { service: `other.${APEX}`, ready: true, failedOpen: false }
  authority.update({ ...other, endpoints: otherAddresses.map(endpoint) })
  const query = queryFor(SERVICE)
  const ours = () => authority.answer(query, 'udp')
  const theirs = () => encodeWithDns2(query, addresses)
  // The first answer begins with the first address, as the reference does.
  assert.deepEqual(ours(), theirs())
  return [
    { name: `${what}, roundelay`, what, encoder: 'roundelay', answer: ours },
    { name: `${what}, dns2`, what, encoder: 'dns2', answer: theirs },
  ]
}

function queryFor(name: string): Buffer {
  const packet = new Packet(new Packet.Question(name, Packet.TYPE.A, Packet.CLASS.IN))
  packet.header.id = 0xbeef
  return packet.toBuffer()
}

/**
 * The reply that was sent before there was an encoder of our own: each record by dns2, header and question
 * copied.
 */
function encodeWithDns2(query: Buffer, addresses: readonly string[]): Buffer {
  const writer: Writer & { names?: Map<string, number> } = new Packet.Writer()
  const materialize = writer.toBuffer
  // Without this, dns2 makes a Buffer of the whole message after each record: n² work.
  writer.toBuffer = () => query
  for (const octet of query) writer.write(octet, 8)
  writer.names = new Map([[SERVICE, 12]])
  for (const address of addresses) {
    const record = { name: SERVICE, type: Packet.TYPE.A, class: Packet.CLASS.IN, ttl: TTL_SECONDS, address }
    Packet.Resource.encode(record as Resource, writer)
  }
  const reply: Buffer = materialize.call(writer)
  reply.writeUInt16BE(0x8400 | (query.readUInt16BE(2) & 0x0110), 2)
  reply.writeUInt16BE(addresses.length, 6)
  return reply
}

/** CPU time of one answer: what else runs on this machine does not count. */
function nanoseconds(answer: () => unknown): number {
  const cpuMicros = () => {
    const { user, system } = process.threadCpuUsage()
    return user + system
  }
  const started = cpuMicros()
  const endMs = performance.now() + ROUND_MS
  let answers = 0
  while (performance.now() < endMs) {
    for (let i = 0; i < BATCH; i++) answer()
    answers += BATCH
  }
  return (1000 * (cpuMicros() - started)) / answers
}

const endpoint = (address: string): EndpointStatus => ({
  address,
  family: 4,
  weight: 1,
  state: 'up',
  terminating: false,
  leaving: false,
  answered: true,
  detail: '',
  activeConnections: undefined,
})
