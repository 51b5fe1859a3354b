//! Builds the pages into `web/dist`: `node web/build.mjs [--dev]`. Leaves the browser node (`assets/node*`) alone.

import { build } from 'esbuild';
import { cp, mkdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const web = dirname(fileURLToPath(import.meta.url));
const dist = join(web, 'dist');
const dev = process.argv.includes('--dev');

await mkdir(join(dist, 'assets'), { recursive: true });
const result = await build({
  entryPoints: ['dashboard.tsx', 'join.tsx', 'try.tsx', 'worker.ts', 'load-node.ts', 'compute-thread.ts'].map((name) => join(web, 'src', name)),
  outdir: join(dist, 'assets'),
  bundle: true,
  format: 'esm',
  target: ['chrome109', 'firefox115', 'safari16.4'],
  jsx: 'automatic',
  jsxImportSource: 'preact',
  minify: !dev,
  sourcemap: dev,
  legalComments: 'none',
  metafile: true,
  logLevel: 'warning',
});
for (const page of ['index.html', 'join.html', 'try.html']) await cp(join(web, 'static', page), join(dist, page));
await cp(join(web, 'static', 'icon.svg'), join(dist, 'assets', 'icon.svg'));

const bytes = Object.values(result.metafile.outputs).reduce((sum, output) => sum + output.bytes, 0);
const hasNode = await stat(join(dist, 'assets', 'node_bg.wasm')).then(() => true, () => false);
console.log(`web: ${Math.round(bytes / 1000)} kB into web/dist${hasNode ? '' : '; assets/node_bg.wasm is not there yet: cargo xtask web makes it'}`);
