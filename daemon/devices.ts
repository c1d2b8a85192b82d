/**
 * What a path really is, before anything is written to it: kind, size, model, signatures, and who
 * else uses it. The native side claims a device exclusively; this side says in words why it cannot.
 */

import { execFile } from 'node:child_process';
import { constants, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { open, readdir, readFile, realpath, stat } from 'node:fs/promises';
import { delimiter } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { codeOf, reasonOf, ringfenceError } from './errors.ts';

const execute = promisify(execFile);
/** Where Debian has wipefs, and where a user's PATH does not lead. */
const SYSTEM_FOLDERS = ['/usr/sbin', '/sbin'];
/** Longer than a program has a device open that only looks whether it could be had. */
const PROBE_MS = 100;

/** A block device or a file, as far as the kernel describes it. */
export interface Device {
  /** As it was given. */
  readonly path: string;
  /** Without symbolic links. */
  readonly realPath: string;
  /** The same for two names of one device or file, and for nothing else. */
  readonly identity: string;
  readonly kind: 'block' | 'file';
  readonly sizeBytes: bigint;
  /** `MAJOR:MINOR` of a block device; null for a file. */
  readonly number: string | null;
}

/** Something on a device that other programs would recognise. */
export interface Signature {
  /** Such as `ext4`, `gpt`, `LVM2_member`. */
  readonly type: string;
  readonly label: string | null;
  readonly uuid: string | null;
}

/** A line of `/proc/self/mountinfo`. */
export interface Mount {
  /** `MAJOR:MINOR`. */
  readonly number: string;
  readonly mountPoint: string;
  readonly source: string;
}

/** For messages: what the path is given for. */
export type Role = 'device' | 'cache device' | 'origin';

/**
 * Looks at a path.
 *
 * @throws `RF_DEVICE_MISSING`, `RF_DEVICE_KIND`, `RF_DEVICE_UNREADABLE`
 */
export async function findDevice(path: string, role: Role): Promise<Device> {
  try {
    const realPath = await realpath(path);
    const status = await stat(realPath, { bigint: true });
    if (status.isFile()) {
      const identity = `file ${status.dev} ${status.ino}`;
      return { path, realPath, identity, kind: 'file', sizeBytes: status.size, number: null };
    }
    if (status.isBlockDevice()) {
      const number = deviceNumber(status.rdev);
      const sectors = await readSysfs(`/sys/dev/block/${number}/size`);
      const sizeBytes = BigInt(sectors ?? '0') * 512n;
      return { path, realPath, identity: `block ${number}`, kind: 'block', sizeBytes, number };
    }
    const kind = status.isDirectory()
      ? 'directory'
      : status.isCharacterDevice()
        ? 'character device'
        : status.isSocket()
          ? 'socket'
          : 'pipe';
    throw ringfenceError('RF_DEVICE_KIND', [role, path, kind]);
  } catch (error) {
    const code = codeOf(error);
    if (code === 'ENOENT') throw ringfenceError('RF_DEVICE_MISSING', [role, path], error);
    if (code?.startsWith('RF_')) throw error;
    throw ringfenceError('RF_DEVICE_UNREADABLE', [role, path, reasonOf(error)], error);
  }
}

/**
 * Refuses a device that somebody else uses: mounted, swapped to, part of another device, the
 * backing of a loop device, or held open exclusively. Of a whole disk the partitions count too.
 *
 * @throws `RF_DEVICE_MOUNTED`, `RF_DEVICE_HELD`, `RF_DEVICE_UNREADABLE`
 */
export async function refuseDeviceInUse(device: Device, role: Role): Promise<void> {
  if (device.kind === 'file') {
    const holder = (await loopOverFile(device.realPath)) ?? (await lockHolder(device.realPath));
    if (holder === null) return;
    throw ringfenceError('RF_DEVICE_HELD', [role, device.path, holder]);
  }
  const use = await findUse(device, role);
  if (use === null) return;
  const fields: [string, string, string] = [role, device.path, use.what];
  if (use.by === 'mount') throw ringfenceError('RF_DEVICE_MOUNTED', fields);
  throw ringfenceError('RF_DEVICE_HELD', fields);
}

/** Who uses a block device, in words: a mount or a swap, or a holder's name. */
export interface DeviceUse {
  readonly by: 'mount' | 'holder';
  readonly what: string;
}

/**
 * Who uses a block device; null where nobody does.
 *
 * @throws `RF_DEVICE_UNREADABLE`
 */
export async function findUse(device: Device, role: Role): Promise<DeviceUse | null> {
  const numbers = await withPartitions(device.number ?? '');
  const mounts = parseMountinfo(await readFile('/proc/self/mountinfo', 'utf8'));
  const mount = mounts.find(({ number }) => numbers.includes(number));
  if (mount !== undefined) return { by: 'mount', what: `it is mounted on ${mount.mountPoint}` };
  const swap = await swapOn(numbers);
  if (swap !== null) return { by: 'mount', what: `${swap} is swapped to` };
  for (const number of numbers) {
    const [holder] = await readdir(`/sys/dev/block/${number}/holders`).catch(() => []);
    if (holder !== undefined) return { by: 'holder', what: `/dev/${holder}` };
  }
  return (await opensExclusively(device, role)) ? null : { by: 'holder', what: 'another program' };
}

/**
 * A process that has a block device open for writing, and no more than that, in words: what lies
 * below writes there without asking for it alone, such as qemu or dd. Null where none is seen: only
 * root sees what other users' processes have open, and nobody sees other process namespaces.
 *
 * Who only reads is passed over. Programs that watch devices do so all the time, and lose nothing.
 * So is who is gone at a second look: `losetup --find` opens each device that another was faster to
 * get, for writing.
 */
export async function findWriter(
  device: Device,
  untilSecondLook: () => Promise<unknown> = () => delay(PROBE_MS),
): Promise<string | null> {
  if (device.number === null) return null;
  const numbers = await withPartitions(device.number);
  if ((await writerOf(device.number, numbers)) === null) return null;
  await untilSecondLook();
  return writerOf(device.number, numbers);
}

async function writerOf(number: string, numbers: readonly string[]): Promise<string | null> {
  // A program that serves an nbd device has it open itself.
  const server = await readSysfs(`/sys/dev/block/${number}/pid`);
  const processes = namesIn('/proc').filter((name) => /^[0-9]+$/.test(name));
  const own = `${process.pid}`;
  for (const id of processes.filter((candidate) => candidate !== own)) {
    if (!hasWritable(id, numbers)) continue;
    if (server !== null && namesIn(`/proc/${id}/task`).includes(server)) continue;
    const name = textOf(`/proc/${id}/comm`)?.trim() ?? '';
    return `the process ${id}${name === '' ? '' : ` (${name})`}`;
  }
  return null;
}

/** Whether a process has one of some block devices open for writing. */
function hasWritable(processId: string, numbers: readonly string[]): boolean {
  const folder = `/proc/${processId}`;
  return namesIn(`${folder}/fd`).some((name) => {
    try {
      // Only what looks like a device is asked for more, which of a file on a network might hang.
      if (!readlinkSync(`${folder}/fd/${name}`).startsWith('/dev/')) return false;
      const status = statSync(`${folder}/fd/${name}`, { bigint: true });
      if (!status.isBlockDevice() || !numbers.includes(deviceNumber(status.rdev))) return false;
      const flags = /^flags:\s*([0-7]+)$/m.exec(textOf(`${folder}/fdinfo/${name}`) ?? '')?.[1];
      return (Number.parseInt(flags ?? '0', 8) & (constants.O_WRONLY | constants.O_RDWR)) !== 0;
    } catch {
      // It was closed meanwhile.
      return false;
    }
  });
}

function namesIn(folder: string): readonly string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function textOf(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
}

/** Where programs that look at devices are sought, in this order. */
export function programFolders(environment: NodeJS.ProcessEnv = process.env): readonly string[] {
  const own = (environment.PATH ?? '').split(delimiter).filter((folder) => folder !== '');
  return [...own, ...SYSTEM_FOLDERS];
}

function run(program: string, parameters: readonly string[]): Promise<{ stdout: string }> {
  const env = { ...process.env, PATH: programFolders().join(delimiter) };
  return execute(program, parameters, { env });
}

/** What a device calls itself, or at least what it is. */
export async function deviceModel(device: Device): Promise<string> {
  if (device.kind === 'file') return 'a regular file';
  const options = ['--json', '--bytes', '--nodeps', '--output', 'MODEL,TYPE', device.realPath];
  const { stdout } = await run('lsblk', options).catch(() => ({ stdout: '{}' }));
  const described = JSON.parse(stdout) as {
    blockdevices?: readonly { model: string | null; type: string | null }[];
  };
  const [first] = described.blockdevices ?? [];
  return first?.model?.trim() ?? first?.type ?? 'unknown';
}

/**
 * The signatures on a device: file systems, partition tables, members of other things.
 *
 * @throws `RF_SIGNATURES_UNKNOWN` where wipefs is missing or cannot read the device
 */
export async function deviceSignatures(device: Device): Promise<readonly Signature[]> {
  try {
    const { stdout } = await run('wipefs', ['--no-act', '--json', device.realPath]);
    return parseWipefs(stdout);
  } catch (error) {
    const reason =
      codeOf(error) === 'ENOENT' ? 'install util-linux, which has it' : wipefsReason(error);
    throw ringfenceError('RF_SIGNATURES_UNKNOWN', [device.path, reason], error);
  }
}

/** Reads the output of `wipefs --json`, which is empty where nothing was found. */
export function parseWipefs(output: string): readonly Signature[] {
  if (output.trim() === '') return [];
  const { signatures } = JSON.parse(output) as {
    signatures?: readonly { type: string; label?: string | null; uuid?: string | null }[];
  };
  return (signatures ?? []).map(({ type, label, uuid }) => ({
    type,
    label: label ?? null,
    uuid: uuid ?? null,
  }));
}

/** Reads `/proc/self/mountinfo`, whose fields are separated by spaces and escaped in octal. */
export function parseMountinfo(text: string): readonly Mount[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const [before = '', after = ''] = line.split(' - ', 2);
      const fields = before.split(' ');
      return {
        number: fields[2] ?? '',
        mountPoint: unescapeOctal(fields[4] ?? ''),
        source: unescapeOctal(after.split(' ')[1] ?? ''),
      };
    });
}

/** A line of `/proc/locks` about a whole file that nobody else may lock. */
export interface FileLock {
  readonly process: string;
  /** `MAJOR:MINOR` of the filesystem, in decimal. */
  readonly number: string;
  readonly inode: bigint;
}

/** Reads the exclusive `flock` locks of `/proc/locks`, where devices are hexadecimal. */
export function parseLocks(text: string): readonly FileLock[] {
  const pattern = /^\d+: FLOCK +ADVISORY +WRITE (\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) /gm;
  return [...text.matchAll(pattern)].map(
    ([, process = '', major = '', minor = '', inode = '']) => ({
      process,
      number: `${Number.parseInt(major, 16)}:${Number.parseInt(minor, 16)}`,
      inode: BigInt(inode),
    }),
  );
}

/**
 * `MAJOR:MINOR` as the kernel writes it, from a `dev_t` as glibc encodes it: minor bits 0 to 7 and
 * 20 to 43, major bits 8 to 19 and 44 to 63.
 */
export function deviceNumber(device: bigint): string {
  const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xfffff000n);
  const minor = (device & 0xffn) | ((device >> 12n) & 0xffffff00n);
  return `${major}:${minor}`;
}

function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}

/** The device's own number and those of its partitions. */
async function withPartitions(number: string): Promise<readonly string[]> {
  const directory = `/sys/dev/block/${number}`;
  const numbers = [number];
  const entries = await readdir(directory, { withFileTypes: true }).catch(() => []);
  for (const entry of entries.filter((candidate) => candidate.isDirectory())) {
    const isPartition = (await readSysfs(`${directory}/${entry.name}/partition`)) !== null;
    const own = isPartition ? await readSysfs(`${directory}/${entry.name}/dev`) : null;
    if (own !== null) numbers.push(own);
  }
  return numbers;
}

async function swapOn(numbers: readonly string[]): Promise<string | null> {
  const lines = (await readFile('/proc/swaps', 'utf8').catch(() => '')).split('\n').slice(1);
  for (const line of lines) {
    const path = unescapeOctal(line.split(/\s/, 1)[0] ?? '');
    const status = path === '' ? null : await stat(path, { bigint: true }).catch(() => null);
    if (status?.isBlockDevice() && numbers.includes(deviceNumber(status.rdev))) return path;
  }
  return null;
}

async function loopOverFile(realPath: string): Promise<string | null> {
  const names = await readdir('/sys/block').catch(() => []);
  for (const name of names.filter((candidate) => candidate.startsWith('loop'))) {
    const backing = await readSysfs(`/sys/block/${name}/loop/backing_file`);
    if (backing === realPath) return `the loop device /dev/${name}`;
  }
  return null;
}

/** The process that has a file locked as a daemon locks its cache and its origins (`flock`). */
async function lockHolder(realPath: string): Promise<string | null> {
  const { dev, ino } = await stat(realPath, { bigint: true });
  const locks = parseLocks(await readFile('/proc/locks', 'utf8').catch(() => ''));
  const found = locks.find(({ number, inode }) => number === deviceNumber(dev) && inode === ino);
  return found === undefined ? null : `the process ${found.process}`;
}

/** Catches what has no other trace, such as another daemon or a file system's own device list. */
async function opensExclusively(device: Device, role: Role): Promise<boolean> {
  try {
    const handle = await open(device.realPath, constants.O_RDONLY | constants.O_EXCL);
    await handle.close();
    return true;
  } catch (error) {
    if (codeOf(error) === 'EBUSY') return false;
    throw ringfenceError('RF_DEVICE_UNREADABLE', [role, device.path, reasonOf(error)], error);
  }
}

async function readSysfs(path: string): Promise<string | null> {
  return readFile(path, 'utf8').then(
    (text) => text.trim(),
    () => null,
  );
}

/** What wipefs said, without its own name and the path, which our sentence has already. */
function wipefsReason(error: unknown): string {
  const said =
    typeof error === 'object' && error !== null && 'stderr' in error ? `${error.stderr}` : '';
  const last = said.trim().split(': ').at(-1);
  return last === undefined || last === '' ? reasonOf(error) : last;
}
