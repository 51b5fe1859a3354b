// In the Worker: all contenders start from the same weights, and take steps when they are told to.

import * as jax from './jax.mjs';
import * as ours from './ours.mjs';
import * as tensorflow from './tensorflow.mjs';

let contenders;

/** Weights as the others take them: linear layers turned from [out, in] to [in, out], so that they multiply A · B. */
function turned(weights, { hidden_size: width }) {
  const list = Object.entries(weights).map(([name, values]) => {
    const short = name.replace(/\.weight$/, '');
    if (name.includes('norm')) return [short, { values, shape: [values.length] }];
    if (name.includes('embed')) return [short, { values, shape: [values.length / width, width] }];
    const out = name.includes('down_proj') ? width : values.length / width;
    const inner = values.length / out;
    const columns = new Float32Array(values.length);
    for (let i = 0; i < out; i++) for (let j = 0; j < inner; j++) columns[j * out + i] = values[i * inner + j];
    return [short, { values: columns, shape: [inner, out] }];
  });
  return Object.fromEntries(list);
}

const answers = {
  async start({ threads, backend, task, names }) {
    const node = await ours.load(threads);
    const { contender, weights } = await ours.start(node, backend, task);
    contenders = { Barycenter: contender };
    const given = { ...task, weights: turned(weights, task.config) };
    if (names.includes('TensorFlow.js')) contenders['TensorFlow.js'] = await tensorflow.start(threads, backend, given);
    if (names.includes('jax-js')) contenders['jax-js'] = await jax.start(threads, backend, given);
  },
  /** Losses before each of the first steps. */
  async losses({ name, steps }) {
    const list = [];
    for (let step = 0; step < steps; step++) list.push(await contenders[name].run(1));
    return list;
  },
  /** Milliseconds of a step. */
  async time({ name, steps }) {
    const started = performance.now();
    await contenders[name].run(steps);
    return (performance.now() - started) / steps;
  },
};

onmessage = async ({ data: { what, ...asked } }) => {
  try {
    postMessage({ answer: await answers[what](asked) });
  } catch (error) {
    postMessage({ failed: `${error?.stack ?? error}` });
  }
};
postMessage({ answer: 'ready' });
