// Largest relative errors of every golden folder on both back ends: `node bench/verify.mjs`.
//
// Needs the built program (BARYCENTER names one built elsewhere). Ends with 1 where a tensor is above tolerance.

import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { program, root } from './program.mjs';

const golden = join(root, 'tests/golden');
let passed = true;
console.log('folder                device  golden     pac        LoRA       on');
for (const folder of readdirSync(golden).filter((name) => existsSync(join(golden, name, 'golden.safetensors')))) {
  for (const device of ['cpu', 'gpu']) {
    const { status, stdout, stderr } = spawnSync(program, ['verify', join(golden, folder), '--device', device], { encoding: 'utf8' });
    const worst = (part) => stdout.match(new RegExp(`largest relative error, ${part}: (\\S+)`))?.[1] ?? '—';
    const on = stdout.match(/ on (.*)/)?.[1] ?? stderr.trim().split('\n').at(-1);
    console.log(`${folder.padEnd(21)} ${device.padEnd(7)} ${worst('golden').padEnd(10)} ${worst('pac').padEnd(10)} ${worst('lora').padEnd(10)} ${on}${status === 0 ? '' : '  FAILED'}`);
    passed &&= status === 0;
  }
}
process.exit(passed ? 0 : 1);
