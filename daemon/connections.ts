/**
 * Puts the ring's connections and the pure handshake together: bytes go in, effects come out. From
 * `begin` on a connection belongs to the ring alone, and all that is heard of it is its end.
 */

import type { ExportCatalogue, ExportDescription } from '../nbd/catalogue.ts';
import type { ServerEffect } from '../nbd/server/effects.ts';
import { createServerHandshake, type ServerHandshake } from '../nbd/server/handshake.ts';
import { reasonOf } from './errors.ts';
import type { ExportConfig } from './exports.ts';
import type { Logger } from './log.ts';
import type { ConnectionId, NativeEngine, NativeEvent } from './native.ts';

/** From its first byte to the transmission phase a client has this long, however it spends it. */
export const HANDSHAKE_MS_MAX = 10_000;

/** Events that are about a connection. */
export type ConnectionEvent = Extract<NativeEvent, { readonly connection: ConnectionId }>;

/** The calls of the engine that a handshake needs. */
export type HandshakeEngine = Pick<
  NativeEngine,
  'opened' | 'receive' | 'send' | 'beginTransmission' | 'close'
>;

/** All connections of an engine. */
export interface Connections {
  /** Takes an event. */
  handle(event: ConnectionEvent): void;
  /** Refuses every handshake from now on: the daemon is stopping. */
  stop(): void;
}

interface Connection {
  readonly peer: string;
  readonly acceptedMs: number;
  /** Null once the ring serves it. */
  handshake: ServerHandshake | null;
  exportName: string | null;
}

/** Makes the glue for one engine; `nowMs` is a clock that never steps. */
export function createConnections(
  engine: HandshakeEngine,
  exports: readonly ExportConfig[],
  log: Logger,
  nowMs: () => number = () => performance.now(),
): Connections {
  const catalogue = createCatalogue(engine, exports);
  const slots = new Map(engine.opened.exports.map(({ name, slot }) => [name, slot]));
  const connections = new Map<ConnectionId, Connection>();
  let isStopping = false;

  function apply(id: ConnectionId, connection: Connection, effects: readonly ServerEffect[]): void {
    for (const effect of effects) {
      switch (effect.type) {
        case 'send':
          engine.send(id, effect.bytes);
          break;
        case 'receive':
          engine.receive(id, effect.length, remainingMs(connection, nowMs()));
          break;
        case 'begin':
          begin(id, connection, effect);
          break;
        case 'close':
          log.debug({ connection: id, peer: connection.peer, reason: effect.reason }, 'closing');
          engine.close(id);
          break;
      }
    }
  }

  function begin(
    id: ConnectionId,
    connection: Connection,
    { exportName, structuredReplies, readOnly }: Extract<ServerEffect, { type: 'begin' }>,
  ): void {
    const slot = slots.get(exportName);
    if (slot === undefined) throw new Error(`negotiated an export without a slot: ${exportName}`);
    connection.handshake = null;
    connection.exportName = exportName;
    engine.beginTransmission(id, slot, structuredReplies, readOnly);
    log.info({ connection: id, peer: connection.peer, export: exportName }, 'client attached');
  }

  function accepted(id: ConnectionId, peer: string): void {
    const handshake = createServerHandshake({ catalogue });
    if (isStopping) handshake.stop();
    const connection = { peer, acceptedMs: nowMs(), handshake, exportName: null };
    connections.set(id, connection);
    apply(id, connection, handshake.start());
  }

  function received(id: ConnectionId, bytes: Uint8Array): void {
    const connection = connections.get(id);
    // Bytes may still be on their way here when a connection is closed from this side.
    if (connection?.handshake == null) return;
    apply(id, connection, connection.handshake.onBytes(bytes));
  }

  function closed(id: ConnectionId, reason: string): void {
    const connection = connections.get(id);
    connections.delete(id);
    if (connection === undefined) return;
    const { peer, exportName } = connection;
    if (exportName === null) log.debug({ connection: id, peer, reason }, 'client gone');
    else log.info({ connection: id, peer, export: exportName, reason }, 'client detached');
  }

  function handleSafely(event: ConnectionEvent): void {
    try {
      if (event.type === 'accepted') accepted(event.connection, event.peer);
      else if (event.type === 'received') received(event.connection, event.bytes);
      else closed(event.connection, event.reason);
    } catch (error) {
      // While the daemon stops this is the ring's to close, which may have ended already.
      const level = isStopping ? 'debug' : 'error';
      log[level]({ connection: event.connection, reason: reasonOf(error) }, 'a handshake failed');
      // Its state can no longer be trusted; the client may connect again.
      if (event.type !== 'closed' && !isStopping) engine.close(event.connection);
    }
  }

  return {
    handle: handleSafely,
    stop: () => {
      isStopping = true;
      for (const { handshake } of connections.values()) handshake?.stop();
    },
  };
}

/** One deadline for the whole handshake: a client that sends byte by byte gets no more time. */
function remainingMs({ acceptedMs }: Connection, nowMs: number): number {
  return Math.max(1, Math.ceil(acceptedMs + HANDSHAKE_MS_MAX - nowMs));
}

/** The exports as negotiation sees them, in the order in which they were configured. */
export function createCatalogue(
  engine: Pick<NativeEngine, 'opened'>,
  exports: readonly ExportConfig[],
): ExportCatalogue {
  const descriptions = new Map<string, ExportDescription>();
  for (const { name, mode } of exports) {
    const found = engine.opened.exports.find((candidate) => candidate.name === name);
    if (found === undefined) throw new Error(`the engine did not open the export ${name}`);
    const { sizeBytes } = found;
    descriptions.set(name, { name, description: '', sizeBytes, readOnly: mode === 'readonly' });
  }
  const list = [...descriptions.values()];
  return { list: () => list, find: (name) => descriptions.get(name) ?? null };
}
