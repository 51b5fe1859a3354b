//! The picture of the swarm: bodies about their centre of mass, what each holds, what flows between them.

import type { JSX } from 'preact';
import { bytes, layers as layerText, plural, rate } from '../format';
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
  /** Above the body in the upper half, so that links towards the middle stay clear of it. */
  labelAbove: boolean;
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
        {nodes.length > 1 && <span class="quiet">the cross is their centre of mass, by speed</span>}
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
  const height = narrow ? Math.min(380, Math.max(320, width)) : 360;
  // Room for half a name at the sides, and for a label above and below.
  const half = { x: Math.max(30, width / 2 - (narrow ? 68 : 118)), y: height / 2 - 66 };
  const middle = { x: width / 2, y: height / 2 };
  const { bodies, barycentre } = placeBodies(nodes.map((view) => ({ id: view.node, mass: view.gflops })));
  const point = { x: middle.x + barycentre.x * half.x, y: middle.y + barycentre.y * half.y };
  const dots: Dot[] = bodies.flatMap((p, i) => {
    const view = nodes[i];
    return view ? [{ view, x: middle.x + p.x * half.x, y: middle.y + p.y * half.y, radius: 9 + 19 * Math.sqrt(p.share), labelAbove: p.y < -0.2 }] : [];
  });
  const flows = traffic.reduce((n, link) => n + (link.forth.rate > 0 ? 1 : 0) + (link.back.rate > 0 ? 1 : 0), 0);
  const labels = flows > 8 ? 'none' : narrow ? 'larger' : 'both';
  return (
    <svg class={nodes.length > 5 ? 'swarm-picture crowded' : 'swarm-picture'} width={width} height={height} viewBox={`0 0 ${width} ${height}`} role="img" aria-label={pictureText(nodes, traffic)}>
      <defs>
        <linearGradient id="orbit-fade" x2="0" y2="1">
          <stop offset="0" stop-color="#000" />
          <stop offset="0.22" stop-color="#fff" />
          <stop offset="0.78" stop-color="#fff" />
          <stop offset="1" stop-color="#000" />
        </linearGradient>
        <mask id="orbit-mask" maskUnits="userSpaceOnUse" x="0" y="0" width={width} height={height}>
          <rect width={width} height={height} fill="url(#orbit-fade)" />
        </mask>
      </defs>
      <g mask="url(#orbit-mask)">
        {nodes.length === 0
          ? [1, 0.45].map((r) => <ellipse key={r} class="orbit" cx={middle.x} cy={middle.y} rx={half.x * r} ry={half.y * r} />)
          : dots.map((dot) => <Orbit key={dot.view.node} dot={dot} point={point} flatness={half.y / half.x} />)}
      </g>
      {nodes.length !== 1 && <path class="point" d={`M${point.x} ${point.y - 8}v16M${point.x - 8} ${point.y}h16`} />}
      {nodes.length === 0 && (
        <text class="swarm-empty" x={middle.x} y={middle.y + 34}>
          Nothing circles this point
        </text>
      )}
      {traffic.map((link) => {
        const a = dots.find((dot) => dot.view.node === link.a);
        const b = dots.find((dot) => dot.view.node === link.b);
        return a && b ? <LinkLine key={`${link.a}-${link.b}`} a={a} b={b} link={link} labels={labels} /> : null;
      })}
      {dots.map((dot) => (
        <BodyMark key={dot.view.node} dot={dot} narrow={narrow} />
      ))}
    </svg>
  );
}

/** The ellipse about the common point that goes through a body; flattened like the picture. */
function Orbit({ dot, point, flatness }: { dot: Dot; point: { x: number; y: number }; flatness: number }): JSX.Element | null {
  const radius = Math.hypot(dot.x - point.x, (dot.y - point.y) / flatness);
  return radius < 4 ? null : <ellipse class="orbit" cx={point.x} cy={point.y} rx={radius} ry={radius * flatness} />;
}

function BodyMark({ dot, narrow }: { dot: Dot; narrow: boolean }): JSX.Element {
  const { view, x, y, radius } = dot;
  const ring = radius + 5;
  const around = 2 * Math.PI * ring;
  const busy = busyShare(view.counters);
  const holds = view.layers ? layerText(view.layers) : view.train_slots ? plural(view.train_slots[1] - view.train_slots[0], 'sample') : 'no layers';
  const labelY = dot.labelAbove ? y - ring - 24 : y + ring + 18;
  return (
    <g class={view.backend.kind === 'webgpu' ? 'body gpu' : 'body cpu'}>
      <circle class="ring" cx={x} cy={y} r={ring} />
      {busy !== null && (
        <circle class="ring-busy" cx={x} cy={y} r={ring} stroke-dasharray={`${around * busy} ${around}`} transform={`rotate(-90 ${x} ${y})`} />
      )}
      <circle class="disc" cx={x} cy={y} r={radius} />
      <circle class="shine" cx={x - radius * 0.28} cy={y - radius * 0.28} r={radius * 0.62} />
      <text class="body-name" x={x} y={labelY}>
        {shorten(view.name, narrow ? 15 : 24)}
      </text>
      <text class="body-holds" x={x} y={labelY + 15}>
        {holds} · {backendName(view.backend.kind)}
      </text>
    </g>
  );
}

function LinkLine({ a, b, link, labels }: { a: Dot; b: Dot; link: LinkTraffic; labels: 'none' | 'larger' | 'both' }): JSX.Element {
  const labelled = (own: number, other: number): boolean => labels === 'both' || (labels === 'larger' && own > other);
  return (
    <g>
      <line class={link.relayed ? 'link relayed' : 'link'} x1={a.x} y1={a.y} x2={b.x} y2={b.y} />
      <FlowLine from={a} to={b} flow={link.forth} labelled={labelled(link.forth.rate, link.back.rate)} />
      <FlowLine from={b} to={a} flow={link.back} labelled={labelled(link.back.rate, link.forth.rate * (1 + 1e-9))} />
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
      {labelled && length > 130 && (
        <text x={labelX} y={labelY + 4} text-anchor={Math.abs(uy) < 0.4 ? 'middle' : uy > 0 ? 'start' : 'end'}>
          {rate(flow.rate)}
        </text>
      )}
    </g>
  );
}

/** Parts of a mini-batch in their order: how many of its samples each device has. */
function Samples({ members, of, tone, nodes, plan }: { members: Plan['train']; of: number; tone: string; nodes: NodeView[]; plan: Plan }): JSX.Element {
  return (
    <dd class={members.length > 4 ? 'strip many' : 'strip'}>
      {members.map(({ node, slots }) => (
        <span key={slots.start} class={`strip-part ${tone}`} style={{ flexGrow: slots.end - slots.start }}>
          <b>
            {slots.end - slots.start}/{of}
          </b>{' '}
          {nameOf(node, nodes, plan)}
        </span>
      ))}
    </dd>
  );
}

/** Which layers and which share of each mini-batch lie where. */
function Shares({ plan, nodes }: { plan: Plan; nodes: NodeView[] }): JSX.Element {
  const slots = plan.train.reduce((sum, member) => sum + member.slots.end - member.slots.start, 0);
  const stores = plan.stores ?? [];
  return (
    <dl class="shares">
      <div>
        <dt>Layers while filling</dt>
        <dd class={plan.stages.length > 4 ? 'strip many' : 'strip'}>
          {plan.stages.map((stage) => (
            <span key={stage.layers.start} class="strip-part cool" style={{ flexGrow: stage.layers.end - stage.layers.start }}>
              <b>{stage.layers.end - stage.layers.start === 1 ? stage.layers.end : `${stage.layers.start + 1}–${stage.layers.end}`}</b>{' '}
              {stage.members.map((m) => nameOf(m.node, nodes, plan)).join(' + ')}
            </span>
          ))}
        </dd>
      </div>
      <div>
        <dt>Samples per step while training</dt>
        <Samples members={plan.train.filter((m) => m.slots.end > m.slots.start)} of={slots} tone="warm" nodes={nodes} plan={plan} />
      </div>
      {stores.length > 0 && (
        <div>
          <dt>Whose storage keeps their cache entries</dt>
          <Samples members={stores} of={slots} tone="stored" nodes={nodes} plan={plan} />
        </div>
      )}
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
              <th>way</th>
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
                  <td data-testid="way">{link.relayed ? 'relayed' : 'direct'}</td>
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
