// Barycenter's step: the browser node as pages load it.

import { loadNode } from '/assets/load-node.js';

export async function load(threads) {
  const node = await loadNode({
    wasmModule: threads > 1 ? '/assets/node_threads_bg.wasm' : '/assets/node_bg.wasm',
    threads, threadsRemark: '', memoryBudgetBytes: 2 ** 30, failures: 'bench',
  });
  if (!node.Training) throw new Error('this browser node has no training steps: build it with `cargo xtask wasm --bench`');
  const { backend: { description } } = await node.self_test('cpu');
  if (!description.endsWith(threads > 1 ? `${threads} threads` : '1 thread')) throw new Error(description);
  return node;
}

/** The training, and the weights that it starts with, for the others. */
export async function start(node, backend, { config, batch: { ids, classes, tokens }, seed, rate }) {
  const training = await node.Training.start(backend === 'wasm' ? 'cpu' : 'gpu', JSON.stringify(config), seed, rate);
  const weights = await training.weights();
  const contender = {
    async run(steps) {
      let loss;
      for (let step = 0; step < steps; step++) loss = await training.step(ids, classes, tokens);
      return loss;
    },
  };
  return { contender, weights };
}
