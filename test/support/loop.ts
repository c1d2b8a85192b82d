/** Temporary folders, files and loop devices. */

import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { holdOpen, run } from './process.ts';
import type { Scope } from './scope.ts';

/** One KiB, MiB and GiB in bytes. */
export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;

/** A folder that is removed with all its content when the scope closes. */
export function temporaryFolder(scope: Scope): string {
  const folder = mkdtempSync(join(tmpdir(), 'ringfence-test-'));
  scope.defer(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A sparse file of zeroes. */
export function sparseFile(folder: string, name: string, sizeBytes: number): string {
  const path = join(folder, name);
  writeFileSync(path, '');
  truncateSync(path, sizeBytes);
  return path;
}

/** A loop device and the file behind it. */
export interface LoopDevice {
  readonly device: string;
  readonly file: string;
}

/**
 * Attaches a file as a block device without a page cache of its own.
 *
 * The device is marked for removal at once and kept by a descriptor of this process: the kernel
 * detaches it when the last one who has it open is gone, even if that is by SIGKILL.
 */
export async function attachLoop(scope: Scope, file: string): Promise<LoopDevice> {
  const device = (await run('losetup', ['--find', '--show', '--direct-io=on', file])).trim();
  holdOpen(scope, device);
  await run('losetup', ['--detach', device]);
  return { device, file };
}

/** Bytes that were read from a block device since it was attached. */
export function bytesRead(device: string): number {
  const fields = readFileSync(`/sys/block/${basename(device)}/stat`, 'latin1')
    .trim()
    .split(/\s+/);
  return Number(fields[2]) * 512;
}

/** A loop device over a fresh sparse file. */
export async function loopDevice(
  scope: Scope,
  folder: string,
  name: string,
  sizeBytes: number,
): Promise<LoopDevice> {
  return attachLoop(scope, sparseFile(folder, name, sizeBytes));
}
