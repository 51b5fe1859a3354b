//! One card per device: what it does, on what, how its time is spent, what it holds and sends.

import type { JSX } from 'preact';
import { sentence } from '../api';
import { bytes, duration, gflops, layers as layerText, percent } from '../format';
import type { LinkView, NodeView, Snapshot } from '../protocol';
import { backendName, busyShare } from '../story';
import { byKind, sumOfKinds } from '../traffic';
import { Meter } from '../ui';

export function Devices({ snapshot }: { snapshot: Snapshot }): JSX.Element | null {
  if (snapshot.nodes.length === 0) return null;
  return (
    <section class="panel" aria-label="Devices" data-testid="devices">
      <div class="panel-head">
        <h2>Devices</h2>
      </div>
      <ul class="devices">
        {snapshot.nodes.map((node) => (
          <Device key={node.node} node={node} links={snapshot.links.filter((link) => link.a === node.node || link.b === node.node)} />
        ))}
      </ul>
    </section>
  );
}

function Device({ node, links }: { node: NodeView; links: LinkView[] }): JSX.Element {
  const { counters } = node;
  const sent = counters.links.reduce((sum, link) => sum + sumOfKinds(byKind(link)), 0);
  const busy = busyShare(counters);
  const memoryShare = node.memory_budget_bytes > 0 ? counters.memory_bytes / node.memory_budget_bytes : 0;
  return (
    <li class="device" data-testid="device">
      <div class="device-head">
        <h3>{node.name}</h3>
        <span class={`chip ${node.backend.kind === 'webgpu' ? 'gpu' : 'cpu'}`}>{backendName(node.backend.kind)}</span>
      </div>
      <p class="device-doing">{node.activity.charAt(0).toUpperCase() + node.activity.slice(1) || 'Idle'}</p>
      {node.progress != null && node.progress < 1 && <Meter fraction={node.progress} label={node.activity} />}
      <p class="device-why">
        {node.kind === 'browser' ? 'Browser' : 'Native program'}, {node.backend.description}, {gflops(node.gflops)}. {sentence(node.backend.reason)}
      </p>
      <dl class="facts">
        <div class="wide">
          <dt>Time</dt>
          <dd>
            {busy === null ? (
              'nothing computed yet'
            ) : (
              <>
                <span class="split" role="img" aria-label={`${percent(busy)} computing`}>
                  <i style={{ flexGrow: busy }} />
                  <i style={{ flexGrow: 1 - busy }} />
                </span>
                <span class="split-key">
                  <span>
                    computing <b>{duration(counters.compute_seconds)}</b>
                  </span>
                  <span>
                    waiting <b>{duration(counters.wait_seconds)}</b>
                  </span>
                </span>
              </>
            )}
          </dd>
        </div>
        <div>
          <dt>Memory</dt>
          <dd>
            <span>
              <b>{bytes(counters.memory_bytes)}</b> of {bytes(node.memory_budget_bytes)}
            </span>
            <Meter fraction={memoryShare} label="Memory in use" tone="plain" />
            <small>{counters.peak_memory_bytes > 0 ? peaks(node) : ''}</small>
          </dd>
        </div>
        <div>
          <dt>Holds</dt>
          <dd>
            <b>{node.layers ? layerText(node.layers) : node.train_slots ? 'the adapter' : 'nothing'}</b>
            <small>backbone {bytes(counters.backbone_bytes)}</small>
            <small>cache {bytes(counters.cache_bytes)}</small>
          </dd>
        </div>
        <div>
          <dt>Sent to peers</dt>
          <dd>
            <b>{bytes(sent)}</b>
            <small data-testid="ways">{ways(links)}</small>
          </dd>
        </div>
        <div>
          <dt>Weights fetched</dt>
          <dd>
            <b>{bytes(counters.weights_downloaded_bytes)}</b>
          </dd>
        </div>
      </dl>
    </li>
  );
}

/** Which way this device's links go. */
function ways(links: LinkView[]): string {
  const relayed = links.filter((link) => link.relayed).length;
  const direct = links.length - relayed;
  return [direct > 0 ? `${direct} direct` : '', relayed > 0 ? `${relayed} relayed` : ''].filter(Boolean).join(', ');
}

function peaks({ counters }: NodeView): string {
  const parts = [
    counters.fill_peak_memory_bytes > 0 ? `fill ${bytes(counters.fill_peak_memory_bytes)}` : '',
    counters.train_peak_memory_bytes > 0 ? `train ${bytes(counters.train_peak_memory_bytes)}` : '',
  ].filter(Boolean);
  return `peak ${parts.length > 0 ? parts.join(', ') : bytes(counters.peak_memory_bytes)}`;
}
