/** `NBD_OPT_INFO` and `NBD_OPT_GO`: about an export, and to begin with it. */

import { concat, decodeString, readU16, readU32 } from '../../bytes.ts';
import { type ExportDescription, resolveExport } from '../../catalogue.ts';
import { ANSWER_BYTES_MAX, INFO, OPTION, REPLY_ERROR } from '../../constants.ts';
import { quote } from '../../text.ts';
import { beginTransmission } from '../begin.ts';
import type { BeginTransmission } from '../effects.ts';
import { type OptionContext, type OptionHandler, type OptionOutcome, proceed } from '../option.ts';
import {
  ackReply,
  blockSizeInfoReply,
  errorReply,
  exportInfoReply,
  textInfoReply,
} from '../replies.ts';

/** Tells about the export. */
export const info: OptionHandler = {
  option: OPTION.info,
  handle: (data, context) => inform(OPTION.info, data, context),
};

/** Tells the same, in the same way, and begins. */
export const go: OptionHandler = {
  option: OPTION.go,
  handle: (data, context) => inform(OPTION.go, data, context),
};

interface InfoRequest {
  readonly name: string;
  /** `NBD_INFO_*`, known or not. */
  readonly kinds: ReadonlySet<number>;
}

function inform(option: number, data: Uint8Array, context: OptionContext): OptionOutcome {
  const fail = (type: number, message: string): OptionOutcome =>
    proceed(errorReply(option, type, message), context);
  const request = parseRequest(data);
  if (request === null) {
    return fail(REPLY_ERROR.invalid, 'the option is not a name with a list of information');
  }
  const description = resolveExport(context.catalogue, request.name);
  if (description === null) {
    const message =
      request.name === '' ? 'there is no export' : `there is no export ${quote(request.name)}`;
    return fail(REPLY_ERROR.unknown, message);
  }
  const begin = beginTransmission(description, context.negotiated);
  const answer = concat(answerReplies(option, description, begin, request.kinds));
  if (answer.length > ANSWER_BYTES_MAX) {
    return fail(REPLY_ERROR.tooBig, 'there is too much to tell about the export');
  }
  return option === OPTION.go ? { next: 'begin', answer, begin } : proceed(answer, context);
}

/** What the client wants to know, or null when the data is not well formed to its last byte. */
function parseRequest(data: Uint8Array): InfoRequest | null {
  if (data.length < 6) return null;
  const nameLength = readU32(data, 0);
  if (nameLength > data.length - 6) return null;
  const name = decodeString(data.subarray(4, 4 + nameLength));
  if (name === null) return null;
  const countAt = 4 + nameLength;
  const count = readU16(data, countAt);
  if (data.length !== countAt + 2 + 2 * count) return null;
  const kinds = new Set<number>();
  for (let at = countAt + 2; at < data.length; at += 2) kinds.add(readU16(data, at));
  return { name, kinds };
}

/** `NBD_INFO_EXPORT` always, what else is known if asked for; kinds nobody knows are ignored. */
function answerReplies(
  option: number,
  { name, description }: ExportDescription,
  { sizeBytes, transmissionFlags }: BeginTransmission,
  kinds: ReadonlySet<number>,
): Uint8Array[] {
  const replies = [exportInfoReply(option, sizeBytes, transmissionFlags)];
  if (kinds.has(INFO.name)) replies.push(textInfoReply(option, INFO.name, name));
  if (kinds.has(INFO.description) && description !== '') {
    replies.push(textInfoReply(option, INFO.description, description));
  }
  if (kinds.has(INFO.blockSize)) replies.push(blockSizeInfoReply(option));
  replies.push(ackReply(option));
  return replies;
}
