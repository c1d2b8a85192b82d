import test from 'ava';
import { jobs } from '../../bench/jobs.ts';
import { requestList } from '../../bench/replay.ts';

test('a list has a flush after so many writes, each within the area', (t) => {
  const job = jobs.find(({ replayed }) => replayed);
  if (job === undefined) throw new Error('there is no job with a list');
  const lines = requestList(job, 'disk', 3 * job.flushEvery, 1)
    .trim()
    .split('\n');
  t.deepEqual(lines.splice(0, 3), ['fio version 2 iolog', 'disk add', 'disk open']);
  const flushes = lines.flatMap((line, index) => (line === 'disk sync 0 0' ? [index] : []));
  const period = job.flushEvery + 1;
  t.deepEqual(flushes, [period - 1, 2 * period - 1, 3 * period - 1]);
  const offsets = new Set<number>();
  for (const line of lines.filter((_, index) => !flushes.includes(index))) {
    const [name, action, offset, length] = line.split(' ');
    t.deepEqual([name, action, Number(length)], ['disk', 'write', job.blockBytes]);
    t.true(Number(offset) + job.blockBytes <= job.areaBytes && Number(offset) % 4096 === 0);
    offsets.add(Number(offset));
  }
  t.true(offsets.size > 2 * job.flushEvery, 'places are spread');
});
