/** The server's side of negotiation: every option, and every rule about errors. */

import test from 'ava';
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
} from './peer.ts';

const EXPORT_NAME = 1;
const ABORT = 2;
const LIST = 3;
const STARTTLS = 5;
const INFO = 6;
const GO = 7;
const STRUCTURED_REPLY = 8;
const ACK = 1;
const SERVER = 2;
const INFORMATION = 3;
const UNSUPPORTED = 0x80000001;
const INVALID = 0x80000003;
const UNKNOWN = 0x80000006;
const SHUTDOWN = 0x80000007;
const TOO_BIG = 0x80000009;

/** HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CAN_MULTI_CONN. */
const FLAGS = 0x016d;
/** HAS_FLAGS, READ_ONLY, FLUSH, FUA, CAN_MULTI_CONN. */
const FLAGS_READ_ONLY = 0x010f;
const FLAG_DF = 0x80;

const first = exportOf('first', { description: 'the first one', sizeBytes: 0x1234567890n });
const second = exportOf('zweites-ö', { readOnly: true });
const catalogue = catalogueOf(first, second);

/** A conversation after the greeting, with what the server sent after it. */
function talk(
  options: readonly Uint8Array[],
  { flags = CLIENT_FLAGS, from = catalogue, stopping = false } = {},
) {
  const machine = createServerHandshake({ catalogue: from });
  if (stopping) machine.stop();
  const conversation = converse(machine, Buffer.concat([flags, ...options]));
  const greeting = conversation.sent.subarray(0, GREETING.length);
  return { ...conversation, greeting, sent: conversation.sent.subarray(GREETING.length) };
}

/** The types of the replies to these options; the conversation must go on after them. */
function types(options: readonly Uint8Array[], more = {}): number[] {
  const { sent, end, wanted } = talk(options, more);
  if (end !== null || wanted !== 16) throw new Error('the conversation does not go on');
  return parseReplies(sent).map(({ type }) => type);
}

test('the greeting offers fixed newstyle without zeroes', (t) => {
  const { greeting, sent, end, wanted } = talk([]);
  t.deepEqual(greeting, GREETING);
  t.is(sent.length, 0);
  t.is(end, null);
  t.is(wanted, 16);
});

test('unknown client flags lose the connection', (t) => {
  for (const flags of [4, 7, 0x80000003, 0xffffffff]) {
    const { sent, end } = talk([], { flags: pack([4, flags]) });
    t.is(end?.type, 'close');
    t.is(sent.length, 0);
  }
  for (const flags of [0, 1, 2, 3]) t.is(talk([], { flags: pack([4, flags]) }).end, null);
});

test('without fixed newstyle there is EXPORT_NAME and nothing else', (t) => {
  const flags = pack([4, 2]);
  for (const code of [ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, 99]) {
    const { sent, end } = talk([option(code)], { flags });
    t.is(end?.type, 'close', `option ${code}`);
    t.is(sent.length, 0);
  }
  t.is(talk([option(EXPORT_NAME, 'first')], { flags }).end?.type, 'begin');
});

test('EXPORT_NAME answers with size, flags and zeroes', (t) => {
  const long = talk([option(EXPORT_NAME, 'first')], { flags: pack([4, 1]) });
  t.deepEqual(long.sent, pack([8, 0x1234567890n], [2, FLAGS], new Uint8Array(124)));
  const short = talk([option(EXPORT_NAME, 'first')]);
  t.deepEqual(short.sent, pack([8, 0x1234567890n], [2, FLAGS]));
  t.deepEqual(short.end, {
    type: 'begin',
    exportName: 'first',
    sizeBytes: 0x1234567890n,
    readOnly: false,
    transmissionFlags: FLAGS,
    structuredReplies: false,
  });
});

test('EXPORT_NAME cannot answer an error: it disconnects', (t) => {
  const names = ['nothing', 'FIRST', 'first\0', Buffer.from([0xff]), 'x'.repeat(4097)];
  for (const name of names) {
    const { sent, end } = talk([option(EXPORT_NAME, name)]);
    t.is(end?.type, 'close');
    t.is(sent.length, 0);
  }
  t.is(talk([option(EXPORT_NAME)], { from: catalogueOf() }).end?.type, 'close');
});

test('EXPORT_NAME after STRUCTURED_REPLY has the flag that needs it', (t) => {
  const { sent, end } = talk([option(STRUCTURED_REPLY), option(EXPORT_NAME, 'first')]);
  t.deepEqual(sent.subarray(20), pack([8, 0x1234567890n], [2, FLAGS | FLAG_DF]));
  t.like(end, { type: 'begin', structuredReplies: true, transmissionFlags: FLAGS | FLAG_DF });
});

test('the empty name is the first export, in every way to begin', (t) => {
  for (const ask of [option(EXPORT_NAME), option(GO, infoData(''))]) {
    t.like(talk([ask]).end, { type: 'begin', exportName: 'first' });
  }
  t.deepEqual(types([option(INFO, infoData(''))], { from: catalogueOf() }), [UNKNOWN]);
});

test('names are UTF-8', (t) => {
  const { end } = talk([option(GO, infoData('zweites-ö'))]);
  t.like(end, { type: 'begin', exportName: 'zweites-ö', readOnly: true });
});

test('ABORT is acknowledged, whatever it carries', (t) => {
  for (const data of ['', 'good bye']) {
    const { sent, end } = talk([option(ABORT, data)]);
    t.deepEqual(parseReplies(sent), [{ option: ABORT, type: ACK, data: Buffer.alloc(0) }]);
    t.is(end?.type, 'close');
  }
});

test('LIST names every export with its description', (t) => {
  const { sent } = talk([option(LIST)]);
  t.deepEqual(parseReplies(sent), [
    { option: LIST, type: SERVER, data: pack([4, 5], 'first', 'the first one') },
    { option: LIST, type: SERVER, data: pack([4, 10], 'zweites-ö') },
    { option: LIST, type: ACK, data: Buffer.alloc(0) },
  ]);
  t.deepEqual(types([option(LIST)], { from: catalogueOf() }), [ACK]);
});

test('LIST refuses data, and more than can be told', (t) => {
  t.deepEqual(types([option(LIST, 'x'), option(LIST)]), [INVALID, SERVER, SERVER, ACK]);
  // Each reply has 20 bytes of header and 4 of length before the name, the last one 20 bytes.
  const fits = Array.from({ length: 16 }, (_, at) => `${at}`.padEnd(at === 0 ? 4052 : 4072));
  const named = (names: readonly string[]) => catalogueOf(...names.map((name) => exportOf(name)));
  t.is(talk([option(LIST)], { from: named(fits) }).sent.length, 64 * 1024);
  t.is(types([option(LIST)], { from: named(fits) }).length, 17);
  const longer = fits.map((name, at) => (at === 0 ? `${name}x` : name));
  t.deepEqual(types([option(LIST)], { from: named(longer) }), [TOO_BIG]);
});

test('STARTTLS is refused and changes nothing', (t) => {
  t.deepEqual(types([option(STARTTLS)]), [UNSUPPORTED]);
  t.deepEqual(types([option(STARTTLS, 'x')]), [INVALID]);
  const { end } = talk([option(STRUCTURED_REPLY), option(STARTTLS), option(GO, infoData('first'))]);
  t.like(end, { type: 'begin', structuredReplies: true });
});

test('STRUCTURED_REPLY is agreed to, also twice, and takes no data', (t) => {
  t.deepEqual(types([option(STRUCTURED_REPLY), option(STRUCTURED_REPLY)]), [ACK, ACK]);
  t.deepEqual(types([option(STRUCTURED_REPLY, 'x')]), [INVALID]);
  const refused = talk([option(STRUCTURED_REPLY, 'x'), option(GO, infoData('first'))]);
  t.like(refused.end, { type: 'begin', structuredReplies: false, transmissionFlags: FLAGS });
  const agreed = talk([option(STRUCTURED_REPLY), option(GO, infoData('first'))]);
  t.like(agreed.end, { structuredReplies: true, transmissionFlags: FLAGS | FLAG_DF });
});

test('INFO tells what was asked for, the export always', (t) => {
  const about = pack([2, 0], [8, 0x1234567890n], [2, FLAGS]);
  const { sent, end, wanted } = talk([option(INFO, infoData('', [3, 1, 2, 77, 0]))]);
  t.deepEqual(parseReplies(sent), [
    { option: INFO, type: INFORMATION, data: about },
    { option: INFO, type: INFORMATION, data: pack([2, 1], 'first') },
    { option: INFO, type: INFORMATION, data: pack([2, 2], 'the first one') },
    {
      option: INFO,
      type: INFORMATION,
      data: pack([2, 3], [4, 1], [4, 4096], [4, 64 * 1024 * 1024]),
    },
    { option: INFO, type: ACK, data: Buffer.alloc(0) },
  ]);
  t.is(end, null);
  t.is(wanted, 16);
  t.deepEqual(parseReplies(talk([option(INFO, infoData('first'))]).sent), [
    { option: INFO, type: INFORMATION, data: about },
    { option: INFO, type: ACK, data: Buffer.alloc(0) },
  ]);
});

test('an export without a description has none to tell', (t) => {
  t.deepEqual(types([option(INFO, infoData('zweites-ö', [2]))]), [INFORMATION, ACK]);
});

test('a read-only export says so, and offers no changes', (t) => {
  const { sent, end } = talk([option(GO, infoData('zweites-ö'))]);
  t.deepEqual(parseReplies(sent)[0]?.data, pack([2, 0], [8, 1 << 30], [2, FLAGS_READ_ONLY]));
  t.like(end, { readOnly: true, transmissionFlags: FLAGS_READ_ONLY });
});

test('INFO and a following GO agree', (t) => {
  for (const kinds of [[], [0], [3], [1, 2, 3], [3, 3, 9]]) {
    for (const before of [[], [option(STRUCTURED_REPLY)]]) {
      const data = infoData('first', kinds);
      const { sent, end } = talk([...before, option(INFO, data), option(GO, data)]);
      const replies = parseReplies(sent);
      const of = (code: number) =>
        replies.filter((one) => one.option === code).map(({ type, data: bytes }) => [type, bytes]);
      t.deepEqual(of(INFO), of(GO));
      t.like(end, { type: 'begin', exportName: 'first' });
    }
  }
});

test('an unknown export is an error, and the client may ask again', (t) => {
  const asks = [INFO, GO].map((code) => option(code, infoData('nothing')));
  t.deepEqual(types(asks), [UNKNOWN, UNKNOWN]);
  const { end } = talk([...asks, option(GO, infoData('first'))]);
  t.is(end?.type, 'begin');
});

test('a long name in an error is cut, and cannot move a cursor', (t) => {
  const name = `${'ä'.repeat(40)}\u001b[2J${'x'.repeat(4000)}`;
  const { sent } = talk([option(GO, infoData(name))]);
  const [error] = parseReplies(sent);
  t.is(error?.type, UNKNOWN);
  t.true((error?.data.length ?? 0) < 256);
  const message = error?.data.toString('utf8') ?? '';
  t.true(message.includes('ä'.repeat(40)));
  t.false(message.includes('\u001b'));
});

test('INFO and GO must be well formed to the last byte', (t) => {
  const whole = infoData('first', [1, 3]);
  const broken = [
    Buffer.alloc(0),
    Buffer.alloc(5),
    whole.subarray(0, -1),
    pack(whole, [1, 0]),
    pack(whole, [2, 0]),
    pack([4, 0xffffffff], 'first', [2, 0]),
    pack([4, 6], 'first', [2, 0]),
    pack([4, 6], 'first', [2, 0x3131]),
    pack([4, 7], 'first', [2, 0x3131]),
    pack([4, 4], 'first', [2, 0]),
    pack([4, 5], 'first', [2, 0xffff]),
    pack([4, 2], [2, 0xc328], [2, 0]),
    infoData('first\0'),
    infoData('x'.repeat(4097)),
  ];
  for (const data of broken) {
    for (const code of [INFO, GO]) t.deepEqual(types([option(code, data)]), [INVALID]);
  }
  t.deepEqual(types([option(INFO, infoData('x'.repeat(4096)))]), [UNKNOWN]);
});

test('a name of 4096 bytes is served', (t) => {
  const name = 'n'.repeat(4096);
  const { end } = talk([option(GO, infoData(name, [1]))], { from: catalogueOf(exportOf(name)) });
  t.like(end, { type: 'begin', exportName: name });
});

test('a description that is too long to send is refused, not sent', (t) => {
  const from = catalogueOf(exportOf('long', { description: 'd'.repeat(70_000) }));
  t.deepEqual(types([option(GO, infoData('long', [2]))], { from }), [TOO_BIG]);
  t.is(talk([option(GO, infoData('long'))], { from }).end?.type, 'begin');
});

test('every other option is not supported, and its data is skipped', (t) => {
  const codes = [0, 4, 9, 10, 11, 12, 0x12345678, 0xffffffff];
  for (const code of codes) {
    const { sent } = talk([option(code, 'some data'), option(LIST)]);
    const replies = parseReplies(sent);
    t.like(replies[0], { option: code, type: UNSUPPORTED });
    t.deepEqual(
      replies.slice(1).map(({ type }) => type),
      [SERVER, SERVER, ACK],
    );
  }
});

test('an option is read up to 64 KiB, and a longer one loses the connection at once', (t) => {
  const most = 64 * 1024;
  t.deepEqual(types([option(99, Buffer.alloc(most))]), [UNSUPPORTED]);
  for (const code of [99, GO, LIST, ABORT]) {
    for (const length of [most + 1, 0x7fffffff, 0xffffffff]) {
      const { sent, end } = talk([pack('IHAVEOPT', [4, code], [4, length])]);
      t.is(end?.type, 'close');
      t.is(sent.length, 0);
    }
  }
});

test('an option with a bad magic number loses the connection', (t) => {
  for (const magic of ['IHAVEOPU', 'NBDMAGIC', '\0\0\0\0\0\0\0\0']) {
    const { sent, end } = talk([pack(magic, [4, LIST], [4, 0])]);
    t.is(end?.type, 'close');
    t.is(sent.length, 0);
  }
});

test('there is an end to options', (t) => {
  const asks = (count: number) => Array.from({ length: count }, () => option(99));
  t.is(types(asks(256)).length, 256);
  const { sent, end } = talk(asks(257));
  t.is(end?.type, 'close');
  t.is(parseReplies(sent).length, 256);
  t.is(talk([...asks(255), option(GO, infoData('first'))]).end?.type, 'begin');
  t.is(talk([...asks(256), option(GO, infoData('first'))]).end?.type, 'close');
});

test('a stopping server refuses everything but ABORT', (t) => {
  const stopping = true;
  const asks = [LIST, STARTTLS, STRUCTURED_REPLY, 99].map((code) => option(code));
  const go = option(GO, infoData('first'));
  t.deepEqual(types([...asks, go], { stopping }), Array(5).fill(SHUTDOWN));
  t.like(talk([option(EXPORT_NAME, 'first')], { stopping }), { end: { type: 'close' } });
  t.deepEqual(parseReplies(talk([option(ABORT)], { stopping }).sent)[0]?.type, ACK);
});

test('no byte beyond the handshake is ever asked for or taken', (t) => {
  for (const ask of [option(GO, infoData('first')), option(EXPORT_NAME, 'first'), option(ABORT)]) {
    const { taken, end } = talk([ask, Buffer.from('the first request')]);
    t.is(taken, CLIENT_FLAGS.length + ask.length);
    t.not(end, null);
  }
  const machine = createServerHandshake({ catalogue });
  const ask = Buffer.concat([CLIENT_FLAGS, option(GO, infoData('first'))]);
  t.is(converse(machine, ask).end?.type, 'begin');
  t.throws(() => machine.onBytes(Buffer.alloc(1)), { instanceOf: RangeError });
});

test('more bytes than were asked for are an error of the caller', (t) => {
  const machine = createServerHandshake({ catalogue });
  machine.start();
  t.throws(() => machine.onBytes(Buffer.alloc(5)), { instanceOf: RangeError });
});
