/**
 * The client's side of negotiation, towards an NBD origin: a state machine from bytes to effects,
 * like the server's.
 *
 *   greeting ─▶ STRUCTURED_REPLY ─▶ GO ─▶ begin
 *       │                            └──── not supported ──▶ EXPORT_NAME ─▶ begin
 *       └── no fixed newstyle ─────────────────────────────▶ EXPORT_NAME
 *
 * The server is not trusted: whatever it sends, the end is `begin` with sizes that can be, or
 * `close` with a sentence, after a bounded number of replies.
 */

import { readU16, readU64, u32, utf8 } from '../bytes.ts';
import {
  EXPORT_NAME_ZERO_BYTES,
  HANDSHAKE_FLAG,
  INIT_MAGIC,
  OLDSTYLE_MAGIC,
  OPTION,
  OPTION_MAGIC,
  REPLIES_PER_OPTION_MAX,
  REPLY,
  REPLY_ERROR,
  STRING_BYTES_MAX,
} from '../constants.ts';
import { createReceiver } from '../receiver.ts';
import type { ClientEffect } from './effects.ts';
import {
  addInfo,
  beginWith,
  decodeReplyHeader,
  describeError,
  type ExportFacts,
  encodeGo,
  encodeOption,
  isErrorReply,
  NO_FACTS,
  REPLY_HEADER_BYTES,
  type ReplyHeader,
} from './messages.ts';

const GREETING_BYTES = 18;
const EXPORT_NAME_REPLY_BYTES = 10;

/** What is wanted of the server. */
export interface ClientHandshakeOptions {
  /** At most 4096 bytes of UTF-8; empty for the server's default export. */
  readonly exportName: string;
  /** Whether to ask for structured replies. */
  readonly structuredReplies: boolean;
}

/** One negotiation with a server. */
export interface ClientHandshake {
  /** What to receive first. To be called once, before anything else. */
  start(): ClientEffect[];
  /** Takes bytes that `receive` asked for; more than that throws a RangeError. */
  onBytes(bytes: Uint8Array): ClientEffect[];
}

type State =
  | { readonly at: 'greeting' }
  | { readonly at: 'replyHeader'; readonly option: number }
  | { readonly at: 'replyData'; readonly option: number; readonly header: ReplyHeader }
  | { readonly at: 'exportNameReply' }
  | { readonly at: 'end' };

interface Session {
  readonly state: State;
  readonly options: ClientHandshakeOptions;
  readonly noZeroes: boolean;
  readonly structuredReplies: boolean;
  readonly facts: ExportFacts;
  /** Replies to the option that is being answered. */
  readonly replies: number;
}

interface Step {
  readonly session: Session;
  readonly effects: readonly ClientEffect[];
}

/** A negotiation that has not begun. Throws a RangeError when the name is too long to be sent. */
export function createClientHandshake(options: ClientHandshakeOptions): ClientHandshake {
  if (utf8(options.exportName).length > STRING_BYTES_MAX) {
    throw new RangeError(`an export's name has at most ${STRING_BYTES_MAX} bytes`);
  }
  const receiver = createReceiver();
  let session: Session = {
    state: { at: 'greeting' },
    options,
    noZeroes: false,
    structuredReplies: false,
    facts: NO_FACTS,
    replies: 0,
  };
  const apply = (step: Step): ClientEffect[] => {
    session = step.session;
    const last = step.effects.at(-1);
    if (last?.type === 'receive') receiver.expect(last.length);
    return [...step.effects];
  };
  return {
    start: () => apply(receive(session, { at: 'greeting' }, GREETING_BYTES)),
    onBytes(bytes) {
      const whole = receiver.add(bytes);
      if (whole !== null) return apply(take(session, whole));
      const length = receiver.missing();
      return length > 0 ? [{ type: 'receive', length }] : [];
    },
  };
}

/** What was asked for is there. */
function take(session: Session, bytes: Uint8Array): Step {
  const { state } = session;
  switch (state.at) {
    case 'greeting':
      return onGreeting(session, bytes);
    case 'replyHeader':
      return onReplyHeader(session, state.option, bytes);
    case 'replyData':
      return onReply(session, state.option, state.header, bytes);
    case 'exportNameReply':
      return onExportNameReply(session, bytes);
    case 'end':
      return { session, effects: [] };
  }
}

function onGreeting(before: Session, bytes: Uint8Array): Step {
  if (readU64(bytes, 0) !== INIT_MAGIC) return close(before, 'this is no NBD server');
  const second = readU64(bytes, 8);
  if (second === OLDSTYLE_MAGIC) return close(before, 'the server only speaks oldstyle');
  if (second !== OPTION_MAGIC) return close(before, 'this is no NBD server');
  const offered = readU16(bytes, 16);
  const flags = offered & (HANDSHAKE_FLAG.fixedNewstyle | HANDSHAKE_FLAG.noZeroes);
  const session = { ...before, noZeroes: (flags & HANDSHAKE_FLAG.noZeroes) !== 0 };
  const send: ClientEffect = { type: 'send', bytes: u32(flags) };
  if ((flags & HANDSHAKE_FLAG.fixedNewstyle) === 0) return askByName(session, [send]);
  if (!session.options.structuredReplies) return askToGo(session, [send]);
  return ask(session, OPTION.structuredReply, encodeOption(OPTION.structuredReply), [send]);
}

function onReplyHeader(before: Session, option: number, bytes: Uint8Array): Step {
  const session = { ...before, replies: before.replies + 1 };
  const header = decodeReplyHeader(bytes, option);
  if (typeof header === 'string') return close(session, header);
  if (session.replies > REPLIES_PER_OPTION_MAX) return close(session, 'replies without an end');
  if (header.length > 0) {
    return receive(session, { at: 'replyData', option, header }, header.length);
  }
  return onReply(session, option, header, new Uint8Array(0));
}

function onReply(session: Session, option: number, header: ReplyHeader, data: Uint8Array): Step {
  if (header.type === REPLY.ack && data.length > 0) {
    return close(session, 'an acknowledgement with data');
  }
  if (option === OPTION.structuredReply) {
    if (header.type === REPLY.ack) return askToGo({ ...session, structuredReplies: true });
    // Without structured replies everything works, only not as well.
    if (header.type !== REPLY_ERROR.shutdown && isErrorReply(header.type)) return askToGo(session);
  } else {
    if (header.type === REPLY.info) {
      const facts = addInfo(session.facts, data);
      if (typeof facts === 'string') return close(session, facts);
      return receiveReply({ ...session, facts }, option, []);
    }
    if (header.type === REPLY.ack) return begin(session);
    if (header.type === REPLY_ERROR.unsupported) return askByName(session);
  }
  if (!isErrorReply(header.type)) return close(session, `a reply of type ${header.type}`);
  const abort: ClientEffect = { type: 'send', bytes: encodeOption(OPTION.abort) };
  return close(session, describeError(header.type, data), [abort]);
}

function onExportNameReply(session: Session, bytes: Uint8Array): Step {
  const facts = { sizeBytes: readU64(bytes, 0), transmissionFlags: readU16(bytes, 8) };
  return begin({ ...session, facts: { ...NO_FACTS, ...facts } });
}

function begin(session: Session): Step {
  const effect = beginWith(session.facts, session.structuredReplies);
  if (typeof effect === 'string') return close(session, effect);
  return { session: { ...session, state: { at: 'end' } }, effects: [effect] };
}

function askToGo(session: Session, sends: readonly ClientEffect[] = []): Step {
  return ask(session, OPTION.go, encodeGo(session.options.exportName), sends);
}

function askByName(session: Session, before: readonly ClientEffect[] = []): Step {
  const name = utf8(session.options.exportName);
  const bytes = encodeOption(OPTION.exportName, name);
  const length = EXPORT_NAME_REPLY_BYTES + (session.noZeroes ? 0 : EXPORT_NAME_ZERO_BYTES);
  const sends: ClientEffect[] = [...before, { type: 'send', bytes }];
  return receive(session, { at: 'exportNameReply' }, length, sends);
}

function ask(
  session: Session,
  option: number,
  bytes: Uint8Array,
  before: readonly ClientEffect[],
): Step {
  return receiveReply({ ...session, replies: 0 }, option, [...before, { type: 'send', bytes }]);
}

function receiveReply(session: Session, option: number, sends: readonly ClientEffect[]): Step {
  return receive(session, { at: 'replyHeader', option }, REPLY_HEADER_BYTES, sends);
}

function receive(
  session: Session,
  state: State,
  length: number,
  sends: readonly ClientEffect[] = [],
): Step {
  return { session: { ...session, state }, effects: [...sends, { type: 'receive', length }] };
}

function close(session: Session, reason: string, sends: readonly ClientEffect[] = []): Step {
  const effects: ClientEffect[] = [...sends, { type: 'close', reason }];
  return { session: { ...session, state: { at: 'end' } }, effects };
}
