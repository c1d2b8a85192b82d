/**
 * The contract between the two languages: everything that JavaScript can ask of the native side,
 * and every event it hears. `crates/uring/src/binding/` implements it; the generated types are in
 * `crates/uring/binding.d.cts`, and this file fails to compile when the two drift apart.
 *
 * Rules: opaque handles (plain numbers), `bigint` for offsets and sizes, `T | null` and never an
 * optional property, events drained in batches.
 */

import type { NativeClient } from './attach/native.ts';

/** A connection, as the ring names it; never used twice in the life of an engine. */
export type ConnectionId = number;

/** How an export is to be served. */
export interface NativeExport {
  readonly name: string;
  /** Path of a block device or a file. */
  readonly originPath: string;
  readonly mode: 'writeback' | 'writethrough' | 'readonly';
  readonly order: 'strict' | 'relaxed';
  /** Most dirty data in bytes; null: three quarters of the log. */
  readonly dirtyBytesMax: bigint | null;
  /** How long a write waits for room, and a miss for an origin that is away. */
  readonly waitMs: number;
  /** How long a request to the origin may take until the origin counts as down. */
  readonly originTimeoutMs: number;
}

/** How the engine is to run. */
export interface NativeOpenOptions {
  readonly cachePath: string;
  readonly reserveBytes: bigint;
  readonly connectionsMax: number;
  /** How long the ring spins before it sleeps; 0 turns it off. */
  readonly spinUs: number;
  /** CPU to pin the ring thread to, or null. */
  readonly cpu: number | null;
  /** Destage from this share of the dirty limit on, in percent. */
  readonly destageHighPercent: number;
  /** Destage what has been dirty for so long. */
  readonly destageAgeMs: number;
  /** Destage when no client has asked for anything for so long. */
  readonly destageIdleMs: number;
  readonly acceptLoss: boolean;
  /** Memory of the index; null: as much as the cache device's size asks for. */
  readonly indexBytes: bigint | null;
  /** Share of the reserve that keeps missed blocks for a second reader, 0 to 50. */
  readonly memoryTierPercent: number;
  readonly exports: readonly NativeExport[];
}

/** One protection of the I/O path, whether it holds, and how to mend it where it does not. */
export interface Guard {
  /**
   * `memory_locked`, `io_flusher`, `oom_score`, `direct_io`, `huge_pages`, `registered_buffers`,
   * `device_exclusive`.
   */
  readonly measure: string;
  readonly up: boolean;
  /** One sentence: why it is down and what to do; null when it is up. */
  readonly advice: string | null;
}

/** What an opened export turned out to be. */
export interface NativeOpenedExport {
  readonly slot: number;
  readonly name: string;
  readonly sizeBytes: bigint;
  /** What its origin is known by. */
  readonly originIdentity: string;
  readonly known: boolean;
}

/** What `open` found out. */
export interface NativeOpened {
  readonly cacheUuid: string;
  readonly deviceBytes: bigint;
  readonly segmentBytes: bigint;
  readonly segments: number;
  readonly recoveredRecords: bigint;
  readonly recoveryMs: number;
  /** Durable records that are lost, as `acceptLoss` allows: the first and the last of them. */
  readonly lostRecords: { readonly first: bigint; readonly last: bigint } | null;
  readonly exports: readonly NativeOpenedExport[];
  readonly guards: readonly Guard[];
}

/** Names of the counters, in the order of their values in {@link NativeEngine.counters}. */
export interface CounterLayout {
  /** Of the whole engine and ring. */
  readonly engine: readonly string[];
  /** Of each export: `exportsMax` groups of these follow the engine's. */
  readonly exportNames: readonly string[];
  readonly exportsMax: number;
  /**
   * The operations that requests are counted by, in order: `read`, `write`, `flush`, `trim`,
   * `write_zeroes`.
   */
  readonly operations: readonly string[];
  /**
   * Per export and operation, after all exports' groups: requests, bytes, errors, the sum of
   * durations in nanoseconds, then one count per bucket (not cumulative; the last is +Inf).
   */
  readonly durationBucketsNs: readonly bigint[];
  /** The same shape for requests to origins: `read`, `write`, `write_zeroes`, `flush`. */
  readonly originOperations: readonly string[];
  /** Reserve pools, in order; per pool: bytes in all, bytes in use, waits. Last group. */
  readonly pools: readonly string[];
}

/** What the ring tells JavaScript. */
export type NativeEvent =
  /** A client connected; the ring reads nothing from it until asked. */
  | {
      readonly type: 'accepted';
      readonly connection: ConnectionId;
      readonly listener: number;
      readonly peer: string;
    }
  /** Exactly the bytes that `receive` asked for. */
  | { readonly type: 'received'; readonly connection: ConnectionId; readonly bytes: Uint8Array }
  /**
   * The connection is gone: the peer closed it, a deadline passed, or it broke the protocol. Its id
   * is free.
   */
  | { readonly type: 'closed'; readonly connection: ConnectionId; readonly reason: string }
  /** A `control` call has ended; `error` is a sentence or null. */
  | { readonly type: 'controlDone'; readonly token: number; readonly error: string | null }
  /**
   * Something an operator should know: `latched`, `origin_down`, `origin_up`, `checksum_mismatch`,
   * `destage_damaged`, `segment_damaged`.
   */
  | {
      readonly type: 'notice';
      readonly notice: string;
      readonly slot: number | null;
      readonly detail: string;
    };

/** A listener of the ring. */
export interface Listening {
  readonly listener: number;
  /** The address as bound: the port is the real one. */
  readonly address: string;
}

/** An open engine with its ring thread. */
export interface NativeEngine {
  /** What `open` found out. */
  readonly opened: NativeOpened;
  /**
   * Binds and listens on `unix:PATH` or `HOST:PORT` (numeric host or name; port 0: any). A stale
   * Unix socket that nobody serves is replaced; a busy address throws one clear sentence.
   */
  listen(address: string): Listening;
  /**
   * Asks for exactly `length` bytes of a handshake, within `deadlineMs`. One at a time per
   * connection.
   */
  receive(connection: ConnectionId, length: number, deadlineMs: number): void;
  /** Sends handshake bytes; they are copied. At most 64 KiB may wait per connection. */
  send(connection: ConnectionId, bytes: Uint8Array): void;
  /** The last call of a handshake: bytes sent so far go out, then the transmission phase begins. */
  beginTransmission(
    connection: ConnectionId,
    slot: number,
    structuredReplies: boolean,
    readOnly: boolean,
  ): void;
  /** Sends what is waiting, then closes. */
  close(connection: ConnectionId): void;
  /**
   * Starts an operator's action; `controlDone` with the token tells its end. `resolve` is for one
   * export: destage passes over what is damaged, which is lost.
   */
  control(token: number, action: 'flush' | 'drain' | 'resolve' | 'stop', slot: number | null): void;
  /** All events since the last call. */
  drainEvents(): NativeEvent[];
  /** Copies all counters into `into`, as `counterLayout()` describes. */
  counters(into: BigUint64Array): void;
  /** Stops accepting, lets requests finish (10 s at most), flushes the log, joins the threads. */
  shutdown(): Promise<void>;
}

/** What a superblock says, for `format`, `doctor` and `status`. */
export interface CacheDescription {
  readonly uuid: string;
  readonly formatVersion: number;
  readonly deviceBytes: bigint;
  readonly segmentBytes: bigint;
  readonly segments: number;
  readonly incarnation: bigint;
  /** Exports the cache knows, whether configured or not, with what their origins lack. */
  readonly exports: readonly {
    readonly name: string;
    readonly sizeBytes: bigint;
    readonly originIdentity: string;
    readonly dirtyBytes: bigint;
  }[];
}

/** One of two copies of a structure. */
export interface CheckedCopy {
  readonly offsetBytes: bigint;
  /** `intact`, `older` or `damaged`. */
  readonly state: string;
}

/** Something that is not as it was written. */
export interface CheckFinding {
  /** `damage`, or `note` for what an unclean stop may leave. */
  readonly severity: string;
  /** `superblock`, `export table`, `record header`, `footer`, `payload` or `log`. */
  readonly structure: string;
  /** Where the first block of it is on the device. */
  readonly offsetBytes: bigint | null;
  readonly export: string | null;
  /** First block of the export and how many, in units of 4 KiB. */
  readonly firstBlock: bigint | null;
  readonly blockCount: bigint | null;
  readonly problem: string;
  /** What it means for the data. */
  readonly meaning: string;
}

/** What `check` found. */
export interface CheckReport {
  /** Whether nothing is damaged. */
  readonly clean: boolean;
  readonly uuid: string;
  readonly formatVersion: number;
  readonly deviceBytes: bigint;
  readonly segmentBytes: bigint;
  readonly segments: bigint;
  readonly incarnation: bigint;
  readonly superblocks: readonly CheckedCopy[];
  readonly exportTables: readonly CheckedCopy[];
  /** The log as recovery would accept it. */
  readonly log: {
    readonly tail: bigint;
    readonly durable: bigint;
    /** Where recovery would cut: the next record gets this number. */
    readonly nextSequence: bigint;
    readonly records: bigint;
    /** Blocks of payload that were compared with their checksums. */
    readonly payloadBlocks: bigint;
    readonly segmentsUsed: bigint;
    /** Those of them that are known by their headers, without a footer. */
    readonly segmentsWalked: bigint;
    /** Segments with records that no longer count, or are void. */
    readonly segmentsLeft: bigint;
    /** Records behind the cut, which do not count. */
    readonly recordsDropped: bigint;
  };
  readonly exports: readonly {
    readonly name: string;
    readonly sizeBytes: bigint;
    readonly originIdentity: string;
    readonly watermark: bigint;
    readonly liveBytes: bigint;
    readonly dirtyBytes: bigint;
    readonly damagedCleanBlocks: bigint;
    readonly damagedDirtyBlocks: bigint;
  }[];
  readonly findings: readonly CheckFinding[];
}

/** The native module. */
export interface Native extends NativeClient {
  /** Formats a device or file; destroys what is on it. Errors are sentences. */
  format(path: string, segmentBytes: bigint): Promise<CacheDescription>;
  /** Reads what a cache holds without changing it; null when the device holds no cache. */
  describe(path: string): Promise<CacheDescription | null>;
  /**
   * Reads everything that a cache holds and says what is not as it was written; writes nothing.
   * Fails where it cannot be read, holds no cache, or somebody serves it.
   */
  check(path: string): Promise<CheckReport>;
  /**
   * Opens a cache and starts its ring. `bell` is called without data when events wait. An error has
   * the code `InvalidArg` where something has to be changed before it can be opened.
   */
  open(options: NativeOpenOptions, bell: () => void): Promise<NativeEngine>;
  /**
   * What would hold here for a daemon with so many bytes of reserve and of index, for `doctor`: the
   * guards, with io_uring itself as `io_uring`.
   */
  probe(reserveBytes: bigint, indexBytes: bigint, cache?: string | null): Guard[];
  /** How to read {@link NativeEngine.counters}. */
  counterLayout(): CounterLayout;
}
