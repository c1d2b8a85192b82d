import test from 'ava';
import { benchRefusal, describeDevices, maskOf } from '../../bench/machine.ts';

test('what the benchmark cannot do without is said in a sentence', (t) => {
  const able = { isRoot: true, cpuCount: 2, hasProgram: () => true };
  t.is(benchRefusal(able), null);
  t.regex(`${benchRefusal({ ...able, isRoot: false })}`, /as root\.$/);
  t.regex(`${benchRefusal({ ...able, cpuCount: 1 })}`, /two CPUs/);
  const hasProgram = (name: string) => name !== 'fio' && name !== 'qemu-nbd';
  t.regex(`${benchRefusal({ ...able, hasProgram })}`, /needs fio, qemu-nbd: install .*`apt-get/);
});

test('the page says whether the devices lie on a disk or in memory', (t) => {
  t.regex(describeDevices('/dev/shm'), /in memory \(tmpfs\)$/);
  t.regex(describeDevices(import.meta.dirname), /on the same disk$/);
});

test('lists of CPUs become masks', (t) => {
  t.deepEqual(['0', '1', '0-1', '0-3,5', '40'].map(maskOf), ['1', '2', '3', '2f', '10000000000']);
});
