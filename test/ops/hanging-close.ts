/** A server whose close hook never ends: a connection that it holds keeps the process alive. */
import { serveHttp } from '../../src/ops/http.ts'
import { createLog } from '../../src/ops/log.ts'
import { endOnSignals, Shutdown } from '../../src/ops/shutdown.ts'

const log = await createLog({ level: 'info', name: 'hanging' })
const shutdown = new Shutdown({
  log,
  close: () => new Promise(() => setInterval(() => {}, 1000)),
  drainMs: 0,
  graceMs: 200,
  exit: code => process.exit(code),
})
const site = {
  draining: () => shutdown.draining,
  notReady: () => undefined,
  connections: () => 0,
  metrics: async () => ({ contentType: 'text/plain', text: '' }),
  documents: {},
}
const { server } = await serveHttp({ address: '127.0.0.1', port: 0 }, site, log)
endOnSignals(server, shutdown, log, () => {})
log.info('ready')
