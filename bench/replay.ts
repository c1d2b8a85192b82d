/** Lists of requests that fio replays, for what its options cannot say. */

import { writeFileSync } from 'node:fs';
import { createRandom } from '../test/support/content.ts';
import type { Job } from './jobs.ts';

/** No client on this kind of machine sends more: a list is not at its end before the round is. */
const PER_SECOND_MAX = 300_000;

/** Writes in random places, and a flush after every so many, as fio's I/O log (version 2). */
export function requestList(job: Job, fioFile: string, writes: number, seed: number): string {
  const random = createRandom(seed);
  const lines = ['fio version 2 iolog', `${fioFile} add`, `${fioFile} open`];
  const blocks = job.areaBytes / job.blockBytes;
  for (let write = 1; write <= writes; write += 1) {
    lines.push(`${fioFile} write ${(random() % blocks) * job.blockBytes} ${job.blockBytes}`);
    if (write % job.flushEvery === 0) lines.push(`${fioFile} sync 0 0`);
  }
  return `${lines.join('\n')}\n`;
}

/** Writes a list that is long enough for a round. */
export function writeRequestList(
  path: string,
  job: Job,
  fioFile: string,
  seconds: number,
  seed: number,
): void {
  writeFileSync(path, requestList(job, fioFile, Math.ceil(PER_SECOND_MAX * seconds), seed));
}
