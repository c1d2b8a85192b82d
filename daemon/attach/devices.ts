/** Devices of the kernel's nbd driver, as sysfs shows them. */

import { readdir, readFile } from 'node:fs/promises';
import { ringfenceError } from '../errors.ts';

/** A device that is attached. */
export interface AttachedDevice {
  /** The N of /dev/nbdN. */
  readonly index: number;
  /** What it is attached to, as whoever attached it called it; null where nobody did. */
  readonly backend: string | null;
  readonly sizeBytes: bigint;
}

/**
 * The N of `/dev/nbdN`.
 *
 * @throws `RF_NBD_DEVICE`
 */
export function parseNbdDevice(text: string): number {
  const digits = /^(?:\/dev\/)?nbd(0|[1-9][0-9]{0,4})$/.exec(text)?.[1];
  if (digits === undefined) throw ringfenceError('RF_NBD_DEVICE', [text]);
  return Number(digits);
}

/** The path of a device. */
export function nbdDevicePath(index: number): string {
  return `/dev/nbd${index}`;
}

/** All devices that are attached, by their number. */
export async function attachedDevices(folder = '/sys/block'): Promise<readonly AttachedDevice[]> {
  const names = await readdir(folder).catch(() => []);
  const devices = await Promise.all(names.map((name) => attachedDevice(folder, name)));
  return devices.filter((device) => device !== null).sort((a, b) => a.index - b.index);
}

async function attachedDevice(folder: string, name: string): Promise<AttachedDevice | null> {
  const digits = /^nbd([0-9]+)$/.exec(name)?.[1];
  if (digits === undefined) return null;
  const read = (file: string): Promise<string | null> =>
    readFile(`${folder}/${name}/${file}`, 'utf8').then(
      (text) => text.trim(),
      () => null,
    );
  // The driver shows a process for as long as the device is attached, whether it lives or not.
  const [pid, backend, size] = await Promise.all([read('pid'), read('backend'), read('size')]);
  if (pid === null) return null;
  return { index: Number(digits), backend, sizeBytes: BigInt(size ?? '0') * 512n };
}
