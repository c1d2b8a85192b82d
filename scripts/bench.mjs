// Makes everything ready, then runs the side-by-side benchmark; arguments go to it.
//
//   npm run bench -- --rounds 1 --seconds 1
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import process from 'node:process';
import { root, runAsScript } from './lib/process.mjs';
import { setup } from './setup.mjs';

await runAsScript(import.meta.url, async (parameters) => {
  await setup();
  const main = join(root, 'dist', 'bench', 'main.js');
  const result = spawnSync(process.execPath, [main, ...parameters], { stdio: 'inherit' });
  return result.status ?? 1;
});
