/** Attaching an export, and staying with it until the end. */

import { setTimeout as sleep } from 'node:timers/promises';
import { TRANSMISSION_FLAG } from '../../nbd/constants.ts';
import { type Address, nbdUri } from '../addresses.ts';
import { findDevice, findUse, findWriter } from '../devices.ts';
import { reasonOf, ringfenceError } from '../errors.ts';
import { errorFields, type Logger } from '../log.ts';
import { type AttachedDevice, attachedDevices, nbdDevicePath } from './devices.ts';
import type { NativeAttachment, NativeAttachOptions, NativeClient } from './native.ts';
import { incompatibility, type Negotiated, negotiate } from './negotiation.ts';

/** The smallest block that Linux knows; what others wrote on the export may be laid out for it. */
export const BLOCK_BYTES_DEFAULT = 512;
/** How often JavaScript looks at what the thread that mends connections has to tell. */
const LOOK_MS = 250;

/** What an operator wants attached. */
export interface AttachRequest {
  readonly address: Address;
  readonly exportName: string;
  /** The N of /dev/nbdN; null for any. */
  readonly index: number | null;
  readonly connections: number;
  readonly resendSeconds: number;
  readonly deadTimeoutSeconds: number;
  readonly blockBytes: number;
}

/** What attaching works with. */
export interface AttachDependencies {
  readonly native: NativeClient;
  readonly log: Logger;
  /** Ends it; the device is detached unless somebody uses it. */
  readonly signal: AbortSignal;
  /** Which devices are attached, and who uses one: the system's, but for tests. */
  readonly attached: () => Promise<readonly AttachedDevice[]>;
  readonly use: (path: string) => Promise<string | null>;
}

/** The system's own answers. */
export const SYSTEM: Pick<AttachDependencies, 'attached' | 'use'> = {
  attached: () => attachedDevices(),
  use: async (path) => {
    const device = await findDevice(path, 'device');
    const use = await findUse(device, 'device');
    if (use?.by === 'mount') return use.what;
    const holder = use?.what ?? (await findWriter(device));
    return holder === null ? null : `it is held open by ${holder}`;
  },
};

/** An export that is attached. */
export interface Attached {
  /** `/dev/nbdN`. */
  readonly path: string;
  /** Whether it was attached before, and only lacked somebody to look after it. */
  readonly tookOver: boolean;
  /**
   * Stays until the signal, or until somebody else detaches the device.
   *
   * @throws `RF_STAYS_ATTACHED` where the device is in use at the end
   */
  stay(): Promise<void>;
}

/**
 * Attaches an export, or takes over a device that is attached to it already.
 *
 * @throws `RF_NEGOTIATION`, `RF_ATTACH`
 */
export async function attachExport(
  request: AttachRequest,
  dependencies: AttachDependencies,
): Promise<Attached> {
  const { native, log } = dependencies;
  const { address, exportName } = request;
  const negotiated = await negotiate(native, address, exportName);
  const { begin, link } = negotiated;
  const backend = nbdUri(address, exportName);
  const fail = (reason: string, cause?: unknown) =>
    ringfenceError('RF_ATTACH', [exportName, reason], cause);
  if (request.connections > 1 && (begin.transmissionFlags & TRANSMISSION_FLAG.canMultiConn) === 0) {
    throw fail('its server takes one connection only: leave out --connections');
  }
  const before = await findAttached(request.index, backend, dependencies);
  if (before !== null && before.sizeBytes !== (begin.sizeBytes / 512n) * 512n) {
    const path = nbdDevicePath(before.index);
    throw fail(`${path} is attached to it with another size: detach it first`);
  }
  const options: NativeAttachOptions = {
    index: before?.index ?? request.index,
    takeOver: before !== null,
    backend,
    sizeBytes: begin.sizeBytes,
    blockBytes: Math.max(request.blockBytes, begin.blockSizes?.minimumBytes ?? 0),
    transmissionFlags: begin.transmissionFlags,
    connections: request.connections,
    resendSeconds: request.resendSeconds,
    deadTimeoutSeconds: request.deadTimeoutSeconds,
  };
  let attachment: NativeAttachment;
  try {
    attachment = await native.attachNbd(link, options);
  } catch (error) {
    throw fail(reasonOf(error), error);
  }
  for (const { measure, up, advice } of attachment.guards) {
    if (!up) log.warn({ measure, advice }, 'a protection of the I/O path is not in place');
  }
  return {
    path: nbdDevicePath(attachment.index),
    tookOver: before !== null,
    stay: () => stay(attachment, negotiated, request, dependencies),
  };
}

/** The device that is attached to the export already: the one that was named, or any. */
async function findAttached(
  index: number | null,
  backend: string,
  { attached }: AttachDependencies,
): Promise<AttachedDevice | null> {
  const same = (await attached()).filter((device) => device.backend === backend);
  if (index === null) return same[0] ?? null;
  return same.find((device) => device.index === index) ?? null;
}

async function stay(
  attachment: NativeAttachment,
  negotiated: Negotiated,
  request: AttachRequest,
  dependencies: AttachDependencies,
): Promise<void> {
  const { log, signal } = dependencies;
  const device = nbdDevicePath(attachment.index);
  while (!signal.aborted) {
    for (const { kind, detail } of attachment.drainEvents()) {
      if (kind === 'gone') {
        await attachment.end(false);
        log.warn({ device }, 'the device was detached by somebody else');
        return;
      }
      if (kind === 'unlike') await renew(attachment, negotiated, request, dependencies);
      else tell(log, device, kind, detail);
    }
    await sleep(LOOK_MS, undefined, { signal }).catch(() => undefined);
  }
  const use = await dependencies.use(device).catch(reasonOf);
  if (use !== null) {
    await attachment.end(false);
    throw ringfenceError('RF_STAYS_ATTACHED', [device, use]);
  }
  try {
    await attachment.end(true);
  } catch (error) {
    throw ringfenceError('RF_DETACH', [device, reasonOf(error)], error);
  }
}

function tell(log: Logger, device: string, kind: string, detail: string | null): void {
  if (kind === 'dead') log.warn({ device }, 'the connection broke; requests wait for a new one');
  else if (kind === 'away') log.warn({ device, reason: detail }, 'the server cannot be reached');
  else if (kind === 'restored') log.info({ device }, 'attached again');
  else log.error({ device }, 'requests have waited as long as they may, and fail from now on');
}

/** The server answers something else than before: whether the device can go on with it. */
async function renew(
  attachment: NativeAttachment,
  { begin: before }: Negotiated,
  { address, exportName }: AttachRequest,
  { native, log }: AttachDependencies,
): Promise<void> {
  try {
    const { link, begin } = await negotiate(native, address, exportName);
    const reason = incompatibility(before, begin);
    if (reason === null) return attachment.renew(link);
    link.close();
    log.error({ export: exportName, reason }, 'the export is not the one that was attached');
  } catch (error) {
    log.warn(errorFields(error), 'the server has changed, and cannot be negotiated with');
  }
}
