// Where the built program is, for the benches that run it.

import { existsSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The repository's root folder. */
export const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');

const target = resolve(root, process.env.CARGO_TARGET_DIR ?? 'target');
const found = [process.env.BARYCENTER, join(target, 'release/barycenter'), join(target, 'debug/barycenter')].find((file) => file && existsSync(file));
if (!found) throw new Error('the program is not built: run `cargo build --release -p barycenter`, or name it in BARYCENTER');

/** `barycenter`: $BARYCENTER, or the release build, or the everyday build. */
export const program = found;
