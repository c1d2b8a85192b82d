/** Replies to options: one codec for all of them. */

import { concat, u16, u32, u64, utf8 } from '../bytes.ts';
import {
  BLOCK_BYTES_MIN,
  BLOCK_BYTES_PREFERRED,
  INFO,
  OPTION_REPLY_MAGIC,
  PAYLOAD_BYTES_MAX,
  REPLY,
} from '../constants.ts';

/** A reply to `option` of any type. */
function reply(option: number, type: number, data: readonly Uint8Array[] = []): Uint8Array {
  const body = concat(data);
  return concat([u64(OPTION_REPLY_MAGIC), u32(option), u32(type), u32(body.length), body]);
}

/** `NBD_REP_ACK`. */
export function ackReply(option: number): Uint8Array {
  return reply(option, REPLY.ack);
}

/** `NBD_REP_ERR_*` with a sentence for people. */
export function errorReply(option: number, type: number, message: string): Uint8Array {
  return reply(option, type, [utf8(message)]);
}

/** `NBD_REP_SERVER`: one export of a list. */
export function serverReply(option: number, name: string, description: string): Uint8Array {
  const bytes = utf8(name);
  return reply(option, REPLY.server, [u32(bytes.length), bytes, utf8(description)]);
}

/** `NBD_INFO_EXPORT`. */
export function exportInfoReply(
  option: number,
  sizeBytes: bigint,
  transmissionFlags: number,
): Uint8Array {
  return reply(option, REPLY.info, [u16(INFO.export), u64(sizeBytes), u16(transmissionFlags)]);
}

/** `NBD_INFO_NAME` or `NBD_INFO_DESCRIPTION`. */
export function textInfoReply(option: number, info: number, text: string): Uint8Array {
  return reply(option, REPLY.info, [u16(info), utf8(text)]);
}

/** `NBD_INFO_BLOCK_SIZE`: the same for every export. */
export function blockSizeInfoReply(option: number): Uint8Array {
  return reply(option, REPLY.info, [
    u16(INFO.blockSize),
    u32(BLOCK_BYTES_MIN),
    u32(BLOCK_BYTES_PREFERRED),
    u32(PAYLOAD_BYTES_MAX),
  ]);
}
