/** libnbd's command-line tools: nbdinfo, nbdcopy, nbddump. */

import { join } from 'node:path';
import test from 'ava';
import { firstDifference, writeContentFile } from '../support/content.ts';
import { MIB } from '../support/loop.ts';
import { run, runAnyway } from '../support/process.ts';
import { ask, socketPath } from '../support/ringfence.ts';
import { EXPORT, serveDisk } from '../support/setting.ts';

interface ExportInfo {
  readonly 'export-name': string;
  readonly 'export-size': number;
  readonly block_size_minimum?: number;
  readonly block_size_preferred?: number;
}

test.serial('nbdinfo lists the export with its size and block sizes', async (t) => {
  const { daemon, sizeBytes } = await serveDisk(t);
  const server = `nbd+unix://?socket=${socketPath(daemon.setup)}`;
  const listing = JSON.parse(await run('nbdinfo', ['--list', '--json', server])) as {
    readonly protocol: string;
    readonly structured: boolean;
    readonly exports: readonly ExportInfo[];
  };
  t.is(listing.protocol, 'newstyle-fixed');
  t.true(listing.structured);
  t.deepEqual(
    listing.exports.map((one) => [one['export-name'], one['export-size']]),
    [[EXPORT, sizeBytes]],
  );
  t.is(listing.exports[0]?.block_size_minimum, 1);
  t.is(listing.exports[0]?.block_size_preferred, 4096);
});

test.serial('nbdinfo finds every ability that is advertised and no other', async (t) => {
  const { uri } = await serveDisk(t);
  const can = async (ability: string): Promise<boolean> => {
    const { exitCode, stderr } = await runAnyway('nbdinfo', ['--can', ability, uri]);
    if (exitCode !== 0 && exitCode !== 2) throw new Error(stderr);
    return exitCode === 0;
  };
  for (const ability of ['flush', 'fua', 'trim', 'zero', 'multi-conn', 'df', 'structured']) {
    t.true(await can(ability), ability);
  }
  t.true(await can('write'));
  t.false(await can('rotational'));
});

test.serial('a read-only export says so to nbdinfo', async (t) => {
  const { uri } = await serveDisk(t, { options: 'mode=readonly' });
  t.is((await runAnyway('nbdinfo', ['--is', 'readonly', uri])).exitCode, 0);
  t.is((await runAnyway('nbdinfo', ['--can', 'write', uri])).exitCode, 2);
});

test.serial('an export that does not exist is refused by name', async (t) => {
  const { daemon } = await serveDisk(t);
  const uri = `nbd+unix:///nothing?socket=${socketPath(daemon.setup)}`;
  const { exitCode, stderr } = await runAnyway('nbdinfo', [uri]);
  t.not(exitCode, 0);
  // The words for ERR_UNKNOWN, and behind them the name that was asked for.
  t.regex(stderr, /error to opt_go request: No such file or directory for export: nothing$/m);
});

test.serial('nbdcopy there and back gives the same bytes', async (t) => {
  t.timeout(180_000);
  const { daemon, folder, originFile, sizeBytes, uri } = await serveDisk(t);
  const source = join(folder, 'source');
  const back = join(folder, 'back');
  writeContentFile(source, sizeBytes, 1);
  await run('nbdcopy', ['--flush', '--connections=4', source, uri]);
  await run('nbdcopy', ['--connections=4', uri, back]);
  t.is(firstDifference(source, back, sizeBytes), null);
  await ask(daemon, 'drain');
  t.is(firstDifference(source, originFile, sizeBytes), null);
});

test.serial('nbddump shows zeroes where nothing was written and data where it was', async (t) => {
  const { uri } = await serveDisk(t, { sizeBytes: 32 * MIB });
  t.regex(await run('nbddump', ['--length=4096', uri]), /0000000000: 00 00/);
  await run('qemu-io', ['--format', 'raw', '-c', 'write -P 0x72 512 9', uri]);
  t.regex(await run('nbddump', ['--length=1024', uri]), /rrrrrrrrr/);
});
