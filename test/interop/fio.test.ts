/** fio's nbd engine with verification, four connections at once. */

import test from 'ava';
import { MIB } from '../support/loop.ts';
import { run } from '../support/process.ts';
import { ask } from '../support/ringfence.ts';
import { serveDisk } from '../support/setting.ts';

interface FioJob {
  readonly jobname: string;
  readonly error: number;
  readonly read: { readonly io_bytes: number };
  readonly write: { readonly io_bytes: number };
}

const JOBS = 4;
const AREA_BYTES = 24 * MIB;

/** Four jobs, each on its own connection and its own area. */
async function fio(uri: string, args: readonly string[]): Promise<readonly FioJob[]> {
  const output = await run('fio', [
    ...['--output-format=json', '--ioengine=nbd', `--uri=${uri}`, '--name=verified'],
    ...[`--numjobs=${JOBS}`, `--size=${AREA_BYTES}`, `--offset_increment=${AREA_BYTES}`],
    ...['--iodepth=16', '--verify=crc32c', '--verify_fatal=1', '--thread=1', ...args],
    // It would leave its state in the working directory.
    '--verify_state_save=0',
  ]);
  return (JSON.parse(output.slice(output.indexOf('{'))) as { jobs: readonly FioJob[] }).jobs;
}

for (const [what, size] of [
  ['4 KiB blocks', ['--bs=4k']],
  ['sizes from 512 bytes to 256 KiB', ['--bsrange=512-256k', '--bs_unaligned=0']],
] as const) {
  test.serial(`fio verifies random writes of ${what} on four connections`, async (t) => {
    t.timeout(180_000);
    const { daemon, uri } = await serveDisk(t);
    const write = ['--rw=randwrite', ...size, '--fsync=64'];
    const jobs = await fio(uri, [...write, '--do_verify=1']);
    t.is(jobs.length, JOBS);
    for (const job of jobs) {
      t.is(job.error, 0);
      t.is(job.write.io_bytes, AREA_BYTES);
      t.is(job.read.io_bytes, AREA_BYTES);
    }
    // Once more when the origin has it all and the cache may have dropped some of it.
    await ask(daemon, 'drain');
    const again = await fio(uri, [...write, '--verify_only=1']);
    t.deepEqual(
      again.map((job) => [job.error, job.read.io_bytes]),
      jobs.map(() => [0, AREA_BYTES]),
    );
  });
}
