/** Messages of a client, and replies of a server that may be broken or hostile. */

import { concat, decodeString, readU16, readU32, readU64, u16, u32, u64, utf8 } from '../bytes.ts';
import {
  INFO,
  OPTION,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  REPLY_ERROR,
  REPLY_ERROR_BIT,
  STRING_BYTES_MAX,
  TRANSMISSION_FLAG,
} from '../constants.ts';
import { quote } from '../text.ts';
import type { BeginClientTransmission, BlockSizes } from './effects.ts';

/** Bytes of the header of a reply to an option. */
export const REPLY_HEADER_BYTES = 20;
/** The most data of a reply that is read: a string and a few fields. */
export const REPLY_DATA_BYTES_MAX = STRING_BYTES_MAX + 64;
/** Sizes of 2^63 bytes and more are no sizes of anything (CVE-2023-5215). */
const EXPORT_BYTES_END = 1n << 63n;

/** An option with its data. */
export function encodeOption(option: number, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  return concat([u64(OPTION_MAGIC), u32(option), u32(data.length), data]);
}

/** `NBD_OPT_GO`, asking for the block sizes. */
export function encodeGo(exportName: string): Uint8Array {
  const name = utf8(exportName);
  const data = concat([u32(name.length), name, u16(1), u16(INFO.blockSize)]);
  return encodeOption(OPTION.go, data);
}

/** The header of a reply to an option. */
export interface ReplyHeader {
  readonly type: number;
  readonly length: number;
}

/** The header, or a sentence that says what is wrong with it. */
export function decodeReplyHeader(bytes: Uint8Array, option: number): ReplyHeader | string {
  if (readU64(bytes, 0) !== OPTION_REPLY_MAGIC) return 'a reply with a bad magic number';
  const answered = readU32(bytes, 8);
  if (answered !== option) return `a reply to option ${answered} in place of ${option}`;
  const length = readU32(bytes, 16);
  if (length > REPLY_DATA_BYTES_MAX) return `a reply of ${length} bytes`;
  return { type: readU32(bytes, 12), length };
}

/** Whether a reply says no. */
export function isErrorReply(type: number): boolean {
  return type >= REPLY_ERROR_BIT;
}

/** What a server says when it refuses. */
export function describeError(type: number, data: Uint8Array): string {
  const known = Object.entries(REPLY_ERROR).find(([, value]) => value === type);
  const kind = known?.[0] ?? `error ${type - REPLY_ERROR_BIT}`;
  const message = decodeString(data);
  return message === null || message === ''
    ? `the server refused: ${kind}`
    : `the server refused: ${kind}, ${quote(message)}`;
}

/** What is known of an export so far. */
export interface ExportFacts {
  readonly sizeBytes: bigint | null;
  readonly transmissionFlags: number;
  readonly blockSizes: BlockSizes | null;
}

/** Nothing yet. */
export const NO_FACTS: ExportFacts = { sizeBytes: null, transmissionFlags: 0, blockSizes: null };

/** The facts with one `NBD_REP_INFO` more, or a sentence that says what is wrong with it. */
export function addInfo(facts: ExportFacts, data: Uint8Array): ExportFacts | string {
  if (data.length < 2) return 'information without a kind';
  const kind = readU16(data, 0);
  if (kind === INFO.export) {
    if (data.length !== 12) return `information about the export of ${data.length} bytes`;
    return { ...facts, sizeBytes: readU64(data, 2), transmissionFlags: readU16(data, 10) };
  }
  if (kind === INFO.blockSize) {
    if (data.length !== 14) return `information about block sizes of ${data.length} bytes`;
    const blockSizes: BlockSizes = {
      minimumBytes: readU32(data, 2),
      preferredBytes: readU32(data, 6),
      payloadBytesMax: readU32(data, 10),
    };
    return saneBlockSizes(blockSizes)
      ? { ...facts, blockSizes }
      : `block sizes that cannot be: ${Object.values(blockSizes).join(', ')}`;
  }
  return facts;
}

/** What the transmission phase begins with, or a sentence that says why it cannot. */
export function beginWith(
  { sizeBytes, transmissionFlags, blockSizes }: ExportFacts,
  structuredReplies: boolean,
): BeginClientTransmission | string {
  if (sizeBytes === null) return 'the server did not say how large the export is';
  if (sizeBytes >= EXPORT_BYTES_END) return `an export of ${sizeBytes} bytes`;
  if ((transmissionFlags & TRANSMISSION_FLAG.hasFlags) === 0) {
    return 'transmission flags that say they are none';
  }
  const meaningless = structuredReplies ? 0 : TRANSMISSION_FLAG.sendDf;
  return {
    type: 'begin',
    sizeBytes,
    transmissionFlags: transmissionFlags & ~meaningless,
    structuredReplies,
    blockSizes,
  };
}

function saneBlockSizes({ minimumBytes, preferredBytes, payloadBytesMax }: BlockSizes): boolean {
  return (
    isPowerOfTwo(minimumBytes) &&
    minimumBytes <= 65536 &&
    isPowerOfTwo(preferredBytes) &&
    preferredBytes >= Math.max(minimumBytes, 512) &&
    payloadBytesMax >= preferredBytes
  );
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}
