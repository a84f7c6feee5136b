/** Every metric, declared once, and the registry of a process. The table is also in the documentation. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'
import type { Subscriber } from './events.ts'

/** Names after CoreDNS's and Prometheus' own rules. */
export const metrics = {
  roundelay_build_info: {
    role: 'every',
    type: 'gauge',
    labels: ['version'],
    help: 'Always 1; the label is the version that runs.',
  },

  roundelay_echo_datagrams_total: {
    role: 'echo',
    type: 'counter',
    labels: ['result'],
    help:
      'UDP datagrams by result: echoed, dropped_loop (from a server that answers by itself), ' +
      'dropped_overload, failed (could not be sent).',
  },
  roundelay_echo_connections_total: {
    role: 'echo',
    type: 'counter',
    labels: [],
    help: 'TCP connections served.',
  },
  roundelay_echo_connections_active: {
    role: 'echo',
    type: 'gauge',
    labels: [],
    help: 'TCP connections being served now.',
  },
  roundelay_echo_connections_waiting: {
    role: 'echo',
    type: 'gauge',
    labels: [],
    help: "TCP connections in the kernel's queue, not accepted yet.",
  },
  roundelay_echo_children: {
    role: 'echo',
    type: 'gauge',
    labels: ['state'],
    help: 'Processes of the concurrent and prefork models by state: starting, idle, busy, stopping.',
  },
  roundelay_echo_forks_total: {
    role: 'echo',
    type: 'counter',
    labels: [],
    help: 'Processes that these models have started.',
  },
  roundelay_echo_child_failures_total: {
    role: 'echo',
    type: 'counter',
    labels: [],
    help: 'Processes of these models that ended with an error.',
  },

  roundelay_inetd_started_total: {
    role: 'inetd',
    type: 'counter',
    labels: ['service', 'sockets'],
    help: 'Programs started, by service, such as ftp/tcp, and its sockets.',
  },
  roundelay_inetd_running: {
    role: 'inetd',
    type: 'gauge',
    labels: ['service', 'sockets'],
    help: 'Programs that run now.',
  },
  roundelay_inetd_failed_total: {
    role: 'inetd',
    type: 'counter',
    labels: ['service', 'sockets'],
    help: 'Programs that ended with an exit code other than 0, or by a signal.',
  },
  roundelay_inetd_refused_total: {
    role: 'inetd',
    type: 'counter',
    labels: ['service', 'sockets'],
    help:
      'Connections closed without a program, because of a limit or because the system had no ' +
      'more processes.',
  },
  roundelay_inetd_service_up: {
    role: 'inetd',
    type: 'gauge',
    labels: ['service', 'sockets'],
    help: '0 while the service is switched off, because it loops or its socket cannot be opened.',
  },

  roundelay_dns_requests_total: {
    role: 'dns',
    type: 'counter',
    labels: ['proto', 'type'],
    help: 'DNS queries answered, by transport and query type.',
  },
  roundelay_dns_responses_total: {
    role: 'dns',
    type: 'counter',
    labels: ['proto', 'rcode'],
    help: 'DNS responses, by transport and response code.',
  },
  roundelay_dns_responses_truncated_total: {
    role: 'dns',
    type: 'counter',
    labels: ['proto'],
    help: 'DNS responses with the TC bit: the client must ask again over TCP.',
  },
  roundelay_dns_dropped_total: {
    role: 'dns',
    type: 'counter',
    labels: ['proto'],
    help: 'Messages without a reply, because they have no whole header or are responses themselves.',
  },
  roundelay_dns_failed_total: {
    role: 'dns',
    type: 'counter',
    labels: [],
    help: 'Queries without a reply because of an internal error, and replies that UDP could not send.',
  },
  roundelay_dns_tcp_capped_total: {
    role: 'dns',
    type: 'counter',
    labels: ['result'],
    help: 'TCP connections at the cap, by result: evicted (idle, closed for a new one), refused (none was idle).',
  },
  roundelay_dns_request_duration_seconds: {
    role: 'dns',
    type: 'histogram',
    labels: ['proto'],
    buckets: [0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1],
    help: 'Time from a complete query to its response, without the sockets.',
  },
  roundelay_dns_first_total: {
    role: 'dns',
    type: 'counter',
    labels: ['name', 'type', 'address'],
    help: 'How often an address was the first of an answer.',
  },
  roundelay_dns_zone_serial: { role: 'dns', type: 'gauge', labels: [], help: 'Serial of the SOA.' },

  roundelay_service_ready: {
    role: 'dns',
    type: 'gauge',
    labels: ['service'],
    help: '1 once the source has published and the first check round is over.',
  },
  roundelay_service_failed_open: {
    role: 'dns',
    type: 'gauge',
    labels: ['service'],
    help: '1 while no endpoint is healthy and unhealthy ones are answered (fail open).',
  },
  roundelay_service_endpoints: {
    role: 'dns',
    type: 'gauge',
    labels: ['service', 'state'],
    help: 'Endpoints by state: checking, up, down, draining; leaving (the source no longer lists it).',
  },
  roundelay_endpoint_answered: {
    role: 'dns',
    type: 'gauge',
    labels: ['service', 'address'],
    help: '1 while the endpoint is part of answers.',
  },
  roundelay_checks_total: {
    role: 'dns',
    type: 'counter',
    labels: ['service', 'result'],
    help: 'Check rounds, one endpoint each, by result: pass, fail.',
  },
  roundelay_checks_not_made_total: {
    role: 'dns',
    type: 'counter',
    labels: ['service'],
    help:
      'Check rounds that this machine could not make (no descriptors, ports or memory); ' +
      'health is unchanged.',
  },
  roundelay_check_duration_seconds: {
    role: 'dns',
    type: 'histogram',
    labels: ['service'],
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1],
    help: 'Time that a check round of one endpoint took.',
  },
  roundelay_source_up: {
    role: 'dns',
    type: 'gauge',
    labels: ['service'],
    help: '0 while the source fails and its last good answer stays in use.',
  },
  roundelay_source_family_up: {
    role: 'dns',
    type: 'gauge',
    labels: ['service', 'family'],
    help: '0 while a DNS source receives no answer for this family (A, AAAA); the other is independent of it.',
  },
  roundelay_source_failures_total: {
    role: 'dns',
    type: 'counter',
    labels: ['service'],
    help: 'How often the source began to fail.',
  },
} as const satisfies Record<string, Declaration>

type Declaration = {
  /** Which server has the metric. */
  role: Role | 'every'
  type: 'counter' | 'gauge' | 'histogram'
  labels: readonly string[]
  help: string
  buckets?: readonly number[]
}

type MetricName = keyof typeof metrics
type OfType<T> = { [N in MetricName]: (typeof metrics)[N]['type'] extends T ? N : never }[MetricName]
type Labels = Record<string, string>

/** One value of a metric that is kept elsewhere and read when Prometheus scrapes. */
export type Sample = readonly [name: OfType<'counter' | 'gauge'>, labels: Labels, value: number]

type Role = 'echo' | 'inetd' | 'dns'

/** The metrics of one process: those of its role and Node's own. */
export class Metrics {
  readonly #registry = new Registry()
  readonly #counters = new Map<MetricName, Counter>()
  readonly #gauges = new Map<MetricName, Gauge>()
  readonly #histograms = new Map<MetricName, Histogram>()
  readonly #sampled = new Set<Counter | Gauge>()

  constructor(role: Role, version: string) {
    const registers = [this.#registry]
    collectDefaultMetrics({ register: this.#registry })
    for (const [key, declared] of Object.entries<Declaration>(metrics)) {
      const name = key as MetricName
      if (declared.role !== role && declared.role !== 'every') continue
      const { help, labels, buckets = [] } = declared
      const options = { name, help, labelNames: [...labels], registers }
      if (declared.type === 'counter') this.#counters.set(name, new Counter(options))
      else if (declared.type === 'gauge') this.#gauges.set(name, new Gauge(options))
      else this.#histograms.set(name, new Histogram({ ...options, buckets: [...buckets] }))
    }
    this.#gauges.get('roundelay_build_info')?.set({ version }, 1)
  }

  /** Counts one event. */
  inc(name: OfType<'counter'>, labels: Labels = {}): void {
    this.#counters.get(name)?.inc(labels)
  }

  /** Records one duration. */
  observe(name: OfType<'histogram'>, labels: Labels, seconds: number): void {
    this.#histograms.get(name)?.observe(labels, seconds)
  }

  /** The text that Prometheus scrapes. These samples replace those of the scrape before. */
  async expose(samples: readonly Sample[]): Promise<{ contentType: string; text: string }> {
    for (const metric of this.#sampled) metric.reset()
    for (const [name, labels, value] of samples) {
      const metric = this.#counters.get(name) ?? this.#gauges.get(name)
      metric?.inc(labels, value)
      if (metric) this.#sampled.add(metric)
    }
    return { contentType: this.#registry.contentType, text: await this.#registry.metrics() }
  }
}

/** Counts what the event hub publishes. Values that the hub's state holds are sampled instead. */
export const metricsSubscriber =
  (metrics: Metrics): Subscriber =>
  event => {
    if (event.type === 'check') {
      const { service, ok, seconds } = event
      metrics.inc('roundelay_checks_total', { service, result: ok ? 'pass' : 'fail' })
      metrics.observe('roundelay_check_duration_seconds', { service }, seconds)
    } else if (event.type === 'not-checked') {
      metrics.inc('roundelay_checks_not_made_total', { service: event.service })
    } else if (event.type === 'source' && event.error !== undefined) {
      metrics.inc('roundelay_source_failures_total', { service: event.service })
    }
  }
