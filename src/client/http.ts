/**
 * One HTTP GET of a short text, for the probes and the table of `up`. It costs less memory and time than
 * fetch.
 */
import { get } from 'node:http'
import { formatAddress, type SocketAddress } from '../address.ts'

const MAX_BODY_OCTETS = 64 * 1024

/** Rejects when the answer is not complete before `signal` aborts, or is longer than 64 KiB. */
export function httpGet(
  { address, port }: SocketAddress,
  path: string,
  signal: AbortSignal,
): Promise<{ statusCode: number; body: string }> {
  return new Promise((resolve, reject) => {
    const headers = { host: formatAddress({ address, port }) }
    const request = get({ host: address, port, path, headers, agent: false, signal }, response => {
      const chunks: Buffer[] = []
      let octets = 0
      response.on('data', (chunk: Buffer) => {
        chunks.push(chunk)
        octets += chunk.length
        if (octets > MAX_BODY_OCTETS)
          request.destroy(new Error(`the answer is longer than ${MAX_BODY_OCTETS} bytes`))
      })
      response.on('error', reject)
      response.on('end', () => {
        resolve({ statusCode: response.statusCode ?? 0, body: Buffer.concat(chunks).toString() })
      })
    })
    request.on('error', reject)
  })
}
