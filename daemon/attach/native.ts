/**
 * The client's part of the contract with Rust: connections to a server, and devices of the
 * kernel's nbd driver. A process that attaches has no engine, and a daemon attaches nothing.
 */

import type { Guard } from '../native.ts';

/** A connection to a server, up to the end of its handshake. */
export interface NativeLink {
  /** Sends `bytes`, then receives exactly `length` bytes, within 5 s. */
  exchange(bytes: Uint8Array, length: number): Promise<Uint8Array>;
  /** Closes the connection, unless it was given away. */
  close(): void;
}

/** What is to be attached, and how. */
export interface NativeAttachOptions {
  /** The N of /dev/nbdN; null lets the kernel choose. */
  readonly index: number | null;
  /** The device is attached to this export already, and nobody looks after it. */
  readonly takeOver: boolean;
  /** What the device is attached to, in words; the kernel keeps and compares it. */
  readonly backend: string;
  readonly sizeBytes: bigint;
  /** Logical block size. */
  readonly blockBytes: number;
  readonly transmissionFlags: number;
  /** Connections to the server, 1 to 16. */
  readonly connections: number;
  /** How long what was on its way over a broken connection waits before it is sent again. */
  readonly resendSeconds: number;
  /** How long requests wait for a connection before they fail. */
  readonly deadTimeoutSeconds: number;
}

/**
 * What happened: a connection broke (`dead`), the server cannot be reached (`away`) or answers
 * something else than before (`unlike`), a connection was replaced (`restored`), requests have
 * waited as long as they may (`failing`), somebody else detached the device (`gone`).
 */
export interface NativeAttachEvent {
  readonly kind: 'dead' | 'away' | 'unlike' | 'restored' | 'failing' | 'gone';
  /** Why, in the system's words, or null. */
  readonly detail: string | null;
}

/** A device that is attached; a thread without JavaScript mends its connections. */
export interface NativeAttachment {
  /** The N of /dev/nbdN. */
  readonly index: number;
  /** What protects that thread. */
  readonly guards: readonly Guard[];
  /** What happened since the last call. */
  drainEvents(): NativeAttachEvent[];
  /** Replaces a dead connection by one that was negotiated anew, and repeats that from now on. */
  renew(link: NativeLink): void;
  /** Ends: detaches the device, or leaves it as it is for the next who takes it over. */
  end(detach: boolean): Promise<void>;
}

/** What attaching needs of the native module. */
export interface NativeClient {
  /** Connects to `unix:PATH` or `HOST:PORT`. */
  connectNbd(address: string): Promise<NativeLink>;
  /** Attaches a device over a connection whose handshake is done, and keeps it attached. */
  attachNbd(link: NativeLink, options: NativeAttachOptions): Promise<NativeAttachment>;
  /** Detaches a device, whoever looks after it. */
  detachNbd(index: number): Promise<void>;
}
