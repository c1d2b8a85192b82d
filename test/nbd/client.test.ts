/** The client's side of negotiation: against our server, older servers, and hostile ones. */

import test from 'ava';
import type { ClientEffect } from '../../nbd/client/effects.ts';
import { createClientHandshake } from '../../nbd/client/handshake.ts';
import type { ServerEffect } from '../../nbd/server/effects.ts';
import { createServerHandshake } from '../../nbd/server/handshake.ts';
import {
  CLIENT_FLAGS,
  catalogueOf,
  converse,
  exportOf,
  GREETING,
  infoData,
  option,
  pack,
  reply,
} from './peer.ts';

const EXPORT_NAME = 1;
const ABORT = 2;
const GO = 7;
const STRUCTURED_REPLY = 8;
const ACK = 1;
const INFORMATION = 3;
const UNSUPPORTED = 0x80000001;
const UNKNOWN = 0x80000006;
const SHUTDOWN = 0x80000007;

const ABOUT = reply(GO, INFORMATION, pack([2, 0], [8, 1 << 20], [2, 0x1ff]));
const SIZES = reply(GO, INFORMATION, pack([2, 3], [4, 512], [4, 4096], [4, 1 << 25]));
const AGREED = reply(STRUCTURED_REPLY, ACK);
const OLD_GREETING = pack('NBDMAGIC', 'IHAVEOPT', [2, 0]);
const ASKED = [CLIENT_FLAGS, option(STRUCTURED_REPLY), option(GO, infoData('disk', [3]))];

function talk(parts: readonly Uint8Array[], structuredReplies = true) {
  const machine = createClientHandshake({ exportName: 'disk', structuredReplies });
  return converse(machine, Buffer.concat([...parts]));
}

test('a server that agrees', (t) => {
  const { sent, end, taken } = talk([GREETING, AGREED, ABOUT, SIZES, reply(GO, ACK)]);
  t.deepEqual(sent, Buffer.concat(ASKED));
  t.deepEqual(end, {
    type: 'begin',
    sizeBytes: 1n << 20n,
    transmissionFlags: 0x1ff,
    structuredReplies: true,
    blockSizes: { minimumBytes: 512, preferredBytes: 4096, payloadBytesMax: 1 << 25 },
  });
  t.is(taken, GREETING.length + AGREED.length + ABOUT.length + SIZES.length + 20);
});

test('a server without structured replies, and a flag that needs them', (t) => {
  const { end } = talk([GREETING, reply(STRUCTURED_REPLY, UNSUPPORTED), ABOUT, reply(GO, ACK)]);
  t.like(end, { type: 'begin', structuredReplies: false, transmissionFlags: 0x17f });
  const unasked = talk([GREETING, ABOUT, reply(GO, ACK)], false);
  t.like(unasked.end, { type: 'begin', structuredReplies: false, transmissionFlags: 0x17f });
  t.deepEqual(unasked.sent, Buffer.concat([CLIENT_FLAGS, option(GO, infoData('disk', [3]))]));
});

test('a server without GO is asked by name', (t) => {
  const answer = pack([8, 1 << 20], [2, 1]);
  const parts = [GREETING, AGREED, reply(GO, UNSUPPORTED), answer];
  const { sent, end } = talk(parts);
  t.deepEqual(sent, Buffer.concat([...ASKED, option(EXPORT_NAME, 'disk')]));
  t.like(end, { type: 'begin', sizeBytes: 1n << 20n, blockSizes: null });
  const other = reply(GO, INFORMATION, pack([2, 0], [8, 1 << 21], [2, 3]));
  const half = talk([GREETING, AGREED, other, SIZES, reply(GO, UNSUPPORTED), answer]);
  const { sizeBytes, transmissionFlags } = { sizeBytes: 1n << 20n, transmissionFlags: 1 };
  t.like(half.end, { type: 'begin', sizeBytes, transmissionFlags, blockSizes: null });
});

test('a server without fixed newstyle is asked by name, and sends zeroes', (t) => {
  const answer = pack([8, 1 << 20], [2, 1], new Uint8Array(124));
  const { sent, end, taken } = talk([OLD_GREETING, answer]);
  t.deepEqual(sent, Buffer.concat([pack([4, 0]), option(EXPORT_NAME, 'disk')]));
  t.like(end, { type: 'begin', sizeBytes: 1n << 20n, structuredReplies: false });
  t.is(taken, OLD_GREETING.length + 134);
});

test('unknown handshake flags and kinds of information are ignored', (t) => {
  const greeting = pack('NBDMAGIC', 'IHAVEOPT', [2, 0xffff]);
  const strange = reply(GO, INFORMATION, pack([2, 99], 'whatever'));
  const { sent, end } = talk([greeting, AGREED, strange, ABOUT, strange, reply(GO, ACK)]);
  t.deepEqual(sent.subarray(0, 4), CLIENT_FLAGS);
  t.is(end?.type, 'begin');
});

test('a refusal is told in its own words, and ends with ABORT', (t) => {
  const { sent, end } = talk([GREETING, AGREED, reply(GO, UNKNOWN, 'no such\ndisk')]);
  t.deepEqual(sent, Buffer.concat([...ASKED, option(ABORT)]));
  t.deepEqual(end, { type: 'close', reason: 'the server refused: unknown, "no such?disk"' });
  const stopping = talk([GREETING, reply(STRUCTURED_REPLY, SHUTDOWN)]);
  t.deepEqual(stopping.end, { type: 'close', reason: 'the server refused: shutdown' });
  t.deepEqual(stopping.sent.subarray(-16), option(ABORT));
});

test('whatever cannot be is refused', (t) => {
  const about = (size: bigint, flags: number) =>
    reply(GO, INFORMATION, pack([2, 0], [8, size], [2, flags]));
  const sizes = (...three: readonly number[]) =>
    reply(GO, INFORMATION, pack([2, 3], ...three.map((size) => [4, size] as const)));
  const ack = reply(GO, ACK);
  const cases: Record<string, readonly Uint8Array[]> = {
    'no NBD server': [pack('SSH-2.0-', 'OpenSSH_', [2, 0])],
    'no server of options': [pack('NBDMAGIC', 'NBDMAGIC', [2, 3])],
    oldstyle: [pack('NBDMAGIC', [8, 0x420281861253n], [2, 0])],
    'a size of 2^63': [GREETING, AGREED, about(1n << 63n, 1), ack],
    'a size of 2^64-1': [GREETING, AGREED, about((1n << 64n) - 1n, 1), ack],
    'a size of 2^63 by name': [OLD_GREETING, pack([8, 1n << 63n], [2, 1], new Uint8Array(124))],
    'no flags': [GREETING, AGREED, about(1n, 0), ack],
    'no export': [GREETING, AGREED, SIZES, ack],
    'nothing at all': [GREETING, AGREED, ack],
    'an acknowledgement with data': [GREETING, AGREED, ABOUT, reply(GO, ACK, 'x')],
    'a short export': [GREETING, AGREED, reply(GO, INFORMATION, pack([2, 0], [8, 1]))],
    'a long export': [GREETING, AGREED, reply(GO, INFORMATION, pack([2, 0], [8, 1], [4, 1]))],
    'half a kind': [GREETING, AGREED, reply(GO, INFORMATION, 'x')],
    'no kind': [GREETING, AGREED, reply(GO, INFORMATION)],
    'a minimum of 0': [GREETING, AGREED, sizes(0, 4096, 1 << 25)],
    'a minimum of 3': [GREETING, AGREED, sizes(3, 4096, 1 << 25)],
    'a minimum of 128 KiB': [GREETING, AGREED, sizes(1 << 17, 1 << 17, 1 << 25)],
    'a preference below 512': [GREETING, AGREED, sizes(1, 256, 1 << 25)],
    'a preference below the minimum': [GREETING, AGREED, sizes(4096, 512, 1 << 25)],
    'a preference of 5000': [GREETING, AGREED, sizes(1, 5000, 1 << 25)],
    'a maximum below the preference': [GREETING, AGREED, sizes(1, 4096, 4095)],
    'a reply to something else': [GREETING, reply(GO, ACK)],
    'a bad magic number': [GREETING, new Uint8Array(20)],
    'a reply of 4 GiB': [GREETING, pack([8, 0x3e889045565a9n], [4, 8], [4, 1], [4, 0xffffffff])],
    'a reply of an unknown type': [GREETING, AGREED, reply(GO, 77)],
    'information about nothing': [GREETING, reply(STRUCTURED_REPLY, INFORMATION)],
  };
  for (const [title, parts] of Object.entries(cases)) {
    t.is(talk(parts).end?.type, 'close', title);
  }
});

test('information without an end has one', (t) => {
  const endless = Array.from({ length: 1000 }, () => ABOUT);
  const { end, taken } = talk([GREETING, AGREED, ...endless]);
  t.is(end?.type, 'close');
  t.true(taken < 300 * ABOUT.length);
});

test('a name that is too long to be sent is an error of the caller', (t) => {
  const make = (exportName: string) => () =>
    createClientHandshake({ exportName, structuredReplies: true });
  t.throws(make('ä'.repeat(2049)), { instanceOf: RangeError });
  t.notThrows(make('ä'.repeat(2048)));
});

test('both roles agree with each other', (t) => {
  const disk = exportOf('disk', { sizeBytes: 987654321n, readOnly: true });
  const catalogue = catalogueOf(exportOf('other'), disk);
  for (const structuredReplies of [false, true]) {
    const server = createServerHandshake({ catalogue });
    const client = createClientHandshake({ exportName: 'disk', structuredReplies });
    const { served, begun } = connect(server, client);
    t.is(served.exportName, 'disk');
    t.is(served.structuredReplies, structuredReplies);
    t.deepEqual(begun, {
      type: 'begin',
      sizeBytes: served.sizeBytes,
      transmissionFlags: served.transmissionFlags,
      structuredReplies: served.structuredReplies,
      blockSizes: { minimumBytes: 1, preferredBytes: 4096, payloadBytesMax: 64 * 1024 * 1024 },
    });
  }
});

/** Lets both machines talk until both begin. */
function connect(
  server: ReturnType<typeof createServerHandshake>,
  client: ReturnType<typeof createClientHandshake>,
) {
  let [toServer, toClient] = [Buffer.alloc(0), Buffer.alloc(0)];
  let [fromServer, fromClient]: [ServerEffect[], ClientEffect[]] = [server.start(), client.start()];
  const wish = (effects: readonly (ServerEffect | ClientEffect)[]): number => {
    const last = effects.at(-1);
    return last?.type === 'receive' ? last.length : 0;
  };
  const sent = (effects: readonly (ServerEffect | ClientEffect)[]): Uint8Array[] =>
    effects.flatMap((effect) => (effect.type === 'send' ? [effect.bytes] : []));
  toClient = Buffer.concat([toClient, ...sent(fromServer)]);
  for (;;) {
    const [served, begun] = [fromServer.at(-1), fromClient.at(-1)];
    if (served?.type === 'begin' && begun?.type === 'begin') {
      if (toServer.length + toClient.length > 0) throw new Error('bytes are left over');
      return { served, begun };
    }
    const [clientWants, serverWants] = [wish(fromClient), wish(fromServer)];
    if (clientWants > 0 && toClient.length >= clientWants) {
      fromClient = client.onBytes(toClient.subarray(0, clientWants));
      toClient = toClient.subarray(clientWants);
      toServer = Buffer.concat([toServer, ...sent(fromClient)]);
    } else if (serverWants > 0 && toServer.length >= serverWants) {
      fromServer = server.onBytes(toServer.subarray(0, serverWants));
      toServer = toServer.subarray(serverWants);
      toClient = Buffer.concat([toClient, ...sent(fromServer)]);
    } else {
      throw new Error('both sides wait');
    }
  }
}
