// How long the planner takes as wasm: `node bench/planner.mjs` (builds the example, then times it in this process).

import { execFileSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';

const TARGET = 'wasm32-unknown-unknown';
/** Devices, layers, mini-batch, draws. */
const SIZES = [
  [4, 32, 16, 20],
  [16, 32, 16, 20],
  [1000, 32, 256, 1],
];

const root = new URL('..', import.meta.url);
if (!process.argv[2]) execFileSync('cargo', ['build', '--release', '-p', 'barycenter-core', '--example', 'planner_wasm', '--target', TARGET], { cwd: root, stdio: 'inherit' });
const file = process.argv[2] ?? new URL(`target/${TARGET}/release/examples/planner_wasm.wasm`, root);
const { instance } = await WebAssembly.instantiate(await readFile(file), {});
const { plan_household: plan, draw_household: draw } = instance.exports;

const timed = (work) => {
  const began = performance.now();
  const result = work();
  return [performance.now() - began, result];
};

console.log('devices  layers  batch  milliseconds, mean  longest');
for (const [devices, layers, batch, draws] of SIZES) {
  const times = [];
  for (let seed = 0; seed < draws; seed += 1) {
    const [drawing] = timed(() => draw(devices, layers, batch, seed));
    const [planning, objective] = timed(() => plan(devices, layers, batch, seed));
    if (!(objective > 0)) throw new Error(`no plan for ${devices} devices, seed ${seed}`);
    times.push(Math.max(0, planning - drawing));
  }
  const mean = times.reduce((sum, time) => sum + time, 0) / draws;
  console.log([String(devices).padStart(7), String(layers).padStart(6), String(batch).padStart(5), mean.toFixed(1).padStart(18), Math.max(...times).toFixed(1).padStart(7)].join('  '));
}
