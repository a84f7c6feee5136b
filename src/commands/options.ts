/** The one table of verbs and flags, for --help, environment twins, documentation and parsers. */

import { endpointAddress, socketAddress } from '../address.ts'
import { resolveModes } from '../client/resolve.ts'
import { policies } from '../dns/rotation.ts'
import { logLevels } from '../ops/log.ts'
import type { EndSignal } from '../ops/shutdown.ts'
import { protocolNames } from '../protocols.ts'
import { type ModelFlag, modelNames, models, modelsWithFlag } from '../servers/models.ts'
import {
  domainName,
  duration,
  integer,
  oneOf,
  parseCheck,
  parseService,
  period,
  port,
  serverId,
} from './values.ts'

export interface Flag {
  /** The name of the value in --help; undefined for a switch. */
  readonly value?: string
  readonly parse: (text: string) => unknown
  readonly short?: string
  /** The flag may be given more than once; its environment twin is split at white space. */
  readonly repeat?: true
  readonly help: string
}

/** What the command line passes to each command. */
export interface Context {
  readonly version: string
  readonly exit: (code: number) => void
  /**
   * SIGTERM, SIGINT, SIGHUP and SIGQUIT end the process at once until a command calls this and handles them,
   * or some of them, itself.
   */
  readonly takeSignals: (
    onSignal?: (signal: NodeJS.Signals, number: number) => void,
    signals?: readonly EndSignal[],
  ) => void
}

/** What the file of a verb exports as `run`. A server's resolves when it serves, another's when it is done. */
export type Run<V extends VerbName> = (
  options: Options<V>,
  args: readonly string[],
  context: Context,
) => Promise<void>

const modelsHelp = modelNames.map(name => {
  const { transports, help } = models[name]
  return `${name} (${transports.map(transport => transport.toUpperCase()).join(' and ')}, ${help})`
})
/** The help of a flag that only some models have. */
const modelHelp = (flag: ModelFlag, help: string) => `${modelsWithFlag(flag).join(', ')}: ${help}`
const onOff = oneOf('true', 'false', '1', '0')
const toggle = (text: string) => ['true', '1'].includes(onOff(text))

export const flags = {
  replicas: {
    value: 'N',
    parse: integer(1, 200),
    help: 'how many echo replicas to start, on 127.0.1.1, 127.0.1.2, …',
  },
  listen: {
    value: 'ADDR:PORT',
    parse: text => socketAddress(text),
    repeat: true,
    help: 'the address to listen on, over UDP and TCP',
  },
  admin: {
    value: 'ADDR:PORT',
    parse: text => socketAddress(text),
    help: 'the address that serves /livez, /readyz and /metrics over HTTP',
  },
  adminPort: { value: 'PORT', parse: port, help: 'the admin port of the replicas' },
  zone: { value: 'NAME', parse: domainName, help: 'the zone that the DNS server is authoritative for' },
  service: {
    value: 'NAME=SOURCE',
    parse: parseService,
    repeat: true,
    help:
      'a name that rotates over endpoints. NAME is relative to the zone unless it ends with a ' +
      'dot; @ is the zone itself. SOURCE is static:ADDR[*WEIGHT],…, ' +
      'dns:NAME[@SERVER][/INTERVAL] or kubernetes:[NAMESPACE/]SERVICE',
  },
  policy: {
    value: 'POLICY',
    parse: oneOf(...policies.map(policy => policy.name)),
    help: `the order of answers: ${policies.map(policy => policy.name).join(', ')}`,
  },
  ttl: { value: 'SECONDS', parse: integer(0, 2 ** 31 - 1), help: 'how long caches may keep an answer' },
  answers: { value: 'N', parse: integer(1, 65535), help: 'put only the first N addresses into an answer' },
  port: { value: 'PORT', parse: port, help: 'the port of the echo service' },
  nsAddress: {
    value: 'ADDR',
    parse: endpointAddress,
    repeat: true,
    help:
      'the address at which clients reach this server, for its NS record [default: the ' +
      'addresses that it listens on]',
  },
  serverId: {
    value: 'TEXT',
    parse: serverId,
    help: 'the text that id.server and NSID give [default: the host name]',
  },
  sourceHold: {
    value: 'N',
    parse: integer(1, 1000),
    help: 'a DNS source drops an address that is missing from N answers in a row',
  },
  check: {
    value: 'CHECK',
    parse: parseCheck,
    repeat: true,
    help:
      'how endpoints are checked: udp:PORT, tcp:PORT, http:PORT/path or none; of several checks' +
      ' all must pass',
  },
  checkInterval: {
    value: 'TIME',
    parse: period,
    help: 'time from the start of a check to the start of the next',
  },
  checkTimeout: { value: 'TIME', parse: period, help: 'a check fails if it has no answer after this time' },
  rise: {
    value: 'N',
    parse: integer(1, 100),
    help: 'a failed endpoint is healthy again after N passed checks in a row',
  },
  fall: {
    value: 'N',
    parse: integer(1, 100),
    help: 'an endpoint is unhealthy after N failed checks in a row',
  },
  fail: {
    value: 'MODE',
    parse: oneOf('open', 'closed'),
    help: 'when no endpoint is healthy, answer with all of them (open) or with none (closed)',
  },
  model: {
    value: 'MODEL',
    parse: oneOf(...modelNames),
    help: `how clients are served: ${modelsHelp.join(', ')}`,
  },
  protocol: {
    value: 'NAME',
    parse: oneOf(...protocolNames),
    help: `what is spoken: ${protocolNames.join(', ')}; over UDP no reply but that of daytime and time is longer than the request`,
  },
  maxConnections: {
    value: 'N',
    parse: integer(1, 1_000_000),
    help: modelHelp('maxConnections', 'TCP connections served at a time; more wait, none is refused'),
  },
  maxChildren: {
    value: 'N',
    parse: integer(1, 10_000),
    help: modelHelp('maxChildren', 'processes at a time; more clients wait, none is refused'),
  },
  maxPerIp: {
    value: 'N',
    parse: integer(0, 1_000_000),
    help:
      'how many programs may run for one client address; further connections are closed; 0 ' +
      'means no limit',
  },
  ratePerIp: {
    value: 'N',
    parse: integer(0, 1_000_000),
    help:
      'how many programs may be started per minute for one client address; further connections ' +
      'are closed; 0 means no limit',
  },
  verify: {
    parse: toggle,
    help: 'only read the configuration and explain each entry; the exit code is 1 if an entry is wrong',
  },
  start: { value: 'N', parse: integer(0, 10_000), help: modelHelp('start', 'processes to begin with') },
  minSpare: {
    value: 'N',
    parse: integer(1, 10_000),
    help: modelHelp('minSpare', 'with fewer idle processes, more are made'),
  },
  maxSpare: {
    value: 'N',
    parse: integer(1, 10_000),
    help: modelHelp('maxSpare', 'with more idle processes for 10 s, one a second is ended'),
  },
  maxRequests: {
    value: 'N',
    parse: integer(0, 1_000_000_000),
    help: modelHelp('maxRequests', 'a process ends after so many clients; 0: never'),
  },
  idleTimeout: {
    value: 'TIME',
    parse: period,
    help: 'close a TCP connection that has been idle for this time',
  },
  name: {
    value: 'TEXT',
    parse: serverId,
    help: 'the name that /whoami shows [default: POD_NAME or the host name]',
  },
  drain: {
    value: 'TIME',
    parse: duration,
    help: 'after SIGTERM, report "not ready" but serve for this time',
  },
  grace: { value: 'TIME', parse: duration, help: 'then give open connections this time to finish' },
  stdio: {
    parse: toggle,
    help:
      'serve the socket that inetd passes as descriptor 0 (a connection, a listening or a UDP ' +
      'socket), then end',
  },
  tied: {
    parse: toggle,
    help: 'end at once when standard input ends; up starts its replicas with this flag',
  },
  udp: { parse: toggle, help: 'use UDP (the default)' },
  tcp: { parse: toggle, help: 'use TCP' },
  timeout: { value: 'TIME', parse: period, help: 'how long to wait for a reply' },
  dns: {
    value: 'SERVER[:PORT]',
    parse: text => socketAddress(text, 53),
    help: 'look names up at this DNS server instead of the system resolver',
  },
  connections: {
    value: 'N',
    parse: integer(1, 100_000),
    help: 'how many connections to open (over UDP: sockets)',
  },
  outstanding: {
    value: 'N',
    parse: integer(1, 100_000),
    help: 'how many operations are in flight on each connection',
  },
  size: {
    value: 'OCTETS',
    parse: integer(0, 65_507),
    help: 'the length of each payload; over TCP at least 1',
  },
  rate: {
    value: 'N',
    parse: integer(0, 10_000_000),
    help:
      'operations per second over all connections, sent even if the server is slow (open loop);' +
      ' 0: each reply starts the next operation (closed loop)',
  },
  duration: { value: 'TIME', parse: period, help: 'how long to send load' },
  resolve: {
    value: 'MODE',
    parse: oneOf(...resolveModes),
    help:
      'look the name up for each connection (each), once for all (once), or when the TTL has ' +
      'expired, as a cache does (ttl); the first address is used',
  },
  newConnection: {
    parse: toggle,
    help: 'open a new connection for each operation; its time includes the look-up',
  },
  seed: {
    value: 'N',
    parse: integer(0, 2 ** 32 - 1),
    help: 'start of the pseudorandom payloads: the same seed gives the same octets',
  },
  json: { parse: toggle, help: 'print the report as one JSON object' },
  verbose: { short: '-v', parse: toggle, help: 'print which address answered, and how fast' },
  logLevel: {
    value: 'LEVEL',
    parse: oneOf(...logLevels),
    help: `write log lines of this level and above: ${logLevels.join(', ')}`,
  },
} as const satisfies Record<string, Flag>

export type FlagName = keyof typeof flags

interface Verb {
  readonly summary: string
  /** Positional arguments, in commander's notation. */
  readonly args: readonly { readonly name: string; readonly help: string }[]
  /** The flags of the verb, each with its default as a user would write it; null where there is none. */
  readonly flags: { readonly [F in FlagName]?: string | null }
  /** Where a flag has a more special meaning for this verb than its own help says. */
  readonly help?: { readonly [F in FlagName]?: string }
}

const checkFlags = {
  checkInterval: '500ms',
  checkTimeout: '400ms',
  rise: '2',
  fall: '2',
  fail: 'open',
} as const
const zoneFlags = { zone: 'roundelay.test', policy: 'cyclic', ttl: '5', answers: null, port: '7007' } as const
const logFlags = { logLevel: 'info' } as const
const drainFlags = { drain: '7s', grace: '5s', ...logFlags } as const

export const verbs = {
  up: {
    summary:
      'start a farm on this machine: echo replicas on 127.0.1.x and the DNS server that rotates over them',
    args: [],
    flags: {
      replicas: '3',
      listen: '127.0.0.1:5300',
      ...zoneFlags,
      check: null,
      ...checkFlags,
      admin: '127.0.0.1:8080',
      adminPort: '8080',
      ...logFlags,
    },
    help: {
      listen: 'the address that the DNS server listens on, over UDP and TCP',
      port: 'the port of the echo replicas',
      check: 'how replicas are checked [default: udp:PORT and http:ADMIN-PORT/readyz]',
    },
  },
  echo: {
    summary: 'run one echo replica (RFC 862), as one of the server models',
    args: [],
    flags: {
      model: 'event-loop',
      protocol: 'echo',
      listen: '0.0.0.0:7007 [::]:7007',
      udp: 'false',
      tcp: 'false',
      maxConnections: '16384',
      maxChildren: '64',
      start: '4',
      minSpare: '2',
      maxSpare: '6',
      maxRequests: '0',
      idleTimeout: '5m',
      admin: '0.0.0.0:8080',
      name: null,
      stdio: 'false',
      tied: 'false',
      ...drainFlags,
    },
    help: {
      listen: 'the address to listen on',
      udp: 'serve only UDP [default: every transport of the model]',
      tcp: 'serve only TCP',
    },
  },
  dns: {
    summary: 'run the authoritative DNS server that rotates over the replicas',
    args: [],
    flags: {
      listen: '0.0.0.0:5300',
      service: null,
      ...zoneFlags,
      nsAddress: null,
      serverId: null,
      sourceHold: '2',
      check: 'udp:7007',
      ...checkFlags,
      admin: '0.0.0.0:8080',
      ...drainFlags,
    },
    help: { port: 'the port of the echo replicas, for SRV records' },
  },
  inetd: {
    summary: 'run the internet superserver: it starts a server only when a client arrives (/etc/inetd.conf)',
    args: [{ name: '[conf...]', help: 'configuration files (default: /etc/inetd.conf)' }],
    flags: {
      verify: 'false',
      maxChildren: '1024',
      maxPerIp: '0',
      ratePerIp: '0',
      maxConnections: '16384',
      idleTimeout: '5m',
      admin: '0.0.0.0:8080',
      drain: '7s',
      ...logFlags,
    },
    help: {
      maxChildren: 'how many programs may run, over all services; more clients wait, none is refused',
      maxConnections: 'how many TCP connections one internal service has at most; more wait, none is refused',
      idleTimeout: 'close a connection to an internal service that has been idle for this time',
      drain: 'after SIGTERM, give running programs this time to finish',
    },
  },
  send: {
    summary: 'send each message to an echo server and print what comes back',
    args: [
      { name: '<host>', help: 'a name or an address' },
      { name: '<message...>', help: 'the messages, which are sent one after the other' },
    ],
    flags: { udp: 'false', tcp: 'false', port: '7007', timeout: '2s', dns: null, verbose: 'false' },
  },
  load: {
    summary: 'put load on echo servers; report how fast they answer and how evenly DNS spreads the load',
    args: [{ name: '<host>', help: 'a name or an address' }],
    flags: {
      udp: 'false',
      tcp: 'false',
      port: '7007',
      connections: '64',
      outstanding: '1',
      size: '32',
      rate: '0',
      duration: '10s',
      timeout: '1s',
      dns: null,
      resolve: 'each',
      newConnection: 'false',
      seed: '1',
      json: 'false',
    },
    help: { timeout: 'an operation without a reply after this time is lost' },
  },
  check: {
    summary: 'probe a server once, for health checks: prints one line, the exit code is 0 (healthy) or 1',
    args: [{ name: '<target>', help: 'udp://HOST:PORT, tcp://HOST:PORT or http://HOST[:PORT]/path' }],
    flags: { timeout: '2s' },
  },
} as const satisfies Record<string, Verb>

export type VerbName = keyof typeof verbs

type FlagsOf<V extends VerbName> = (typeof verbs)[V]['flags']
type Value<F extends FlagName> = (typeof flags)[F] extends { repeat: true }
  ? readonly ReturnType<(typeof flags)[F]['parse']>[]
  : ReturnType<(typeof flags)[F]['parse']>

/** The parsed options of a verb; `undefined` only where the table has no default. */
export type Options<V extends VerbName> = {
  readonly [F in keyof FlagsOf<V> & FlagName]: Value<F> | (FlagsOf<V>[F] extends null ? undefined : never)
} & {
  /** The options that the user set, and where they were set. */
  readonly given: ReadonlyMap<FlagName, 'flag' | 'environment'>
}

export const flagText = (name: FlagName): string => `--${name.replace(/[A-Z]/g, c => `-${c.toLowerCase()}`)}`
export const envText = (name: FlagName): string =>
  `ROUNDELAY_${name.replace(/[A-Z]/g, c => `_${c}`).toUpperCase()}`

/** The help of a flag for this verb. */
export const helpText = (verb: VerbName, name: FlagName): string => {
  const special: Verb['help'] = (verbs[verb] as Verb).help
  return special?.[name] ?? flags[name].help
}
