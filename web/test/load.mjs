//! Bundles a TypeScript module into a temporary file and imports it.

import { build } from 'esbuild';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const sources = join(dirname(fileURLToPath(import.meta.url)), '..', 'src');

export async function load(name) {
  const folder = await mkdtemp(join(tmpdir(), 'barycenter-web-'));
  try {
    const outfile = join(folder, 'module.mjs');
    await build({ entryPoints: [join(sources, name)], outfile, bundle: true, format: 'esm', logLevel: 'warning', jsx: 'automatic', jsxImportSource: 'preact', loader: { '.css': 'empty' } });
    return await import(pathToFileURL(outfile).href);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
