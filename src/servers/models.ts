/**
 * The one table of server models: a new model is a file in this folder, a line here, its test and the bench.
 */
import type { Transport } from '../address.ts'
import type { ServerModel } from './service.ts'

/** The flags of `echo` that not every model has. */
export type ModelFlag =
  | 'maxConnections'
  | 'maxChildren'
  | 'idleTimeout'
  | 'start'
  | 'minSpare'
  | 'maxSpare'
  | 'maxRequests'

interface Model {
  /** What the model is made for. */
  readonly transports: readonly Transport[]
  /** How it serves, in a few words for --help. */
  readonly help: string
  readonly flags: readonly ModelFlag[]
  /** It calls Linux' socket API. */
  readonly needsLinux: boolean
  /** Loads its code only when it is asked for. */
  readonly load: () => Promise<ServerModel>
}

/** In the book's order (TLPI 60 and 63). */
const table = {
  iterative: {
    transports: ['udp'],
    help: 'one after the other',
    flags: [],
    needsLinux: true,
    load: async () => (await import('./iterative.ts')).iterative,
  },
  concurrent: {
    transports: ['tcp'],
    help: 'a process for each connection',
    flags: ['maxChildren', 'idleTimeout'],
    needsLinux: true,
    load: async () => (await import('./concurrent.ts')).concurrent,
  },
  prefork: {
    transports: ['tcp'],
    help: 'a pool of processes',
    flags: ['maxChildren', 'idleTimeout', 'start', 'minSpare', 'maxSpare', 'maxRequests'],
    needsLinux: true,
    load: async () => (await import('./prefork.ts')).prefork,
  },
  'event-loop': {
    transports: ['udp', 'tcp'],
    help: 'one process for all',
    flags: ['maxConnections', 'idleTimeout'],
    needsLinux: false,
    load: async () => (await import('./event-loop.ts')).eventLoop,
  },
} satisfies Record<string, Model>

export type ModelName = keyof typeof table

export const models: Readonly<Record<ModelName, Model>> = table

export const modelNames = Object.keys(models) as readonly ModelName[]

/** The models that have this flag. */
export const modelsWithFlag = (flag: ModelFlag): readonly ModelName[] =>
  modelNames.filter(name => models[name].flags.includes(flag))

/** The models that are made for this transport. */
export const modelsForTransport = (transport: Transport): readonly ModelName[] =>
  modelNames.filter(name => models[name].transports.includes(transport))
