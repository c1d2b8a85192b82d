import test from 'ava';
import { benchRefusal, describeDevices, workersMaskFor } from '../../bench/machine.ts';

test('what the benchmark cannot do without is said in a sentence', (t) => {
  const able = { isRoot: true, cpuCount: 2, hasProgram: () => true, hasWorkers: true };
  t.is(benchRefusal(able), null);
  t.regex(`${benchRefusal({ ...able, isRoot: false })}`, /as root\.$/);
  t.regex(`${benchRefusal({ ...able, cpuCount: 1 })}`, /two CPUs/);
  t.regex(`${benchRefusal({ ...able, hasWorkers: false })}`, /cpumask writable/);
  const hasProgram = (name: string) => name !== 'fio' && name !== 'qemu-nbd';
  t.regex(`${benchRefusal({ ...able, hasProgram })}`, /needs fio, qemu-nbd: install .*`apt-get/);
});

test('the page says whether the devices lie on a disk or in memory', (t) => {
  t.regex(describeDevices('/dev/shm'), /in memory \(tmpfs\)$/);
  t.regex(describeDevices('/proc'), /on the same disk$/);
});

test("the kernel's workers are where the servers are", (t) => {
  t.is(workersMaskFor('pinned', 'f'), '2');
  t.is(workersMaskFor('unpinned', 'f'), 'f');
});
