/** `ringfence attach` without a kernel: what it decides, and what it asks of the native side. */

import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { parseAddress } from '../../daemon/addresses.ts';
import {
  type AttachedDevice,
  attachedDevices,
  nbdDevicePath,
  parseNbdDevice,
} from '../../daemon/attach/devices.ts';
import type {
  NativeAttachEvent,
  NativeAttachment,
  NativeAttachOptions,
  NativeClient,
  NativeLink,
} from '../../daemon/attach/native.ts';
import { incompatibility, negotiate } from '../../daemon/attach/negotiation.ts';
import { type AttachRequest, attachExport } from '../../daemon/attach/supervision.ts';
import { createServerHandshake } from '../../nbd/server/handshake.ts';
import { catalogueOf, exportOf } from '../nbd/peer.ts';
import { recordedLog } from './recorded-log.ts';
import { temporaryFolder } from './temporary.ts';

const PLACE = parseAddress('unix:/run/x.sock');
const BACKEND = 'nbd+unix:///disk?socket=/run/x.sock';
const REQUEST: AttachRequest = {
  address: PLACE,
  exportName: 'disk',
  index: null,
  connections: 1,
  resendSeconds: 10,
  deadTimeoutSeconds: 600,
  blockBytes: 512,
};

/** What the other end serves, and what was asked of the native side. */
interface Fake {
  readonly native: NativeClient;
  sizeBytes: bigint;
  readOnly: boolean;
  readonly calls: string[];
  options: NativeAttachOptions | null;
  readonly events: NativeAttachEvent[];
  linksOpen: number;
}

/** A native side whose connections lead to our own server's state machine. */
function createFake(): Fake {
  const fake: Fake = {
    sizeBytes: 1n << 20n,
    readOnly: false,
    calls: [],
    options: null,
    events: [],
    linksOpen: 0,
    native: {
      connectNbd: async () => {
        fake.linksOpen += 1;
        return linkTo(fake);
      },
      attachNbd: async (_link, options) => {
        fake.options = options;
        return attachment(fake);
      },
      detachNbd: async () => undefined,
    },
  };
  return fake;
}

function linkTo(fake: Fake): NativeLink {
  const { sizeBytes, readOnly } = fake;
  const catalogue = catalogueOf(exportOf('disk', { sizeBytes, readOnly }));
  const server = createServerHandshake({ catalogue });
  let [toClient, toServer] = [Buffer.alloc(0), Buffer.alloc(0)];
  let wanted = 0;
  const take = (effects: ReturnType<typeof server.start>): void => {
    wanted = 0;
    for (const effect of effects) {
      if (effect.type === 'send') toClient = Buffer.concat([toClient, effect.bytes]);
      else if (effect.type === 'receive') wanted = effect.length;
    }
  };
  take(server.start());
  return {
    exchange: async (bytes, length) => {
      toServer = Buffer.concat([toServer, bytes]);
      while (wanted > 0 && toServer.length >= wanted) {
        const part = toServer.subarray(0, wanted);
        toServer = toServer.subarray(wanted);
        take(server.onBytes(part));
      }
      if (toClient.length < length) throw new Error('the server hung up');
      const answer = toClient.subarray(0, length);
      toClient = toClient.subarray(length);
      return answer;
    },
    close: () => {
      fake.linksOpen -= 1;
    },
  };
}

function attachment(fake: Fake): NativeAttachment {
  return {
    index: fake.options?.index ?? 7,
    guards: [{ measure: 'io_flusher', up: false, advice: 'Give it a capability.' }],
    drainEvents: () => fake.events.splice(0),
    renew: () => void fake.calls.push('renew'),
    end: async (detach) => void fake.calls.push(detach ? 'detach' : 'leave'),
  };
}

interface World {
  readonly attached?: readonly AttachedDevice[];
  readonly use?: string | null;
}

function dependencies(fake: Fake, { attached = [], use = null }: World = {}) {
  const controller = new AbortController();
  const { log, lines } = recordedLog();
  const system = { attached: async () => attached, use: async () => use };
  const given = { native: fake.native, log, signal: controller.signal, ...system };
  return { given, controller, lines };
}

test('an export is attached with what its server said', async (t) => {
  const fake = createFake();
  const { given, controller, lines } = dependencies(fake);
  const attached = await attachExport(REQUEST, given);
  t.is(attached.path, '/dev/nbd7');
  t.false(attached.tookOver);
  const { transmissionFlags = 0, ...options } = fake.options ?? {};
  t.deepEqual(options as unknown, {
    ...{ index: null, takeOver: false, backend: BACKEND, sizeBytes: 1n << 20n },
    ...{ blockBytes: 512, connections: 1, resendSeconds: 10, deadTimeoutSeconds: 600 },
  });
  t.is(transmissionFlags & 0b1101, 0b1101, 'flags, flush and FUA');
  t.true(lines.some(({ measure }) => measure === 'io_flusher'));
  controller.abort('SIGTERM');
  await attached.stay();
  t.deepEqual(fake.calls, ['detach']);
});

test('a device that is in use stays attached', async (t) => {
  const fake = createFake();
  const { given, controller } = dependencies(fake, { use: 'it is mounted on /mnt' });
  const attached = await attachExport(REQUEST, given);
  controller.abort('SIGTERM');
  await t.throwsAsync(attached.stay(), { code: 'RF_STAYS_ATTACHED', message: /on \/mnt; / });
  t.deepEqual(fake.calls, ['leave']);
});

test('a device that is attached to the same export is taken over', async (t) => {
  const [other, same] = [
    { index: 0, backend: null, sizeBytes: 1n << 20n },
    { index: 3, backend: BACKEND, sizeBytes: 1n << 20n },
  ];
  const taken = async (index: number | null, attached: readonly AttachedDevice[]) => {
    const fake = createFake();
    await attachExport({ ...REQUEST, index }, dependencies(fake, { attached }).given);
    return [fake.options?.index, fake.options?.takeOver];
  };
  t.deepEqual(await taken(null, [other, same]), [3, true]);
  t.deepEqual(await taken(3, [other, same]), [3, true]);
  t.deepEqual(await taken(0, [other, same]), [0, false], 'the kernel refuses it');
  t.deepEqual(await taken(null, [other]), [null, false]);
  const grown = dependencies(createFake(), { attached: [{ ...same, sizeBytes: 1n << 21n }] });
  await t.throwsAsync(attachExport(REQUEST, grown.given), { code: 'RF_ATTACH', message: /size/ });
});

test('a server that cannot be used is told of with its address', async (t) => {
  const fake = createFake();
  const wrong = { ...REQUEST, exportName: 'other' };
  const { given } = dependencies(fake);
  await t.throwsAsync(attachExport(wrong, given), {
    code: 'RF_NEGOTIATION',
    message: /^The server at unix:\/run\/x\.sock cannot be used: the server refused: unknown/,
  });
  t.is(fake.linksOpen, 0);
});

test('what happens is logged; a device that others detached ends it', async (t) => {
  const fake = createFake();
  const { given, lines } = dependencies(fake);
  const { stay } = await attachExport(REQUEST, given);
  for (const kind of ['dead', 'away', 'failing', 'restored', 'gone'] as const) {
    fake.events.push({ kind, detail: kind === 'away' ? 'refused' : null });
  }
  await stay();
  t.deepEqual(fake.calls, ['leave']);
  const [broke, away, failing, again, gone] = lines.slice(1).map(({ msg }) => msg);
  t.regex(broke ?? '', /^the connection broke/);
  t.regex(away ?? '', /cannot be reached/);
  t.regex(failing ?? '', /fail from now on/);
  t.is(again, 'attached again');
  t.regex(gone ?? '', /detached by somebody else/);
});

test('a server that has changed is looked at, and refused where it is another disk', async (t) => {
  const fake = createFake();
  const { given, controller, lines } = dependencies(fake);
  const { stay } = await attachExport(REQUEST, given);
  const staying = stay();
  fake.events.push({ kind: 'unlike', detail: null });
  while (fake.calls.length === 0) await sleep(10);
  t.deepEqual(fake.calls, ['renew'], 'the same disk');
  fake.sizeBytes = 1n << 21n;
  fake.events.push({ kind: 'unlike', detail: null });
  while (!lines.some(({ reason }) => /had 1048576 bytes/.test(`${reason}`))) await sleep(10);
  t.is(fake.linksOpen, 2, 'the first and the renewed one');
  controller.abort('SIGTERM');
  await staying;
  t.deepEqual(fake.calls, ['renew', 'detach']);
});

test('a disk may learn, but neither change its size nor forget', async (t) => {
  const fake = createFake();
  const { begin } = await negotiate(fake.native, PLACE, 'disk');
  t.is(incompatibility(begin, begin), null);
  const with_ = (flags: number) => ({ ...begin, transmissionFlags: flags });
  const flags = begin.transmissionFlags;
  t.is(incompatibility(with_(flags & ~(1 << 3)), begin), null, 'it has learnt FUA');
  t.is(incompatibility(begin, with_(flags & ~(1 << 3))), 'it has lost FUA');
  t.is(incompatibility(begin, with_(flags | 2)), 'it is read-only now');
  t.is(incompatibility(with_(flags | 2), begin), 'it was read-only');
  t.regex(incompatibility(begin, { ...begin, sizeBytes: 1n }) ?? '', /now has 1$/);
});

test('devices are named as the driver names them', (t) => {
  t.is(parseNbdDevice('/dev/nbd0'), 0);
  t.is(parseNbdDevice('nbd12'), 12);
  t.is(nbdDevicePath(12), '/dev/nbd12');
  for (const text of ['/dev/sda', '/dev/nbd', '/dev/nbd01', '/dev/nbd0p1', '']) {
    t.throws(() => parseNbdDevice(text), { code: 'RF_NBD_DEVICE' }, text);
  }
});

test('sysfs tells which devices are attached, and to what', async (t) => {
  const folder = await temporaryFolder(t);
  const files: Readonly<Record<string, string>> = {
    'nbd0/size': '0\n',
    'nbd2/pid': '17\n',
    'nbd2/size': '2048\n',
    'nbd11/pid': '18\n',
    'nbd11/size': '8\n',
    'nbd11/backend': `${BACKEND}\n`,
    'sda/size': '8\n',
  };
  for (const [name, content] of Object.entries(files)) {
    await mkdir(join(folder, name, '..'), { recursive: true });
    await writeFile(join(folder, name), content);
  }
  t.deepEqual(await attachedDevices(folder), [
    { index: 2, backend: null, sizeBytes: 1n << 20n },
    { index: 11, backend: BACKEND, sizeBytes: 4096n },
  ]);
  t.deepEqual(await attachedDevices(join(folder, 'nothing')), []);
});
