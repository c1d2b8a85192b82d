/** qemu's block layer as client: qemu-io and qemu-img. */

import { join } from 'node:path';
import test from 'ava';
import { writeContentFile } from '../support/content.ts';
import { run, runAnyway } from '../support/process.ts';
import { ask } from '../support/ringfence.ts';
import { serveDisk } from '../support/setting.ts';

/** Runs qemu-io commands on an export; throws when a pattern did not match. */
async function qemuIo(uri: string, commands: readonly string[]): Promise<string> {
  const args = commands.flatMap((command) => ['-c', command]);
  const output = await run('qemu-io', ['--format', 'raw', ...args, uri]);
  if (/fail|error/i.test(output)) throw new Error(output);
  return output;
}

test.serial('qemu-io verifies patterns, aligned and not, across its own restarts', async (t) => {
  const { uri } = await serveDisk(t);
  await qemuIo(uri, [
    'write -P 0x11 0 1M',
    'write -P 0x22 4096 4096',
    'write -P 0x33 1000 3000',
    'write -P 0x44 1048575 2',
    'aio_write -P 0x55 2M 64k',
    'aio_flush',
    'write -z 3M 1M',
    'write -f -P 0x66 3145729 511',
    'flush',
  ]);
  await qemuIo(uri, [
    'read -P 0x11 0 1000',
    'read -P 0x33 1000 3000',
    'read -P 0x11 4000 96',
    'read -P 0x22 4096 4096',
    'read -P 0x11 8192 1040383',
    'read -P 0x44 1048575 2',
    'read -P 0x55 2M 64k',
    'read -P 0 3M 1',
    'read -P 0x66 3145729 511',
    'read -P 0 3146240 512',
  ]);
  await qemuIo(uri, ['discard 0 1M', 'flush', 'read -P 0x55 2M 64k']);
  t.pass();
});

test.serial('qemu-io notices a wrong pattern, so that the test above can fail', async (t) => {
  const { uri } = await serveDisk(t);
  await t.throwsAsync(qemuIo(uri, ['write -P 0x11 0 4096', 'read -P 0x12 0 4096']));
});

test.serial('a read-only export refuses qemu-io a write', async (t) => {
  const { uri } = await serveDisk(t, { options: 'mode=readonly' });
  const refused = await runAnyway('qemu-io', ['--format', 'raw', '-c', 'write 0 4096', uri]);
  t.not(refused.exitCode, 0);
  await run('qemu-io', ['--read-only', '--format', 'raw', '-c', 'read -P 0 0 4096', uri]);
});

test.serial(
  'qemu-img converts onto the export and finds it equal, also after a drain',
  async (t) => {
    t.timeout(180_000);
    const { daemon, folder, originFile, sizeBytes, uri } = await serveDisk(t);
    const source = join(folder, 'source.raw');
    writeContentFile(source, sizeBytes, 2);
    await run('qemu-img', ['convert', '-n', '-p', '-f', 'raw', '-O', 'raw', source, uri]);
    const compare = ['compare', '-f', 'raw', '-F', 'raw', source];
    t.regex(await run('qemu-img', [...compare, uri]), /identical/);
    await ask(daemon, 'drain');
    t.regex(await run('qemu-img', [...compare, originFile]), /identical/);
    await run('qemu-io', ['--format', 'raw', '-c', 'write -P 9 5M 1', uri]);
    t.is((await runAnyway('qemu-img', [...compare, uri])).exitCode, 1);
  },
);
