// jax-js's step: one compiled function of weights, moments and batch. An array that is passed on is given away; `.ref` keeps it.

import { defaultDevice, init, jit, nn, numpy as np, tree, valueAndGrad } from '@jax-js/jax';

export async function start(threads, backend, { config, batch, rate, adam, weights }) {
  if (!(await init(backend)).includes(backend)) throw new Error(`no device ${backend}`);
  defaultDevice(backend);
  const { sequences, tokens } = batch;
  const { hidden_size: width, num_attention_heads: heads, head_dim: headDim, num_hidden_layers: layers, vocab_size: vocab } = config;
  const array = (values, shape) => np.array(values).reshape(shape);
  const weight = (name) => {
    const { values, shape } = weights[name];
    return array(values, shape);
  };
  const parts = { q: 'self_attn.q_proj', k: 'self_attn.k_proj', v: 'self_attn.v_proj', o: 'self_attn.o_proj', gate: 'mlp.gate_proj', up: 'mlp.up_proj', down: 'mlp.down_proj', before: 'input_layernorm', middle: 'post_attention_layernorm' };
  const layerOf = (index) => Object.fromEntries(Object.entries(parts).map(([part, name]) => [part, weight(`model.layers.${index}.${name}`)]));
  let params = { table: weight('model.embed_tokens'), layers: Array.from({ length: layers }, (_, index) => layerOf(index)), last: weight('model.norm') };
  const zeros = () => tree.map((x) => np.zeros(x.shape), params);
  let [m, v] = [zeros(), zeros()];
  const half = headDim / 2;
  const angles = (f) =>
    array(Float32Array.from({ length: tokens * headDim }, (_, at) => f(Math.floor(at / headDim) * config.rope_theta ** (-(at % half) / half), at % headDim < half)), [tokens, 1, headDim]);
  // The lower half turns with the upper one's negative sine.
  const [cos, sin] = [angles((x) => Math.cos(x)), angles((x, lower) => (lower ? -Math.sin(x) : Math.sin(x)))];
  const ids = np.array(Int32Array.from(batch.ids));
  const classes = np.array(Int32Array.from(batch.classes));

  const norm = (x, weight) => {
    const inverse = np.reciprocal(np.sqrt(np.square(x.ref).mean(-1, { keepdims: true }).add(config.rms_norm_eps)));
    return x.mul(inverse).mul(weight);
  };
  const rotate = (x) => {
    const swapped = np.flip(x.ref.reshape([sequences, tokens, heads, 2, half]), 3).reshape([sequences, tokens, heads, headDim]);
    return x.mul(cos.ref).add(swapped.mul(sin.ref));
  };
  const layer = (x, { q, k, v, o, gate, up, down, before, middle }) => {
    const y = norm(x.ref, before);
    const split = (y, weight) => np.matmul(y, weight).reshape([sequences, tokens, heads, headDim]);
    const [queries, keys, values] = [rotate(split(y.ref, q)), rotate(split(y.ref, k)), split(y, v)];
    const attended = nn.dotProductAttention(queries, keys, values, { isCausal: true }).reshape([-1, width]);
    x = x.add(np.matmul(attended, o));
    const z = norm(x.ref, middle);
    const inner = nn.silu(np.matmul(z.ref, gate)).mul(np.matmul(z, up));
    return x.add(np.matmul(inner, down));
  };
  const loss = ({ table, layers, last }, ids, classes) => {
    let x = np.take(table.ref, ids, 0);
    for (const of of layers) x = layer(x, of);
    const logits = np.matmul(norm(x, last), table.transpose());
    const wanted = classes.reshape([-1, 1]).equal(np.arange(vocab, undefined, undefined, { dtype: np.int32 }));
    const target = np.where(wanted, logits.ref, 0).sum(-1);
    return nn.logsumexp(logits, -1).sub(target).mean();
  };

  const { beta1, beta2, eps, decay } = adam;
  // `factor` and `floor` are rate / (1 − β₁ᵗ) · √(1 − β₂ᵗ) and ε · √(1 − β₂ᵗ).
  const update = jit((params, m, v, factor, floor, ids, classes) => {
    const [value, grads] = valueAndGrad(loss)(tree.ref(params), ids, classes);
    const [olds, form] = tree.flatten(params);
    const [gs, ms, vs] = [grads, m, v].map((of) => tree.leaves(of));
    const next = { params: [], m: [], v: [] };
    olds.forEach((old, at) => {
      const m = ms[at].mul(beta1).add(gs[at].ref.mul(1 - beta1));
      const v = vs[at].mul(beta2).add(np.square(gs[at]).mul(1 - beta2));
      next.params.push(old.mul(1 - rate * decay).sub(m.ref.mul(factor.ref).div(np.sqrt(v.ref).add(floor.ref))));
      next.m.push(m);
      next.v.push(v);
    });
    factor.dispose();
    floor.dispose();
    return [value, ...['params', 'm', 'v'].map((part) => tree.unflatten(form, next[part]))];
  });
  let step = 0;
  return {
    async run(steps) {
      let last;
      for (let at = 0; at < steps; at++) {
        last?.dispose();
        step++;
        const root = Math.sqrt(1 - beta2 ** step);
        const factor = np.array((rate / (1 - beta1 ** step)) * root);
        [last, params, m, v] = update(params, m, v, factor, np.array(eps * root), ids.ref, classes.ref);
      }
      // Nothing is computed before it is asked for.
      await Promise.all(tree.leaves(params).map((x) => x.blockUntilReady()));
      return (await last.data())[0];
    },
  };
}
