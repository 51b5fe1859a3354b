// TensorFlow.js's step, as its back ends are fastest. The wasm one multiplies fast only A · B of two matrices, and a gradient of
// its own would ask for transposed operands; it has no kernel for the gradient of `gather`; and it fuses nothing. So products,
// norms, rotations, embedding and loss come with gradients written out here.

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-core/dist/register_all_gradients.js';
import { setThreadsCount, setWasmPaths } from '@tensorflow/tfjs-backend-wasm';
import '@tensorflow/tfjs-backend-webgpu';

const { add, matMul, mean, mul, square, sub, sum, transpose } = tf;

/** x · w. */
const product = tf.customGrad((x, w, save) => {
  save([x, w]);
  return { value: matMul(x, w), gradFunc: (dy, [x, w]) => [matMul(dy, transpose(w)), matMul(transpose(x), dy)] };
});

/** x · tableᵀ. */
const scores = tf.customGrad((x, table, save) => {
  save([x, table]);
  return { value: matMul(x, transpose(table)), gradFunc: (dy, [x, table]) => [matMul(dy, table), matMul(transpose(dy), x)] };
});

const rmsNorm = (eps) => tf.customGrad((x, weight, save) => {
  const inverse = tf.rsqrt(add(mean(square(x), -1, true), eps));
  const normed = mul(x, inverse);
  save([normed, inverse, weight]);
  return {
    value: mul(normed, weight),
    gradFunc: (dy, [normed, inverse, weight]) => {
      const along = mul(dy, weight);
      const radial = mean(mul(along, normed), -1, true);
      return [mul(inverse, sub(along, mul(normed, radial))), sum(mul(dy, normed), 0)];
    },
  };
});

const turned = (x, cos, sin) => {
  const [low, high] = tf.split(x, 2, -1);
  return tf.concat([sub(mul(low, cos), mul(high, sin)), add(mul(high, cos), mul(low, sin))], -1);
};
/** Rotary positions of x: [sequences, tokens, heads, head_dim]; cos and sin: [tokens, 1, head_dim / 2]. */
const rotary = (cos, sin, minusSin) =>
  tf.customGrad((x) => ({ value: turned(x, cos, sin), gradFunc: (dy) => turned(dy, cos, minusSin) }));

const embedding = (ids, indices) => tf.customGrad((table) => {
  const { shape } = table;
  return { value: tf.gather(table, ids), gradFunc: (dy) => tf.scatterND(indices, dy, shape) };
});

const crossEntropy = (classes) => tf.customGrad((logits, save) => {
  const [rows, vocab] = logits.shape;
  const probabilities = tf.softmax(logits);
  const wanted = tf.cast(tf.oneHot(classes, vocab), 'float32');
  save([probabilities, wanted]);
  return {
    value: tf.neg(mean(tf.log(sum(mul(probabilities, wanted), -1)))),
    gradFunc: (dy, [probabilities, wanted]) => mul(sub(probabilities, wanted), tf.div(dy, rows)),
  };
});

/**
 * Attention of q, k, v: [sequences · heads, tokens, head_dim]. (Of a list of matrices the wasm back end multiplies slowly; taking the
 * list apart for its fast kernel takes four times as long, because each slice copies the whole.)
 */
const attention = (mask, scale) => tf.customGrad((q, k, v, save) => {
  const probabilities = tf.softmax(add(mul(matMul(q, k, false, true), scale), mask));
  save([q, k, v, probabilities]);
  return {
    value: matMul(probabilities, v, false, false),
    gradFunc: (dy, [q, k, v, probabilities]) => {
      const along = mul(matMul(dy, v, false, true), probabilities);
      const dscores = mul(sub(along, mul(probabilities, sum(along, -1, true))), scale);
      return [matMul(dscores, k, false, false), matMul(dscores, q, true, false), matMul(probabilities, dy, true, false)];
    },
  };
});

export async function start(threads, backend, { config, batch, rate, adam, weights }) {
  setWasmPaths('/');
  setThreadsCount(threads);
  if (!(await tf.setBackend(backend))) throw new Error(`no back end ${backend}`);
  await tf.ready();
  const { sequences, tokens } = batch;
  const { hidden_size: width, num_attention_heads: heads, head_dim: headDim, num_hidden_layers: layers } = config;
  const trained = new Map();
  for (const [name, { values, shape }] of Object.entries(weights)) {
    trained.set(name, {
      value: tf.variable(tf.tensor(values, shape), true),
      m: tf.variable(tf.zeros(shape), false),
      v: tf.variable(tf.zeros(shape), false),
    });
  }
  const weight = (name) => trained.get(name).value;
  const norm = rmsNorm(config.rms_norm_eps);
  const angles = (f) => {
    const half = headDim / 2;
    return tf.tensor(Float32Array.from({ length: tokens * half }, (_, at) => f(Math.floor(at / half) * config.rope_theta ** (-(at % half) / half))), [tokens, 1, half]);
  };
  const [cos, sin, minusSin] = [angles(Math.cos), angles(Math.sin), angles((x) => -Math.sin(x))];
  const rotate = rotary(cos, sin, minusSin);
  const mask = tf.tensor(Float32Array.from({ length: tokens * tokens }, (_, at) => (at % tokens > Math.floor(at / tokens) ? -1e9 : 0)), [tokens, tokens]);
  const ids = tf.tensor1d(Int32Array.from(batch.ids), 'int32');
  const classes = tf.tensor1d(Int32Array.from(batch.classes), 'int32');
  const indices = tf.reshape(ids, [-1, 1]);

  const byHead = (x) => transpose(x, [0, 2, 1, 3]);
  const attend = attention(mask, 1 / Math.sqrt(headDim));
  const layer = (x, index) => {
    const of = (name) => weight(`model.layers.${index}.${name}`);
    const y = norm(x, of('input_layernorm'));
    const split = (name) => tf.reshape(product(y, of(`self_attn.${name}_proj`)), [sequences, tokens, heads, headDim]);
    const together = (x) => tf.reshape(byHead(x), [-1, tokens, headDim]);
    const attended = attend(together(rotate(split('q'))), together(rotate(split('k'))), together(split('v')));
    const back = byHead(tf.reshape(attended, [sequences, heads, tokens, headDim]));
    const middle = add(x, product(tf.reshape(back, [-1, width]), of('self_attn.o_proj')));
    const z = norm(middle, of('post_attention_layernorm'));
    const gate = product(z, of('mlp.gate_proj'));
    const inner = mul(mul(gate, tf.sigmoid(gate)), product(z, of('mlp.up_proj')));
    return add(middle, product(inner, of('mlp.down_proj')));
  };
  const loss = () => {
    const table = weight('model.embed_tokens');
    let x = embedding(ids, indices)(table);
    for (let index = 0; index < layers; index++) x = layer(x, index);
    return crossEntropy(classes)(scores(norm(x, weight('model.norm')), table));
  };

  const variables = [...trained.values()].map(({ value }) => value);
  const byVariable = new Map([...trained.values()].map((of) => [of.value.name, of]));
  const { beta1, beta2, eps, decay } = adam;
  let step = 0;
  const train = () => tf.tidy(() => {
    const { value: lossValue, grads } = tf.variableGrads(loss, variables);
    step++;
    const root = Math.sqrt(1 - beta2 ** step);
    // rate · m̂ / (√v̂ + ε), with the corrections of both taken out of the sums over all weights.
    const factor = (rate / (1 - beta1 ** step)) * root;
    for (const [name, grad] of Object.entries(grads)) {
      const { value, m, v } = byVariable.get(name);
      m.assign(add(mul(m, beta1), mul(grad, 1 - beta1)));
      v.assign(add(mul(v, beta2), mul(square(grad), 1 - beta2)));
      value.assign(sub(mul(value, 1 - rate * decay), tf.div(mul(m, factor), add(tf.sqrt(v), eps * root))));
    }
    return lossValue;
  });
  return {
    async run(steps) {
      let last;
      for (let at = 0; at < steps; at++) {
        last?.dispose();
        last = train();
      }
      const [value] = await last.data();
      last.dispose();
      return value;
    },
  };
}
