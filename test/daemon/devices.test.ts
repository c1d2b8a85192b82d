import { constants } from 'node:fs';
import { open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { SYSTEM } from '../../daemon/attach/supervision.ts';
import {
  type Device,
  deviceNumber,
  deviceSignatures,
  findDevice,
  findWriter,
  parseLocks,
  parseMountinfo,
  parseWipefs,
  programFolders,
  refuseDeviceInUse,
} from '../../daemon/devices.ts';
import { loopDevice, MIB, sparseFile, temporaryFolder } from '../support/loop.ts';
import { run, runAnyway, startProcess, waitUntil } from '../support/process.ts';
import { ringfenceCommand } from '../support/ringfence.ts';
import { type Scope, testScope } from '../support/scope.ts';

test('device numbers as glibc packs them', (t) => {
  t.is(deviceNumber(0x0801n), '8:1');
  t.is(deviceNumber(0x10301n), '259:1');
  t.is(deviceNumber(0x100801n), '8:257');
});

test('mounts are read with their escapes', (t) => {
  const text = [
    '22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw',
    '40 22 7:3 / /mnt/a\\040b rw - xfs /dev/loop3 rw,attr2',
    '',
  ].join('\n');
  t.deepEqual(parseMountinfo(text), [
    { number: '254:0', mountPoint: '/', source: '/dev/vda' },
    { number: '7:3', mountPoint: '/mnt/a b', source: '/dev/loop3' },
  ]);
});

test('the output of wipefs is read, also when there is none', (t) => {
  t.deepEqual(parseWipefs(''), []);
  const output = JSON.stringify({
    signatures: [{ device: 'loop0', offset: '0x438', type: 'ext4', uuid: 'u', label: null }],
  });
  t.deepEqual(parseWipefs(output), [{ type: 'ext4', label: null, uuid: 'u' }]);
});

test.serial('wipefs is found where the PATH of a user does not lead', async (t) => {
  t.deepEqual(programFolders({ PATH: '/usr/bin::/bin' }), [
    '/usr/bin',
    '/bin',
    '/usr/sbin',
    '/sbin',
  ]);
  t.deepEqual(programFolders({}), ['/usr/sbin', '/sbin']);
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const file = sparseFile(folder, 'file', MIB);
  await run('mkswap', [file]);
  const { PATH } = process.env;
  t.teardown(() => {
    process.env.PATH = PATH;
  });
  process.env.PATH = folder;
  const signatures = await deviceSignatures(await findDevice(file, 'device'));
  t.deepEqual(
    signatures.map(({ type }) => type),
    ['swap'],
  );
});

test('exclusive locks of whole files are read, others are not', (t) => {
  const text = [
    '1: POSIX  ADVISORY  WRITE 693 fe:00:11 0 EOF',
    '2: FLOCK  ADVISORY  WRITE 29326 fe:10:10158715 0 EOF',
    '3: FLOCK  ADVISORY  READ  29327 fe:10:12 0 EOF',
    '4: OFDLCK ADVISORY  WRITE -1 fe:10:13 0 EOF',
    '2: -> FLOCK  ADVISORY  WRITE 29328 fe:10:10158715 0 EOF',
    '',
  ].join('\n');
  t.deepEqual(parseLocks(text), [{ process: '29326', number: '254:16', inode: 10_158_715n }]);
});

test('a file that a process has locked is refused, by the process', async (t) => {
  const scope = testScope(t);
  const file = sparseFile(temporaryFolder(scope), 'file', MIB);
  const holder = startProcess(scope, 'flock', ['--exclusive', '--no-fork', file, 'cat']);
  const found = await findDevice(file, 'origin');
  const refused = () =>
    refuseDeviceInUse(found, 'origin').then(
      () => false,
      () => true,
    );
  await waitUntil(refused, () => 'flock does not lock');
  await t.throwsAsync(refuseDeviceInUse(found, 'origin'), {
    code: 'RF_DEVICE_HELD',
    message: /held open by the process \d+/,
  });
  holder.signal('SIGTERM');
});

test('a loop device is a block device with its number and size', async (t) => {
  const scope = testScope(t);
  const { device } = await loopDevice(scope, temporaryFolder(scope), 'image', 8 * MIB);
  const found = await findDevice(device, 'device');
  t.is(found.kind, 'block');
  t.is(found.sizeBytes, BigInt(8 * MIB));
  t.is(found.number, (await run('lsblk', ['-dno', 'MAJ:MIN', device])).trim());
  const { rdev } = await stat(device, { bigint: true });
  t.is(deviceNumber(rdev), found.number ?? '');
  await t.notThrowsAsync(refuseDeviceInUse(found, 'device'));
});

test('a mounted device is refused, by its mount point', async (t) => {
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const { device } = await loopDevice(scope, folder, 'image', 8 * MIB);
  await run('mkfs.ext4', ['-q', device]);
  const mountPoint = join(folder, 'a mount');
  await run('mkdir', [mountPoint]);
  await run('mount', [device, mountPoint]);
  scope.defer(() => run('umount', [mountPoint]));
  await t.throwsAsync(refuseDeviceInUse(await findDevice(device, 'device'), 'origin'), {
    code: 'RF_DEVICE_MOUNTED',
    message:
      `The origin ${device} is in use: it is mounted on ${mountPoint}; ` +
      'unmount it first, or give another device.',
  });
});

test('a device that is swapped to is refused', async (t) => {
  const scope = testScope(t);
  const { device } = await loopDevice(scope, temporaryFolder(scope), 'image', 8 * MIB);
  await run('mkswap', [device]);
  await run('swapon', [device]);
  scope.defer(() => run('swapoff', [device]));
  await t.throwsAsync(refuseDeviceInUse(await findDevice(device, 'device'), 'device'), {
    code: 'RF_DEVICE_MOUNTED',
    message: new RegExp(`${device} is swapped to`),
  });
});

test('a file behind a loop device is refused', async (t) => {
  const scope = testScope(t);
  const { device, file } = await loopDevice(scope, temporaryFolder(scope), 'image', 8 * MIB);
  await t.throwsAsync(refuseDeviceInUse(await findDevice(file, 'device'), 'device'), {
    code: 'RF_DEVICE_HELD',
    message: new RegExp(`held open by the loop device ${device}`),
  });
});

test('a device that a program holds exclusively is refused', async (t) => {
  const scope = testScope(t);
  const { device } = await loopDevice(scope, temporaryFolder(scope), 'image', 8 * MIB);
  const holder = await open(device, constants.O_RDWR | constants.O_EXCL);
  const found = await findDevice(device, 'device');
  await t.throwsAsync(refuseDeviceInUse(found, 'device'), { code: 'RF_DEVICE_HELD' });
  await holder.close();
  await t.notThrowsAsync(refuseDeviceInUse(found, 'device'));
});

/** A loop device that nobody has open: who lost the race for it to this test does for a moment. */
async function quietDevice(scope: Scope): Promise<{ device: string; found: Device }> {
  const { device } = await loopDevice(scope, temporaryFolder(scope), 'image', 64 * MIB);
  const found = await findDevice(device, 'device');
  let writer: string | null = null;
  const isQuiet = async (): Promise<boolean> => {
    writer = await findWriter(found);
    return writer === null;
  };
  await waitUntil(isQuiet, () => `${device} is held open by ${writer}`);
  return { device, found };
}

test('a process that has a device open for writing is found, one that reads is not', async (t) => {
  const scope = testScope(t);
  const { device, found } = await quietDevice(scope);
  const start = async (mode: string) => {
    const opener = startProcess(scope, 'sh', ['-c', `exec 3${mode}${device} && exec cat`]);
    opener.write('open');
    const isOpen = () => opener.output() === 'open';
    await waitUntil(isOpen, () => `the device cannot be opened: ${opener.output()}`);
    return opener;
  };
  await start('<');
  t.is(await findWriter(found), null);
  const writer = await start('<>');
  const holder = `the process ${writer.pid} (cat)`;
  t.is(await findWriter(found), holder);
  t.is(await SYSTEM.use(device), `it is held open by ${holder}`);
  await t.notThrowsAsync(refuseDeviceInUse(found, 'device'), 'the kernel lets it be shared');
  const { exitCode, stderr } = await runAnyway(ringfenceCommand, ['format', '--dry-run', device]);
  t.is(exitCode, 1);
  t.true(stderr.includes(`held open by ${holder}: stop that first`), stderr);
  t.regex(stderr, /\[RF_DEVICE_HELD\]/);
});

test('a program that has a device open for a moment only is no writer', async (t) => {
  const scope = testScope(t);
  const { device, found } = await quietDevice(scope);
  const prober = startProcess(scope, 'sh', ['-c', `exec 3<>${device} && echo open && exec cat`]);
  await waitUntil(
    () => prober.output().startsWith('open'),
    () => `the device cannot be opened: ${prober.output()}`,
  );
  let looksAgain = false;
  const secondLook = async () => {
    looksAgain = true;
    prober.signal('SIGKILL');
    await prober.wait();
  };
  t.is(await findWriter(found, secondLook), null);
  t.true(looksAgain);
});

test('two names of one device are one device', async (t) => {
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const file = sparseFile(folder, 'file', MIB);
  const other = sparseFile(folder, 'other', MIB);
  await run('ln', [file, join(folder, 'hard')]);
  const identity = async (path: string) => (await findDevice(path, 'origin')).identity;
  t.is(await identity(join(folder, 'hard')), await identity(file));
  t.not(await identity(other), await identity(file));
});
