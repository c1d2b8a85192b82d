/** What a handshake wants done, in order. */

/** The client may begin: what was negotiated. */
export interface BeginTransmission {
  readonly type: 'begin';
  /** The export's own name, also where the client asked for the default export. */
  readonly exportName: string;
  readonly sizeBytes: bigint;
  readonly readOnly: boolean;
  /** As the client was told. */
  readonly transmissionFlags: number;
  readonly structuredReplies: boolean;
}

/**
 * One thing to do. `receive` is the last of a list and asks for exactly so many bytes; after
 * `begin` and `close` there is nothing more to do and no byte may be handed in.
 */
export type ServerEffect =
  | { readonly type: 'send'; readonly bytes: Uint8Array }
  | { readonly type: 'receive'; readonly length: number }
  | BeginTransmission
  | { readonly type: 'close'; readonly reason: string };
