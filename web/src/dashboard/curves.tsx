//! Training and held-out loss over the steps of a run, drawn by uPlot.

import type { JSX } from 'preact';
import { useEffect, useMemo, useRef } from 'preact/hooks';
import uPlot from 'uplot';
import { loss as lossText } from '../format';
import type { RunView } from '../protocol';
import { curveColumns, epochStarts } from '../story';
import { useDark, useWidth } from '../ui';

const HEIGHT = 270;

export function Curves({ run }: { run: RunView }): JSX.Element {
  const [setBox, width] = useWidth<HTMLDivElement>();
  const plot = useRef<uPlot | null>(null);
  const host = useRef<HTMLDivElement>(null);
  const dark = useDark();
  const columns = useMemo(() => curveColumns(run.losses, run.held_out), [run.losses, run.held_out]);
  const starts = useRef<number[]>([]);
  starts.current = epochStarts(run.info);
  const totalSteps = useRef(0);
  totalSteps.current = run.info.epochs * run.info.steps_per_epoch;

  // The plot is made once per size and colour scheme; new points only replace its data.
  useEffect(() => {
    if (!host.current || width === 0) return undefined;
    const made = new uPlot(options(width, starts, totalSteps), columns, host.current);
    plot.current = made;
    return () => {
      made.destroy();
      plot.current = null;
    };
  }, [width, dark]);
  useEffect(() => plot.current?.setData(columns), [columns]);

  const last = run.losses.at(-1);
  const held = run.held_out.at(-1);
  return (
    <figure class="curves" data-testid="curves">
      <figcaption>
        <span class="key train">training loss <b>{last ? lossText(last.loss) : '–'}</b></span>
        <span class="key held">held-out loss <b>{held ? lossText(held.loss) : '–'}</b></span>
      </figcaption>
      <div ref={setBox} class="plot-box">
        <div ref={host} role="img" aria-label={description(run)} />
      </div>
      {run.losses.length === 0 && <p class="plot-empty">The curve begins with the first step.</p>}
    </figure>
  );
}

function description(run: RunView): string {
  const first = run.losses[0];
  const last = run.losses.at(-1);
  if (!first || !last) return 'No loss yet';
  const held = run.held_out.at(-1);
  return `Training loss from ${lossText(first.loss)} to ${lossText(last.loss)}${held ? `, held-out loss ${lossText(held.loss)}` : ''}`;
}

function options(width: number, starts: { current: number[] }, totalSteps: { current: number }): uPlot.Options {
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string): string => style.getPropertyValue(name).trim();
  const axis: uPlot.Axis = {
    stroke: colour('--muted'),
    font: '12px system-ui, sans-serif',
    grid: { stroke: colour('--line'), width: 1 },
    ticks: { show: false },
  };
  return {
    width,
    height: HEIGHT,
    padding: [24, 16, 0, 0],
    legend: { show: false },
    cursor: { points: { size: 8 }, drag: { x: false, y: false } },
    scales: {
      x: { time: false, range: (u) => [0, Math.max(totalSteps.current, u.data[0].at(-1) ?? 0, 1)] },
      y: { range: (_, min, max) => [0, (max ?? 1) === 0 ? 1 : Math.max(max ?? 1, min ?? 0) * 1.06] },
    },
    axes: [
      { ...axis, size: 26, label: 'steps', labelSize: 18, labelFont: '12px system-ui, sans-serif', labelGap: 0 },
      { ...axis, size: 44, splits: (_, __, min, max) => niceSplits(min, max), values: (_, values) => values.map((v) => String(Number(v.toPrecision(3)))) },
    ],
    series: [
      {},
      { label: 'training', stroke: colour('--cool'), width: 1.75, points: { show: false } },
      { label: 'held-out', stroke: colour('--warm'), width: 1.75, spanGaps: true, points: { show: true, size: 8, width: 2, fill: colour('--surface') } },
    ],
    hooks: {
      drawAxes: [
        (u) => {
          const { ctx } = u;
          const dpr = devicePixelRatio;
          ctx.save();
          ctx.strokeStyle = colour('--muted');
          ctx.fillStyle = colour('--muted');
          ctx.font = `${11 * dpr}px system-ui, sans-serif`;
          ctx.textAlign = 'left';
          ctx.textBaseline = 'bottom';
          ctx.setLineDash([2 * dpr, 4 * dpr]);
          const begins = [0, ...starts.current];
          begins.forEach((at, epoch) => {
            const x = Math.round(u.valToPos(at, 'x', true));
            if (epoch > 0) {
              ctx.beginPath();
              ctx.moveTo(x, u.bbox.top);
              ctx.lineTo(x, u.bbox.top + u.bbox.height);
              ctx.stroke();
            }
            const text = epoch === 0 ? 'fill' : epoch === 1 ? 'train from cache' : '';
            const next = epoch === 0 ? begins[1] : totalSteps.current;
            const room = next === undefined ? Infinity : u.valToPos(next, 'x', true) - x;
            if (begins.length > 1 && text && ctx.measureText(text).width + 12 * dpr < room) ctx.fillText(text, x + (epoch === 0 ? 0 : 3 * dpr), u.bbox.top - 6 * dpr);
          });
          ctx.restore();
        },
      ],
    },
  };
}

/** About five round marks between two values. */
export function niceSplits(min: number, max: number): number[] {
  const rough = (max - min) / 5;
  if (!(rough > 0)) return [min];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 2.5, 5, 10].find((m) => m * power >= rough) ?? 10) * power;
  const first = Math.ceil(min / step);
  return Array.from({ length: Math.floor(max / step) - first + 1 }, (_, i) => (first + i) * step);
}
