//! Every limit of the transmission phase and its reason.

/// The largest READ or WRITE that is served, and what `NBD_INFO_BLOCK_SIZE` announces as the
/// maximum. Beyond it a READ is answered `NBD_EOVERFLOW` and a WRITE loses the connection: nobody
/// reads four gibibytes of payload only to refuse them.
pub const PAYLOAD_BYTES_MAX: u32 = 64 << 20;

/// The largest READ that is answered in one chunk when the client forbids fragments
/// (`NBD_CMD_FLAG_DF`): one step of the engine, so that the chunk is only begun once all of its
/// data is there. Larger ones get `NBD_EOVERFLOW`.
pub const UNFRAGMENTED_BYTES_MAX: u32 = 1 << 20;

/// What the specification makes every server answer unfragmented.
pub const UNFRAGMENTED_BYTES_REQUIRED: u32 = 64 << 10;

/// The longest string of the protocol, and so the longest error message a peer may send.
pub const STRING_BYTES_MAX: u32 = 4096;

/// Separate pieces that a chunked reply to one READ may leave open at a time. Pieces that touch
/// are merged, so a peer that answers in order needs one; the cap keeps a client's state fixed.
pub const REPLY_PIECES_MAX: usize = 32;

const _: () = {
    assert!(UNFRAGMENTED_BYTES_MAX >= UNFRAGMENTED_BYTES_REQUIRED);
    assert!(UNFRAGMENTED_BYTES_MAX <= PAYLOAD_BYTES_MAX);
};
