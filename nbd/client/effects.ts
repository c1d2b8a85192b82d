/** What a client's handshake wants done, in order. */

/** Sizes that a server announced. */
export interface BlockSizes {
  /** A power of two, at most 65536. */
  readonly minimumBytes: number;
  /** A power of two, at least 512 and the minimum. */
  readonly preferredBytes: number;
  /** At least the preferred one. */
  readonly payloadBytesMax: number;
}

/** The server agreed: what the transmission phase begins with. */
export interface BeginClientTransmission {
  readonly type: 'begin';
  /** Below 2^63. */
  readonly sizeBytes: bigint;
  /** As the server sent them, without what needs structured replies if there are none. */
  readonly transmissionFlags: number;
  readonly structuredReplies: boolean;
  /** null: the server did not say. */
  readonly blockSizes: BlockSizes | null;
}

/** Like the server's effects: `receive` is last in a list, `begin` and `close` the very last. */
export type ClientEffect =
  | { readonly type: 'send'; readonly bytes: Uint8Array }
  | { readonly type: 'receive'; readonly length: number }
  | BeginClientTransmission
  | { readonly type: 'close'; readonly reason: string };
