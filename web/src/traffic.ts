//! What flows on each link, computed from the byte counters of successive snapshots.

import type { LinkCounters, Snapshot } from './protocol';

/** Kinds of traffic, in the order of the legend. */
export const TRAFFIC_KINDS = ['activations', 'side_gradients', 'adapter_gradients', 'cache', 'other'] as const;
export type TrafficKind = (typeof TRAFFIC_KINDS)[number];

/** Names for people. */
export const TRAFFIC_NAMES: Record<TrafficKind, string> = {
  activations: 'activations',
  side_gradients: 'side gradients',
  adapter_gradients: 'adapter gradients',
  cache: 'cache entries',
  other: 'greetings and probes',
};

/** One direction of a link. */
export interface Flow {
  /** Bytes per second over the last few seconds. */
  rate: number;
  /** The kind that makes up most of it, `null` when nothing flows. */
  dominant: TrafficKind | null;
  /** Bytes since joining, by kind. */
  totals: Record<TrafficKind, number>;
}

/** A link with both directions. */
export interface LinkTraffic {
  a: number;
  b: number;
  roundTripMillis: number;
  bytesPerSecond: number;
  /** Through the server. */
  relayed: boolean;
  forth: Flow;
  back: Flow;
}

interface Sample {
  atMillis: number;
  totals: Map<string, Record<TrafficKind, number>>;
}

/** Counters come once a second; over this window a rate neither flickers nor lags much. */
const WINDOW_MILLIS = 3500;

/** Remembers the last seconds of counters; one per page. */
export class TrafficMeter {
  private samples: Sample[] = [];

  /** Takes a snapshot in and says what flows. */
  update(snapshot: Snapshot): LinkTraffic[] {
    const totals = directedTotals(snapshot);
    this.samples.push({ atMillis: snapshot.now_millis, totals });
    this.samples = this.samples.filter((s) => snapshot.now_millis - s.atMillis <= WINDOW_MILLIS && s.atMillis <= snapshot.now_millis);
    return snapshot.links.map((link) => ({
      a: link.a,
      b: link.b,
      roundTripMillis: link.round_trip_millis,
      bytesPerSecond: link.bytes_per_second,
      relayed: link.relayed,
      forth: this.flow(link.a, link.b),
      back: this.flow(link.b, link.a),
    }));
  }

  private flow(from: number, to: number): Flow {
    const key = directionKey(from, to);
    const first = this.samples.find((sample) => sample.totals.has(key));
    const last = this.samples.at(-1);
    const totals = last?.totals.get(key) ?? noTraffic();
    const before = first?.totals.get(key);
    if (!first || !last || !before || last.atMillis <= first.atMillis) return { rate: 0, dominant: null, totals };
    const seconds = (last.atMillis - first.atMillis) / 1000;
    let rate = 0;
    let dominant: TrafficKind | null = null;
    let most = 0;
    for (const kind of TRAFFIC_KINDS) {
      // A node that joined anew counts from zero again.
      const moved = Math.max(0, totals[kind] - before[kind]);
      // Probes keep a link warm at all times: they are counted, but they are no traffic to show.
      if (kind === 'other') continue;
      rate += moved / seconds;
      if (moved > most) {
        most = moved;
        dominant = kind;
      }
    }
    return { rate, dominant, totals };
  }
}

/** Bytes of all kinds. */
export function sumOfKinds(totals: Record<TrafficKind, number>): number {
  return TRAFFIC_KINDS.reduce((sum, kind) => sum + totals[kind], 0);
}

/** Both directions together, by kind. */
export function bothDirections(link: LinkTraffic): Record<TrafficKind, number> {
  const sum = noTraffic();
  for (const kind of TRAFFIC_KINDS) sum[kind] = link.forth.totals[kind] + link.back.totals[kind];
  return sum;
}

/** Counters of one link, by kind. */
export function byKind(link: LinkCounters): Record<TrafficKind, number> {
  return {
    activations: link.activations_bytes,
    side_gradients: link.side_gradients_bytes,
    adapter_gradients: link.adapter_gradients_bytes,
    cache: link.cache_bytes,
    other: link.other_bytes,
  };
}

function directedTotals(snapshot: Snapshot): Map<string, Record<TrafficKind, number>> {
  const totals = new Map<string, Record<TrafficKind, number>>();
  for (const node of snapshot.nodes) {
    for (const link of node.counters.links) totals.set(directionKey(node.node, link.peer), byKind(link));
  }
  return totals;
}

function directionKey(from: number, to: number): string {
  return `${from}>${to}`;
}

function noTraffic(): Record<TrafficKind, number> {
  return { activations: 0, side_gradients: 0, adapter_gradients: 0, cache: 0, other: 0 };
}
