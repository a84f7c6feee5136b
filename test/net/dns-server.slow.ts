/** Attacks with up to 650 MB, which the DNS server must survive. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { describe, type TestContext, test } from 'node:test'
import { dnsTcpClient, dnsUdpClient, frame, parse, query, RD, SERVICE, seeded, TYPE } from '../dns/message.ts'
import { A, assertServes, type Child, child, MIB, withId } from './dns-server-child.ts'
import type { ChildOptions } from './dns-server-process.ts'

/** What is done to the server must leave it answering, and its memory as it was but for a few MiB. */
function attack(
  name: string,
  play: (t: TestContext, server: Child) => Promise<void>,
  options?: ChildOptions,
) {
  test(name, { timeout: 60_000 }, async t => {
    const server = await child(t, options)
    await assertServes(t, server)
    const before = await server.memory()
    await play(t, server)
    await assertServes(t, server)
    const grown = (await server.memory()) - before
    assert.ok(grown < 8 * MIB, `memory has grown by ${(grown / MIB).toFixed(1)} MiB`)
  })
}

/** Octets to cut random messages from. */
const noise = (() => {
  const random = seeded(64)
  return Buffer.from(Uint32Array.from({ length: MIB / 4 }, () => random() * 2 ** 32).buffer)
})()

/** A message of random octets, which is a response or not as wanted. */
function randomMessage(random: () => number, octets: number, id: number, isResponse: boolean): Buffer {
  const start = Math.floor(random() * (noise.length - octets))
  const message = withId(noise.subarray(start, start + octets), id)
  message[2] = isResponse ? message[2]! | 0x80 : message[2]! & 0x7f
  return message
}

describe('a server under attack still answers, and its memory has not grown', () => {
  attack('by every length of cut header, over UDP and TCP', async (t, { port }) => {
    const udp = await dnsUdpClient(t, port)
    for (let length = 0; length < 12; length++) {
      await udp.send(A.subarray(0, length))
      const tcp = await dnsTcpClient(t, port)
      tcp.socket.write(frame(A.subarray(0, length)))
      assert.equal(await tcp.next(), undefined, 'closed without a reply')
      tcp.socket.destroy()
    }
    await udp.ask(A)
    assert.deepEqual(udp.strays, [])
  })

  for (const [what, octets] of [
    ['64 KB', () => 65_507],
    ['any size', (random: () => number) => 12 + Math.floor(random() * 600)],
  ] as const)
    attack(`by 10,000 datagrams of random octets, ${what}`, async (t, { port }) => {
      const udp = await dnsUdpClient(t, port)
      const random = seeded(7)
      for (let i = 0; i < 5000; i++) {
        // Every other one is not answered; those that are keep us in step, so that the kernel drops none.
        await udp.send(randomMessage(random, octets(random), 0, true))
        const reply = await udp.ask(randomMessage(random, octets(random), i, false))
        parse(reply)
        assert.ok(reply.length <= 1232)
      }
      assert.deepEqual(udp.strays, [])
    })

  attack('by 10,000 messages of 64 KB of random octets over TCP', async (t, { port }) => {
    const tcp = await dnsTcpClient(t, port)
    const random = seeded(8)
    const sending = (async () => {
      for (let i = 0; i < 10_000; i++)
        if (!tcp.socket.write(frame(randomMessage(random, 65_535, i, i % 2 === 1))))
          await once(tcp.socket, 'drain')
    })()
    for (let i = 0; i < 10_000; i += 2) {
      const reply = await tcp.next()
      assert.equal(parse(reply).id, i)
    }
    await sending
  })

  attack('by 200 connections of 64 KB of random octets without any frame', async (t, { port }) => {
    const random = seeded(9)
    for (let i = 0; i < 200; i++) {
      const tcp = await dnsTcpClient(t, port)
      tcp.socket.end(randomMessage(random, 65_535, Math.floor(random() * 1000), false))
      while (await tcp.next());
      tcp.socket.destroy()
      await tcp.closed
    }
  })

  attack('by responses', async (t, { port }) => {
    const response = query(SERVICE, TYPE.A, { id: 1, flags: 0x8000 | RD })
    const udp = await dnsUdpClient(t, port)
    const tcp = await dnsTcpClient(t, port)
    for (let i = 0; i < 1000; i++) {
      await udp.send(response)
      tcp.socket.write(frame(response))
      if (i % 50 === 0) await udp.ask(A)
    }
    assert.equal(parse(await tcp.ask(A)).id, 0xbeef)
    assert.deepEqual(udp.strays, [])
  })

  attack(
    'by connections that send nothing, half a length, a length, half a message, and then are silent',
    async (t, { port }) => {
      await Promise.all(
        [A.subarray(0, 0), frame(A).subarray(0, 1), frame(A).subarray(0, 2), frame(A).subarray(0, 20)].map(
          async octets => {
            const tcp = await dnsTcpClient(t, port)
            tcp.socket.write(octets)
            assert.equal(await tcp.next(), undefined, 'closed without a reply')
            tcp.socket.destroy()
          },
        ),
      )
    },
    { tcpIdleMs: 300 },
  )

  attack(
    'by a connection that asked, was answered, and then is silent',
    async (t, { port }) => {
      const tcp = await dnsTcpClient(t, port)
      await tcp.ask(A)
      assert.equal(await tcp.next(), undefined)
    },
    { tcpIdleMs: 300 },
  )

  attack('by 500 connections that are opened and reset', async (t, { port }) => {
    for (let i = 0; i < 500; i++) {
      const tcp = await dnsTcpClient(t, port)
      tcp.socket.write(frame(A))
      tcp.socket.resetAndDestroy()
      await tcp.closed
    }
  })
})
