/** libnbd from Python (`python/*.py`): single requests, their flags and their errors. */

import { join } from 'node:path';
import test from 'ava';
import { projectRoot, run } from '../support/process.ts';
import { serveDisk } from '../support/setting.ts';

/** Debian's own interpreter is the one that python3-libnbd is for. */
const PYTHON = '/usr/bin/python3';

async function python(script: string, uri: string): Promise<string> {
  // -B: no compiled copies in the source tree.
  return run(PYTHON, ['-B', join(projectRoot, 'test', 'interop', 'python', script), uri]);
}

test.serial('requests, flags, structured replies and errors are as libnbd expects', async (t) => {
  const { uri } = await serveDisk(t);
  const output = await python('requests.py', uri);
  t.regex(output, /^\d+ checks passed$/m);
  t.log(output.trim());
});

test.serial('a read-only export answers every way of writing with EPERM', async (t) => {
  const { uri } = await serveDisk(t, { options: 'mode=readonly' });
  t.regex(await python('readonly.py', uri), /^\d+ checks passed$/m);
});

test.serial('what one connection writes every other one sees at once', async (t) => {
  const { uri } = await serveDisk(t);
  t.regex(await python('connections.py', uri), /^\d+ checks passed$/m);
});
