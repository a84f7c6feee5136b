/**
 * One HTTP GET of a short text, for the probes and the table of `up`. It costs less memory and time than
 * fetch.
 */
import { get } from 'node:http'
import { formatAddress, type SocketAddress } from '../address.ts'

const MAX_BODY_OCTETS = 64 * 1024

/**
 * Rejects when no status has come before `signal` aborts. The body is what has come of it: it may be cut off,
 * by the server, by `signal` or after 64 KiB.
 */
export function httpGet(
  { address, port }: SocketAddress,
  path: string,
  signal: AbortSignal,
): Promise<{ statusCode: number; body: string }> {
  return new Promise((resolve, reject) => {
    const headers = { host: formatAddress({ address, port }) }
    let fail: (error: Error) => void = reject
    const request = get({ host: address, port, path, headers, agent: false, signal }, response => {
      const chunks: Buffer[] = []
      let octets = 0
      const done = () => {
        const body = Buffer.concat(chunks).subarray(0, MAX_BODY_OCTETS).toString()
        resolve({ statusCode: response.statusCode ?? 0, body })
      }
      response.on('data', (chunk: Buffer) => {
        chunks.push(chunk)
        octets += chunk.length
        if (octets < MAX_BODY_OCTETS) return
        done()
        request.destroy()
      })
      // The request reports the abort of `signal` first.
      fail = done
      response.on('error', done)
      response.on('end', done)
    })
    request.on('error', error => fail(error))
  })
}
