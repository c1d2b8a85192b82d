/**
 * The server's side of negotiation, from the greeting to the transmission phase: a state machine
 * from bytes to effects, without sockets, timers or I/O.
 *
 *   greeting ──client flags──▶ option header ──data──▶ option header … ──▶ begin
 *                    │               │           │                          │
 *                    └───────────────┴───────────┴── a breach, ABORT ──▶ closed
 *
 * Each list of effects is done in order, and its last one says what comes next. A client that
 * breaks the protocol so that the stream cannot be trusted is closed without an answer; one that
 * merely asks for what it cannot have is told so and may ask again.
 */

import { concat, readU32, readU64, u16, u64 } from '../bytes.ts';
import type { ExportCatalogue } from '../catalogue.ts';
import {
  HANDSHAKE_FLAG,
  INIT_MAGIC,
  OPTION,
  OPTION_BYTES_MAX,
  OPTION_MAGIC,
  OPTIONS_MAX,
  REPLY_ERROR,
} from '../constants.ts';
import { createReceiver } from '../receiver.ts';
import type { ServerEffect } from './effects.ts';
import { NOTHING_NEGOTIATED, type OptionContext, type OptionOutcome, proceed } from './option.ts';
import { OPTION_HANDLERS } from './options/registry.ts';
import { errorReply } from './replies.ts';

const SERVER_FLAGS = HANDSHAKE_FLAG.fixedNewstyle | HANDSHAKE_FLAG.noZeroes;
const CLIENT_FLAGS_BYTES = 4;
const OPTION_HEADER_BYTES = 16;

/** What a handshake needs to know. */
export interface ServerHandshakeOptions {
  readonly catalogue: ExportCatalogue;
}

/** One client's negotiation. */
export interface ServerHandshake {
  /** The greeting. To be called once, before anything else. */
  start(): ServerEffect[];
  /**
   * Takes bytes that `receive` asked for, all or some of them; more than that is an error of the
   * caller and throws a RangeError, as does anything after `begin` and `close`.
   */
  onBytes(bytes: Uint8Array): ServerEffect[];
  /** From now on every option but ABORT is refused: the server is stopping. */
  stop(): void;
}

type State =
  | { readonly at: 'clientFlags' }
  | { readonly at: 'optionHeader' }
  | { readonly at: 'optionData'; readonly option: number }
  | { readonly at: 'end' };

/** All that a negotiation remembers between two events. */
interface Session {
  readonly state: State;
  readonly context: OptionContext;
  readonly fixedNewstyle: boolean;
  readonly optionsSeen: number;
  readonly stopping: boolean;
}

interface Step {
  readonly session: Session;
  readonly effects: readonly ServerEffect[];
}

/** A negotiation that has not begun. */
export function createServerHandshake({ catalogue }: ServerHandshakeOptions): ServerHandshake {
  const receiver = createReceiver();
  let session: Session = {
    state: { at: 'clientFlags' },
    context: { catalogue, negotiated: NOTHING_NEGOTIATED, noZeroes: false },
    fixedNewstyle: false,
    optionsSeen: 0,
    stopping: false,
  };
  const apply = (step: Step): ServerEffect[] => {
    session = step.session;
    const last = step.effects.at(-1);
    if (last?.type === 'receive') receiver.expect(last.length);
    return [...step.effects];
  };
  return {
    start() {
      const greeting = concat([u64(INIT_MAGIC), u64(OPTION_MAGIC), u16(SERVER_FLAGS)]);
      const send: ServerEffect = { type: 'send', bytes: greeting };
      return apply(receive(session, { at: 'clientFlags' }, CLIENT_FLAGS_BYTES, [send]));
    },
    onBytes(bytes) {
      const whole = receiver.add(bytes);
      if (whole !== null) return apply(take(session, whole));
      const length = receiver.missing();
      return length > 0 ? [{ type: 'receive', length }] : [];
    },
    stop() {
      session = { ...session, stopping: true };
    },
  };
}

/** What was asked for is there. */
function take(session: Session, bytes: Uint8Array): Step {
  switch (session.state.at) {
    case 'clientFlags':
      return onClientFlags(session, bytes);
    case 'optionHeader':
      return onOptionHeader(session, bytes);
    case 'optionData':
      return onOption(session, session.state.option, bytes);
    case 'end':
      return { session, effects: [] };
  }
}

function onClientFlags(session: Session, bytes: Uint8Array): Step {
  const flags = readU32(bytes, 0);
  const unknown = (flags & ~SERVER_FLAGS) >>> 0;
  if (unknown !== 0) return close(session, `unknown client flags 0x${unknown.toString(16)}`);
  const noZeroes = (flags & HANDSHAKE_FLAG.noZeroes) !== 0;
  return receiveOption({
    ...session,
    context: { ...session.context, noZeroes },
    fixedNewstyle: (flags & HANDSHAKE_FLAG.fixedNewstyle) !== 0,
  });
}

function onOptionHeader(before: Session, bytes: Uint8Array): Step {
  const session = { ...before, optionsSeen: before.optionsSeen + 1 };
  const option = readU32(bytes, 8);
  const length = readU32(bytes, 12);
  if (readU64(bytes, 0) !== OPTION_MAGIC) {
    return close(session, 'an option with a bad magic number');
  }
  if (session.optionsSeen > OPTIONS_MAX) return close(session, `more than ${OPTIONS_MAX} options`);
  if (length > OPTION_BYTES_MAX) {
    const most = OPTION_BYTES_MAX;
    return close(session, `option ${option} with ${length} bytes: at most ${most} are read`);
  }
  if (!session.fixedNewstyle && option !== OPTION.exportName) {
    return close(session, `option ${option} without fixed newstyle negotiation`);
  }
  if (length > 0) return receive(session, { at: 'optionData', option }, length, []);
  return onOption(session, option, new Uint8Array(0));
}

function onOption(session: Session, option: number, data: Uint8Array): Step {
  const judge = session.stopping ? whileStopping : handleOption;
  const outcome = judge(option, data, session.context);
  const sends: ServerEffect[] =
    outcome.answer.length > 0 ? [{ type: 'send', bytes: outcome.answer }] : [];
  switch (outcome.next) {
    case 'option': {
      const context = { ...session.context, negotiated: outcome.negotiated };
      return receiveOption({ ...session, context }, sends);
    }
    case 'begin':
      return { session: { ...session, state: { at: 'end' } }, effects: [...sends, outcome.begin] };
    case 'close':
      return close(session, outcome.reason, sends);
  }
}

function receive(
  session: Session,
  state: State,
  length: number,
  sends: readonly ServerEffect[],
): Step {
  return { session: { ...session, state }, effects: [...sends, { type: 'receive', length }] };
}

function receiveOption(session: Session, sends: readonly ServerEffect[] = []): Step {
  return receive(session, { at: 'optionHeader' }, OPTION_HEADER_BYTES, sends);
}

function close(session: Session, reason: string, sends: readonly ServerEffect[] = []): Step {
  const effects: ServerEffect[] = [...sends, { type: 'close', reason }];
  return { session: { ...session, state: { at: 'end' } }, effects };
}

function handleOption(option: number, data: Uint8Array, context: OptionContext): OptionOutcome {
  const handler = OPTION_HANDLERS.get(option);
  if (handler !== undefined) return handler.handle(data, context);
  const message = `option ${option} is not supported`;
  return proceed(errorReply(option, REPLY_ERROR.unsupported, message), context);
}

function whileStopping(option: number, data: Uint8Array, context: OptionContext): OptionOutcome {
  if (option === OPTION.abort) return handleOption(option, data, context);
  if (option === OPTION.exportName) {
    return { next: 'close', answer: new Uint8Array(0), reason: 'the server is stopping' };
  }
  const answer = errorReply(option, REPLY_ERROR.shutdown, 'the server is stopping');
  return proceed(answer, context);
}
