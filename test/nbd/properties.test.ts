/** What holds for every stream of bytes, in both roles. */

import test from 'ava';
import fc from 'fast-check';
import { createClientHandshake } from '../../nbd/client/handshake.ts';
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
  parseReplies,
  reply,
} from './peer.ts';

const RUNS = { numRuns: 500 };
const catalogue = catalogueOf(
  exportOf('a', { description: 'of the first' }),
  exportOf('b', { readOnly: true, sizeBytes: 12345n }),
);

const names = fc.constantFrom('', 'a', 'b', 'c');
const kinds = fc.array(fc.constantFrom(0, 1, 2, 3, 4, 0xffff), { maxLength: 5 });

/** One option: mostly one that is understood, sometimes strange, sometimes with a lie in it. */
const anOption = fc.oneof(
  {
    weight: 6,
    arbitrary: fc
      .tuple(fc.constantFrom(6, 7), names, kinds)
      .map(([code, name, list]) => option(code, infoData(name, list))),
  },
  { weight: 6, arbitrary: fc.constantFrom(3, 5, 8, 9, 10, 11).map((code) => option(code)) },
  { weight: 1, arbitrary: names.map((name) => option(1, name)) },
  { weight: 1, arbitrary: fc.constant(option(2)) },
  {
    weight: 4,
    arbitrary: fc
      .tuple(fc.integer({ min: 0, max: 12 }), fc.uint8Array({ maxLength: 40 }))
      .map(([code, data]) => option(code, data)),
  },
  {
    weight: 1,
    arbitrary: fc
      .tuple(fc.nat(0xffffffff), fc.nat(0xffffffff))
      .map(([code, length]) => pack('IHAVEOPT', [4, code], [4, length])),
  },
);

const clientStreams = fc.oneof(
  fc
    .tuple(
      fc.oneof(
        { weight: 9, arbitrary: fc.constant(CLIENT_FLAGS) },
        { weight: 1, arbitrary: fc.nat(0xffffffff).map((flags) => pack([4, flags])) },
      ),
      fc.array(anOption, { maxLength: 12 }),
      fc.uint8Array({ maxLength: 20 }),
    )
    .map(([flags, options, rest]) => Buffer.concat([flags, ...options, rest])),
  fc.uint8Array({ maxLength: 400 }),
);

const aNumber = fc.nat(0xffffffff);
const about = (size: bigint, flags: number) => reply(7, 3, pack([2, 0], [8, size], [2, flags]));

/** One reply of a server to GO: mostly good, sometimes strange or a lie. */
const aReply = fc.oneof(
  { weight: 6, arbitrary: fc.constant(about(1n << 20n, 0x1ff)) },
  { weight: 6, arbitrary: fc.constant(reply(7, 1)) },
  {
    weight: 2,
    arbitrary: fc
      .tuple(fc.bigInt(0n, (1n << 64n) - 1n), fc.nat(0xffff))
      .map(([size, flags]) => about(size, flags)),
  },
  {
    weight: 2,
    arbitrary: fc
      .tuple(fc.constantFrom(0, 1, 512, 4096), fc.constantFrom(512, 4096), aNumber)
      .map((sizes) => reply(7, 3, pack([2, 3], ...sizes.map((size) => [4, size] as const)))),
  },
  {
    weight: 2,
    arbitrary: fc
      .constantFrom(0x80000001, 0x80000006, 0x80000007, 0x800000ff)
      .map((type) => reply(7, type, 'no')),
  },
  {
    weight: 1,
    arbitrary: fc
      .tuple(fc.constantFrom(7, 8), aNumber, fc.uint8Array({ maxLength: 30 }))
      .map(([code, type, data]) => reply(code, type, data)),
  },
);

const serverStreams = fc.oneof(
  {
    weight: 4,
    arbitrary: fc
      .tuple(
        fc.constantFrom(1, 1, 1, 0x80000001, 0x80000007, 3),
        fc.array(aReply, { maxLength: 8 }),
        fc.uint8Array({ maxLength: 150 }),
      )
      .map(([type, replies, rest]) => Buffer.concat([GREETING, reply(8, type), ...replies, rest])),
  },
  {
    weight: 1,
    arbitrary: fc
      .uint8Array({ maxLength: 150 })
      .map((rest) => pack('NBDMAGIC', 'IHAVEOPT', [2, 0], rest)),
  },
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 400 }) },
);

const pieces = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 8 });

const server = () => createServerHandshake({ catalogue });
const client = () => createClientHandshake({ exportName: 'a', structuredReplies: true });

test('no bytes make the server throw, wait for too much or say too much', (t) => {
  fc.assert(
    fc.property(clientStreams, (stream) => {
      const { mostWanted, sends, sent, end, taken } = converse(server(), stream);
      const answers = sent.subarray(GREETING.length);
      // EXPORT_NAME's answer is no reply, but then the transmission phase begins.
      if (end?.type !== 'begin') parseReplies(answers);
      return (
        mostWanted <= 64 * 1024 &&
        sends.every((length) => length <= 64 * 1024) &&
        (end !== null || taken === stream.length)
      );
    }),
    RUNS,
  );
  t.pass();
});

test('any split of the stream has the same effects on the server', (t) => {
  fc.assert(
    fc.property(clientStreams, pieces, (stream, cuts) => {
      const { mostWanted: _, ...whole } = converse(server(), stream);
      const { mostWanted: __, ...cut } = converse(server(), stream, cuts);
      t.deepEqual(cut, whole);
    }),
    RUNS,
  );
});

test('the streams of these tests reach every end', (t) => {
  const ends = new Map<string, number>();
  for (const stream of fc.sample(clientStreams, { numRuns: 1000, seed: 1 })) {
    const end = converse(server(), stream).end?.type ?? 'open';
    ends.set(`server ${end}`, (ends.get(`server ${end}`) ?? 0) + 1);
  }
  for (const stream of fc.sample(serverStreams, { numRuns: 1000, seed: 1 })) {
    const end = converse(client(), stream).end?.type ?? 'open';
    ends.set(`client ${end}`, (ends.get(`client ${end}`) ?? 0) + 1);
  }
  const expected = ['begin', 'close', 'open'].flatMap((end) => [`client ${end}`, `server ${end}`]);
  t.deepEqual([...ends.keys()].sort(), expected.sort());
});

test('no bytes make the client throw, or wait for too much', (t) => {
  fc.assert(
    fc.property(serverStreams, (stream) => {
      const { mostWanted, end } = converse(client(), stream);
      if (end?.type === 'begin') {
        t.true(end.sizeBytes < 1n << 63n);
        t.is(end.transmissionFlags & 1, 1);
      }
      return mostWanted <= 8192;
    }),
    RUNS,
  );
  t.pass();
});

test('any split of the stream has the same effects on the client', (t) => {
  fc.assert(
    fc.property(serverStreams, pieces, (stream, cuts) => {
      const { mostWanted: _, ...whole } = converse(client(), stream);
      const { mostWanted: __, ...cut } = converse(client(), stream, cuts);
      t.deepEqual(cut, whole);
    }),
    RUNS,
  );
});
