import test from 'ava';
import { jobs } from '../../bench/jobs.ts';
import type { Round } from '../../bench/measure.ts';
import { insertResults, median, renderResults, type Series } from '../../bench/report.ts';

const job = jobs.find(({ name }) => name === 'randwrite-32');
if (job === undefined) throw new Error('there is no job of random writes');

function series(server: Series['server'], rates: readonly number[], cpuUs: number): Series {
  const rounds = rates.map(
    (perSecond, turn): Round => ({
      perSecond,
      bytesPerSecond: perSecond * 4096,
      flushes: 0,
      serverCpuUs: cpuUs,
      medianUs: 100,
      p99Us: 200,
      foreignShare: turn / 20,
      hitShare: null,
      deviceShare: null,
      ring: null,
    }),
  );
  if (job === undefined) throw new Error('unreachable');
  return { placement: 'pinned', job, server, rounds, discarded: 1 };
}

function render(own: readonly number[], cpuUs: number): string {
  return renderResults({
    machine: ['a machine'],
    roundsWanted: 3,
    seconds: 3,
    foreignMax: 0.25,
    series: [
      series('ringfence', own, cpuUs),
      series('nbdkit null', [100, 300, 200], 5),
      series('nbdkit file', [50, 50, 50], 10),
      series('qemu-nbd', [60, 60, 60], 8),
    ],
    sustained: null,
  });
}

test('the median is the middle of an odd number and the mean of the middle two of an even', (t) => {
  t.is(median([3, 1, 2]), 2);
  t.is(median([4, 1, 2, 3]), 2.5);
});

test('a target is met by the ratio of medians, and by less CPU time', (t) => {
  const page = render([199, 201, 1000], 7);
  t.regex(page, /\| 1\.00 of nbdkit null \| 1\.00 \| yes \|/);
  t.regex(page, /\| below qemu-nbd \| 7\.00 against 8\.00 µs \| yes \|/);
});

test('a target that is missed is shown as missed', (t) => {
  const page = render([100, 100, 100], 9);
  t.regex(page, /\| 1\.00 of nbdkit null \| 0\.50 \| \*\*no\*\* \|/);
  t.regex(page, /\| below qemu-nbd \| 9\.00 against 8\.00 µs \| \*\*no\*\* \|/);
});

test('the page says how much of the machine others had', (t) => {
  const line = '12 kept, in which others used 5 % of a CPU (median; at most 10 %); 4 discarded';
  t.true(render([1, 2, 3], 1).includes(`3 s; ${line} at more than 25 %`));
});

test('results replace what stands between the marks and nothing else', (t) => {
  const begin = '<!-- results: written by `npm run bench` -->';
  const end = '<!-- end of results -->';
  const page = `before\n${begin}\nold\n${end}\nafter\n`;
  t.is(insertResults(page, 'new'), `before\n${begin}\n\nnew\n\n${end}\nafter\n`);
  t.throws(() => insertResults('a page without marks', 'new'));
});
