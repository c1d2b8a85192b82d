/**
 * The numbers of the specification that negotiation needs (`doc/proto.md` of the NBD project), and
 * the limits that this project adds, each in this one place.
 */

/** Opens the server's greeting: `NBDMAGIC`. */
export const INIT_MAGIC = 0x4e42444d41474943n;
/** Follows it, and opens every option: `IHAVEOPT`. */
export const OPTION_MAGIC = 0x49484156454f5054n;
/** Opens every reply to an option. */
export const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
/** Follows {@link INIT_MAGIC} where a server still speaks oldstyle. */
export const OLDSTYLE_MAGIC = 0x0000420281861253n;

/** Handshake flags, which the server sends; the client's flags have the same bits. */
export const HANDSHAKE_FLAG = {
  fixedNewstyle: 1 << 0,
  noZeroes: 1 << 1,
} as const;

/** Transmission flags. */
export const TRANSMISSION_FLAG = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  rotational: 1 << 4,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
  sendDf: 1 << 7,
  canMultiConn: 1 << 8,
  sendCache: 1 << 10,
  sendFastZero: 1 << 11,
} as const;

/** Options, `NBD_OPT_*`. */
export const OPTION = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
  extendedHeaders: 11,
} as const;

/** Replies to options that are no errors, `NBD_REP_*`. */
export const REPLY = {
  ack: 1,
  server: 2,
  info: 3,
} as const;

/** Set in the type of every reply that is an error. */
export const REPLY_ERROR_BIT = 0x80000000;

/** Replies to options that are errors, `NBD_REP_ERR_*`. */
export const REPLY_ERROR = {
  unsupported: REPLY_ERROR_BIT + 1,
  policy: REPLY_ERROR_BIT + 2,
  invalid: REPLY_ERROR_BIT + 3,
  platform: REPLY_ERROR_BIT + 4,
  tlsRequired: REPLY_ERROR_BIT + 5,
  unknown: REPLY_ERROR_BIT + 6,
  shutdown: REPLY_ERROR_BIT + 7,
  blockSizeRequired: REPLY_ERROR_BIT + 8,
  tooBig: REPLY_ERROR_BIT + 9,
  extendedHeadersRequired: REPLY_ERROR_BIT + 10,
} as const;

/** Kinds of information about an export, `NBD_INFO_*`. */
export const INFO = {
  export: 0,
  name: 1,
  description: 2,
  blockSize: 3,
} as const;

/** Zeroes after the reply to `NBD_OPT_EXPORT_NAME`, unless the client wants none. */
export const EXPORT_NAME_ZERO_BYTES = 124;

/** The longest string of the specification. */
export const STRING_BYTES_MAX = 4096;

/** Every byte offset and length is served: Linux's nbd-client reads no block size information. */
export const BLOCK_BYTES_MIN = 1;
/** The engine's block: smaller writes are merged. */
export const BLOCK_BYTES_PREFERRED = 4096;
/** The largest READ or WRITE that is served; `crates/wire` refuses larger ones. */
export const PAYLOAD_BYTES_MAX = 64 * 1024 * 1024;

/**
 * The most data of one option: no option that is understood needs more, and a client that
 * announces four gibibytes is not waited for.
 */
export const OPTION_BYTES_MAX = 64 * 1024;
/** Options of one connection: enough to ask for everything about every export. */
export const OPTIONS_MAX = 256;
/**
 * The most bytes of one answer, which is what the native side lets wait per connection. A longer
 * list is refused as too big.
 */
export const ANSWER_BYTES_MAX = 64 * 1024;
/** Code points of a client's own text that are echoed in an error. */
export const ECHO_LENGTH_MAX = 64;
/** Replies that a server may send to one option before the final one. */
export const REPLIES_PER_OPTION_MAX = 256;
