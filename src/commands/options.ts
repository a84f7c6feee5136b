/** The one table of verbs and flags: --help, the environment twins, the README and the parsers all come from it. */

import { ipAddress, socketAddress } from '../address.ts'
import { resolveModes } from '../client/resolve.ts'
import { policies } from '../dns/rotation.ts'
import { logLevels } from '../ops/log.ts'
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
  /** What stands for the value in --help; undefined for a switch. */
  readonly value?: string
  readonly parse: (text: string) => unknown
  readonly short?: string
  /** May be given more than once; the environment twin is split at white space. */
  readonly repeat?: true
  readonly help: string
}

/** What the command line gives each command. */
export interface Context {
  readonly version: string
  readonly exit: (code: number) => void
  /** SIGTERM and SIGINT end the process at once until a server takes them over. */
  readonly takeSignals: () => void
}

/** What each file in this folder exports as `run`. A server's resolves when it serves; the others' when they are done. */
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
    help: 'where to listen, UDP and TCP',
  },
  admin: {
    value: 'ADDR:PORT',
    parse: text => socketAddress(text),
    help: 'where to serve /livez /readyz /metrics over HTTP',
  },
  adminPort: { value: 'PORT', parse: port, help: "the replicas' admin port" },
  zone: { value: 'NAME', parse: domainName, help: 'the zone to be authoritative for' },
  service: {
    value: 'NAME=SOURCE',
    parse: parseService,
    repeat: true,
    help: 'a name that rotates over endpoints; without a final dot it is relative to the zone, @ is the zone itself; SOURCE is static:ADDR[*WEIGHT],…, dns:NAME[@SERVER][/INTERVAL] or kubernetes:[NAMESPACE/]SERVICE',
  },
  policy: {
    value: 'POLICY',
    parse: oneOf(...policies.map(policy => policy.name)),
    help: `the order of answers: ${policies.map(policy => policy.name).join(', ')}`,
  },
  ttl: { value: 'SECONDS', parse: integer(0, 2 ** 31 - 1), help: 'how long caches may keep an answer' },
  answers: { value: 'N', parse: integer(1, 65535), help: 'give only the first N records of the order' },
  port: { value: 'PORT', parse: port, help: 'the port of the echo service' },
  nsAddress: {
    value: 'ADDR',
    parse: ipAddress,
    repeat: true,
    help: "this server's address as clients know it, for its NS record [default: the addresses it listens on]",
  },
  serverId: { value: 'TEXT', parse: serverId, help: 'what id.server and NSID say [default: the host name]' },
  check: {
    value: 'CHECK',
    parse: parseCheck,
    repeat: true,
    help: 'how endpoints are checked, all must pass: udp:PORT, tcp:PORT, http:PORT/path, none',
  },
  checkInterval: { value: 'TIME', parse: period, help: 'from the start of a check to the start of the next' },
  checkTimeout: { value: 'TIME', parse: period, help: 'a check without an answer by then has failed' },
  rise: { value: 'N', parse: integer(1, 100), help: 'passes in a row that bring an endpoint back' },
  fall: { value: 'N', parse: integer(1, 100), help: 'failures in a row that take an endpoint out' },
  fail: {
    value: 'MODE',
    parse: oneOf('open', 'closed'),
    help: 'when every endpoint is down, answer with all (open) or none (closed)',
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
    help: 'programs at a time for one client address; over it a connection is closed; 0: no limit',
  },
  ratePerIp: {
    value: 'N',
    parse: integer(0, 1_000_000),
    help: 'programs started in a minute for one client address; over it a connection is closed; 0: no limit',
  },
  verify: {
    parse: toggle,
    help: 'only parse, say in plain words what each entry does; exit code 1 if any is bad',
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
    help: 'close a TCP connection on which nothing moved for so long',
  },
  name: {
    value: 'TEXT',
    parse: serverId,
    help: 'who /whoami says it is [default: POD_NAME or the host name]',
  },
  drain: { value: 'TIME', parse: duration, help: 'after SIGTERM, go on serving (not ready) for so long' },
  grace: { value: 'TIME', parse: duration, help: 'then let what is open finish for so long' },
  stdio: {
    parse: toggle,
    help: 'serve descriptor 0 and end: a connection, a listening or a UDP socket, as inetd hands it over',
  },
  tied: { parse: toggle, help: 'end at once when standard input ends (how up ties its replicas to itself)' },
  udp: { parse: toggle, help: 'over UDP (the default)' },
  tcp: { parse: toggle, help: 'over TCP' },
  timeout: { value: 'TIME', parse: period, help: 'how long to wait for a reply' },
  dns: {
    value: 'SERVER[:PORT]',
    parse: text => socketAddress(text, 53),
    help: 'ask this DNS server, not the system',
  },
  connections: { value: 'N', parse: integer(1, 100_000), help: 'how many connections (UDP: sockets)' },
  outstanding: { value: 'N', parse: integer(1, 100_000), help: 'operations in flight on each connection' },
  size: { value: 'OCTETS', parse: integer(0, 65_507), help: 'how long each payload is; over TCP at least 1' },
  rate: {
    value: 'N',
    parse: integer(0, 10_000_000),
    help: 'operations a second over all connections, due whatever the server does (open loop); 0: each reply makes the next (closed loop)',
  },
  duration: { value: 'TIME', parse: period, help: 'how long to send' },
  resolve: {
    value: 'MODE',
    parse: oneOf(...resolveModes),
    help: 'ask for the name once for each connection (each), once for all (once), or when the TTL is over, as a cache does (ttl); the first address is taken',
  },
  newConnection: {
    parse: toggle,
    help: 'a new connection for each operation, whose time begins with the look-up',
  },
  seed: {
    value: 'N',
    parse: integer(0, 2 ** 32 - 1),
    help: 'what the payloads are made from: the same seed, the same octets',
  },
  json: { parse: toggle, help: 'print one JSON object' },
  verbose: { short: '-v', parse: toggle, help: 'say which address answered, and how fast' },
  logLevel: {
    value: 'LEVEL',
    parse: oneOf(...logLevels),
    help: `log from this level on: ${logLevels.join(', ')}`,
  },
} as const satisfies Record<string, Flag>

export type FlagName = keyof typeof flags

interface Verb {
  readonly summary: string
  /** Positional arguments, in commander's notation. */
  readonly args: readonly { readonly name: string; readonly help: string }[]
  /** The flags it takes, each with its default as a user would write it; null where there is none. */
  readonly flags: { readonly [F in FlagName]?: string | null }
  /** Where a flag means something more special than its own help says. */
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
      'start the whole farm here: echo replicas on 127.0.1.x and the DNS server that rotates over them',
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
      listen: 'where the DNS server listens, UDP and TCP',
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
      listen: 'where to listen',
      udp: 'over UDP only [default: over all that the model is made for]',
      tcp: 'over TCP only',
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
      check: 'udp:7007',
      ...checkFlags,
      admin: '0.0.0.0:8080',
      ...drainFlags,
    },
    help: { port: 'the port of the echo replicas, for SRV' },
  },
  inetd: {
    summary:
      'run the internet superserver: start a server only when a client arrives, as /etc/inetd.conf says',
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
      maxChildren: 'programs at a time, over all services; more clients wait, none is refused',
      maxConnections: 'TCP connections at a time to one internal service; more wait, none is refused',
      idleTimeout: 'close a connection to an internal service on which nothing moved for so long',
      drain: 'after SIGTERM, let running programs finish for so long',
    },
  },
  send: {
    summary: 'send each message to an echo server and print what comes back',
    args: [
      { name: '<host>', help: 'a name or an address' },
      { name: '<message...>', help: 'what to send, one by one' },
    ],
    flags: { udp: 'false', tcp: 'false', port: '7007', timeout: '2s', dns: null, verbose: 'false' },
  },
  load: {
    summary: 'put load on echo servers, and say how fast they answer and how evenly DNS spreads it',
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
    help: { timeout: 'an operation without its reply by then is lost' },
  },
  check: {
    summary: 'probe a server once, for health checks: exit code 0 or 1, one line of why',
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
  /** The options that the user set, and where. */
  readonly given: ReadonlyMap<FlagName, 'flag' | 'environment'>
}

export const flagText = (name: FlagName): string => `--${name.replace(/[A-Z]/g, c => `-${c.toLowerCase()}`)}`
export const envText = (name: FlagName): string =>
  `ROUNDELAY_${name.replace(/[A-Z]/g, c => `_${c}`).toUpperCase()}`

/** The help of a flag, as this verb means it. */
export const helpText = (verb: VerbName, name: FlagName): string => {
  const special: Verb['help'] = (verbs[verb] as Verb).help
  return special?.[name] ?? flags[name].help
}
