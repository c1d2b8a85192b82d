/** The metrics page: the cache's own metrics and those of the Node process. */

import { collectDefaultMetrics, type Metric, Registry } from 'prom-client';
import { METRICS, type MetricSource, type Sample } from './definitions.ts';

/** A page that is built at scrape time. */
export interface MetricsPage {
  readonly contentType: string;
  /** The page as it is now. */
  render(): Promise<string>;
}

/** Prefix of the metrics that prom-client knows of a Node process. */
export const NODE_PREFIX = 'ringfence_nodejs_';

/** Gauges whose names end like counters, which `promtool check metrics` refuses. */
const MISNAMED_NODE_METRICS = [
  'nodejs_active_handles_total',
  'nodejs_active_requests_total',
  'nodejs_active_resources_total',
];

/**
 * Makes the page. `source` is asked once per scrape, so that all metrics show one moment; while
 * the cache is not open it answers null, and the page shows the process alone.
 */
export function createMetricsPage(source: () => MetricSource | null): MetricsPage {
  const registry = new Registry();
  let current: MetricSource | null = null;
  for (const { name, help, type, samples } of METRICS) {
    const get = async () => ({
      name,
      help,
      type,
      aggregator: 'sum',
      values: current === null ? [] : samples(current),
    });
    registerReadOnly(registry, { name, help, type, get });
  }
  collectDefaultMetrics({ register: registry, prefix: NODE_PREFIX });
  for (const name of MISNAMED_NODE_METRICS) registry.removeSingleMetric(`${NODE_PREFIX}${name}`);
  return {
    contentType: registry.contentType,
    async render() {
      // No wait lies between this and the samples: each scrape shows the moment it took itself.
      current = source();
      return registry.metrics();
    },
  };
}

/** What the registry calls of a metric when it renders one. */
interface ReadOnlyMetric {
  readonly name: string;
  readonly help: string;
  readonly type: string;
  get(): Promise<{ readonly values: readonly Sample[] }>;
}

/**
 * Registers an object that only has values. prom-client's classes count by themselves, and its
 * histogram cannot be given counts; its registry, though, asks nothing of a metric but `get()`.
 */
function registerReadOnly(registry: Registry, metric: ReadOnlyMetric): void {
  registry.registerMetric(metric as unknown as Metric);
}
