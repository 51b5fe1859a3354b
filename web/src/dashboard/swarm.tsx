//! The picture of the swarm: bodies about their centre of mass, what each holds, what flows between them.

import type { JSX } from 'preact';
import { bytes, layers as layerText, rate } from '../format';
import { placeBodies, shorten } from '../orbit';
import type { NodeView, Plan, Snapshot } from '../protocol';
import { backendName, busyShare, nameOf, pictureOrder } from '../story';
import { TRAFFIC_NAMES, bothDirections, sumOfKinds } from '../traffic';
import type { Flow, LinkTraffic, TrafficKind } from '../traffic';
import { useWidth } from '../ui';

const LEGEND: readonly TrafficKind[] = ['activations', 'side_gradients', 'adapter_gradients', 'cache'];

interface Dot {
  view: NodeView;
  x: number;
  y: number;
  radius: number;
}

export function Swarm({ snapshot, traffic }: { snapshot: Snapshot; traffic: LinkTraffic[] }): JSX.Element {
  const [setBox, width] = useWidth<HTMLDivElement>();
  const { nodes, run } = snapshot;
  const plan = run?.plan;
  const flowing = traffic.some((link) => link.forth.rate + link.back.rate > 0);
  return (
    <section class="panel swarm" aria-label="The swarm" data-testid="swarm">
      <div class="panel-head">
        <h2>Swarm</h2>
        {nodes.length > 1 && <span class="quiet">nearer the middle = faster</span>}
      </div>
      <div ref={setBox} class="swarm-box">
        {width > 0 && <Picture width={width} nodes={pictureOrder(nodes, plan)} traffic={traffic} />}
      </div>
      {flowing && (
        <ul class="legend">
          {LEGEND.map((kind) => (
            <li key={kind} class={`kind-${kind}`}>
              {TRAFFIC_NAMES[kind]}
            </li>
          ))}
        </ul>
      )}
      {plan && <Shares plan={plan} nodes={nodes} />}
      {traffic.length > 0 && <Links nodes={nodes} traffic={traffic} />}
    </section>
  );
}

function Picture({ width, nodes, traffic }: { width: number; nodes: NodeView[]; traffic: LinkTraffic[] }): JSX.Element {
  const narrow = width < 480;
  const height = narrow ? Math.min(360, Math.max(300, width)) : 340;
  const marginX = narrow ? 58 : 96;
  const halfX = width / 2 - marginX;
  const halfY = height / 2 - 58;
  const centre = { x: width / 2, y: height / 2 - 8 };
  const placed = placeBodies(nodes.map((view) => ({ id: view.node, mass: view.gflops })));
  const dots: Dot[] = placed.flatMap((p, i) => {
    const view = nodes[i];
    return view ? [{ view, x: centre.x + p.x * halfX, y: centre.y + p.y * halfY, radius: 9 + 17 * Math.sqrt(p.share) }] : [];
  });
  const busy = traffic.reduce((n, link) => n + (link.forth.rate > 0 ? 1 : 0) + (link.back.rate > 0 ? 1 : 0), 0);
  return (
    <svg class="swarm-picture" width={width} height={height} viewBox={`0 0 ${width} ${height}`} role="img" aria-label={pictureText(nodes, traffic)}>
      {placed.map((p) => p.orbit > 0.02 && <ellipse key={`o${p.id}`} class="orbit" cx={centre.x} cy={centre.y} rx={p.orbit * halfX} ry={p.orbit * halfY} />)}
      {nodes.length === 0 && (
        <>
          <ellipse class="orbit" cx={centre.x} cy={centre.y} rx={halfX} ry={halfY} />
          <ellipse class="orbit" cx={centre.x} cy={centre.y} rx={halfX * 0.45} ry={halfY * 0.45} />
          <text class="swarm-empty" x={centre.x} y={centre.y + halfY + 30}>no device yet</text>
        </>
      )}
      <path class="point" d={`M${centre.x} ${centre.y - 7}v14M${centre.x - 7} ${centre.y}h14`} />
      {traffic.map((link) => {
        const a = dots.find((dot) => dot.view.node === link.a);
        const b = dots.find((dot) => dot.view.node === link.b);
        return a && b ? <LinkLine key={`${link.a}-${link.b}`} a={a} b={b} link={link} labelled={busy <= 8} /> : null;
      })}
      {dots.map((dot) => (
        <BodyMark key={dot.view.node} dot={dot} narrow={narrow} />
      ))}
    </svg>
  );
}

function BodyMark({ dot, narrow }: { dot: Dot; narrow: boolean }): JSX.Element {
  const { view, x, y, radius } = dot;
  const ring = radius + 5;
  const around = 2 * Math.PI * ring;
  const busy = busyShare(view.counters);
  const gpu = view.backend.kind === 'webgpu';
  const holds = view.layers ? layerText(view.layers) : view.train_slots ? `${view.train_slots[1] - view.train_slots[0]} samples a step` : 'no layers';
  return (
    <g class={gpu ? 'body gpu' : 'body cpu'}>
      <circle class="ring" cx={x} cy={y} r={ring} />
      {busy !== null && (
        <circle class="ring-busy" cx={x} cy={y} r={ring} stroke-dasharray={`${around * busy} ${around}`} transform={`rotate(-90 ${x} ${y})`} />
      )}
      <circle class="disc" cx={x} cy={y} r={radius} />
      <circle class="shine" cx={x - radius * 0.28} cy={y - radius * 0.28} r={radius * 0.62} />
      <text class="body-name" x={x} y={y + ring + 17}>
        {shorten(view.name, narrow ? 15 : 24)}
      </text>
      <text class="body-holds" x={x} y={y + ring + 32}>
        {holds} · {backendName(view.backend.kind)}
      </text>
    </g>
  );
}

function LinkLine({ a, b, link, labelled }: { a: Dot; b: Dot; link: LinkTraffic; labelled: boolean }): JSX.Element {
  return (
    <g>
      <line class="link" x1={a.x} y1={a.y} x2={b.x} y2={b.y} />
      <FlowLine from={a} to={b} flow={link.forth} labelled={labelled} />
      <FlowLine from={b} to={a} flow={link.back} labelled={labelled} />
    </g>
  );
}

/** Dashes that move from one body to the other, a little to the left of the line between them. */
function FlowLine({ from, to, flow, labelled }: { from: Dot; to: Dot; flow: Flow; labelled: boolean }): JSX.Element | null {
  if (flow.rate <= 0 || flow.dominant === null) return null;
  const length = Math.hypot(to.x - from.x, to.y - from.y) || 1;
  const ux = (to.x - from.x) / length;
  const uy = (to.y - from.y) / length;
  const side = 4;
  const start = { x: from.x + ux * (from.radius + 8) + uy * side, y: from.y + uy * (from.radius + 8) - ux * side };
  const end = { x: to.x - ux * (to.radius + 8) + uy * side, y: to.y - uy * (to.radius + 8) - ux * side };
  // A factor of ten in traffic is 1.1 pixels of width: 1 kB/s is thin, 100 MB/s is thick.
  const thickness = Math.min(6.5, Math.max(1.5, 1.1 * (Math.log10(flow.rate) - 2)));
  const labelX = start.x + (end.x - start.x) * 0.5 + uy * 13;
  const labelY = start.y + (end.y - start.y) * 0.5 - ux * 13;
  return (
    <g class={`flow kind-${flow.dominant}`}>
      <line x1={start.x} y1={start.y} x2={end.x} y2={end.y} stroke-width={thickness} />
      {labelled && length > 120 && (
        <text x={labelX} y={labelY + 4} text-anchor={Math.abs(uy) < 0.4 ? 'middle' : uy > 0 ? 'start' : 'end'}>
          {rate(flow.rate)}
        </text>
      )}
    </g>
  );
}

/** Which layers and which share of each mini-batch lie where. */
function Shares({ plan, nodes }: { plan: Plan; nodes: NodeView[] }): JSX.Element {
  const slots = plan.train.reduce((sum, member) => sum + member.slots.end - member.slots.start, 0);
  return (
    <dl class="shares">
      <div>
        <dt>Layers while filling</dt>
        <dd class="strip">
          {plan.stages.map((stage) => (
            <span key={stage.layers.start} class="strip-part cool" style={{ flexGrow: stage.layers.end - stage.layers.start }}>
              <b>{stage.layers.end - stage.layers.start === 1 ? stage.layers.end : `${stage.layers.start + 1}–${stage.layers.end}`}</b>{' '}
              {stage.members.map((m) => nameOf(m.node, nodes)).join(' + ')}
            </span>
          ))}
        </dd>
      </div>
      <div>
        <dt>Samples per step while training</dt>
        <dd class="strip">
          {plan.train.filter((m) => m.slots.end > m.slots.start).map((member) => (
            <span key={member.node} class="strip-part warm" style={{ flexGrow: member.slots.end - member.slots.start }}>
              <b>
                {member.slots.end - member.slots.start}/{slots}
              </b>{' '}
              {nameOf(member.node, nodes)}
            </span>
          ))}
        </dd>
      </div>
    </dl>
  );
}

function Links({ nodes, traffic }: { nodes: NodeView[]; traffic: LinkTraffic[] }): JSX.Element {
  return (
    <details class="links">
      <summary>Links and bytes</summary>
      <div class="scroll">
        <table>
          <thead>
            <tr>
              <th>Link</th>
              <th class="num">round trip</th>
              <th class="num">measured</th>
              {LEGEND.map((kind) => (
                <th key={kind} class="num">
                  {TRAFFIC_NAMES[kind]}
                </th>
              ))}
              <th class="num">all</th>
            </tr>
          </thead>
          <tbody>
            {traffic.map((link) => {
              const totals = bothDirections(link);
              return (
                <tr key={`${link.a}-${link.b}`}>
                  <th scope="row">
                    {nameOf(link.a, nodes)} – {nameOf(link.b, nodes)}
                  </th>
                  <td class="num">{link.roundTripMillis.toFixed(link.roundTripMillis < 10 ? 1 : 0)} ms</td>
                  <td class="num">{rate(link.bytesPerSecond)}</td>
                  {LEGEND.map((kind) => (
                    <td key={kind} class="num">
                      {bytes(totals[kind])}
                    </td>
                  ))}
                  <td class="num">{bytes(sumOfKinds(totals))}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </details>
  );
}

function pictureText(nodes: NodeView[], traffic: LinkTraffic[]): string {
  if (nodes.length === 0) return 'No device has joined yet';
  const bodies = nodes.map((n) => `${n.name}: ${n.layers ? layerText(n.layers) : 'no layers'}`).join('; ');
  const flows = traffic.filter((link) => link.forth.rate + link.back.rate > 0).map((link) => `${nameOf(link.a, nodes)} and ${nameOf(link.b, nodes)} exchange ${rate(link.forth.rate + link.back.rate)}`);
  return [bodies, ...flows].join('. ');
}
