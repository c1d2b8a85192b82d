/**
 * The daemon from start to stop.
 *
 * What can fail cheaply comes first: devices are looked at, control and metrics sockets bound, and
 * only then the cache is opened, which touches all memory of the reserve and recovers the log.
 * Clients are listened for last. Stopping goes the other way round.
 */

import { chmodSync } from 'node:fs';
import { takeSnapshot } from '../metrics/counters.ts';
import type { MetricSource } from '../metrics/definitions.ts';
import { createMetricsPage } from '../metrics/registry.ts';
import { type Health, type MetricsServer, startMetricsServer } from '../metrics/server.ts';
import { type Actions, createActions } from './actions.ts';
import { type Address, parseAddress, parseTcpAddress } from './addresses.ts';
import type { Config } from './config.ts';
import { type Connections, createConnections } from './connections.ts';
import type { ControlRequest } from './control/protocol.ts';
import { type ControlServer, startControlServer } from './control/server.ts';
import { codeOf, reasonOf, ringfenceError } from './errors.ts';
import { errorFields, type Logger } from './log.ts';
import type { CounterLayout, Native, NativeEngine, NativeEvent, NativeOpened } from './native.ts';
import { createNoticeLog } from './notices.ts';
import { checkDevices } from './preflight.ts';
import { buildStatus, type Status } from './status.ts';

/** Where a daemon is in its life. */
export type DaemonState = 'starting' | 'serving' | 'stopping' | 'stopped';

/** Where a daemon can be reached. */
export interface Endpoints {
  /** As bound: ports are the real ones. */
  readonly nbd: readonly Address[];
  readonly metrics: (Address & { kind: 'tcp' }) | null;
  readonly control: string;
}

/** A daemon that serves, or that was told to stop before it did. */
export interface Daemon {
  readonly endpoints: Endpoints;
  readonly opened: NativeOpened;
  state(): DaemonState;
  status(): Status;
  /**
   * Stops orderly: requests in flight finish, the log is flushed. A second call joins the first.
   *
   * @throws `RF_STOP` where the last flush failed
   */
  stop(reason: string): Promise<void>;
  /** Ends when the daemon has stopped, whoever asked for it; fails when the last flush did. */
  readonly stopped: Promise<void>;
}

/** What the daemon is given instead of reaching for it. */
export interface DaemonDependencies {
  readonly native: Native;
  readonly log: Logger;
  /** Aborting stops the daemon, also while it starts. */
  readonly signal: AbortSignal;
}

/** The engine with everything that lives as long as it does. */
interface Session {
  readonly engine: NativeEngine;
  readonly actions: Actions;
  readonly connections: Connections;
}

/** What there is of a daemon at a moment. */
interface Parts {
  readonly config: Config;
  readonly layout: CounterLayout;
  readonly log: Logger;
  state: DaemonState;
  session: Session | null;
  /** Where clients connect to, as bound. */
  nbd: readonly Address[];
  control: ControlServer | null;
  metrics: MetricsServer | null;
  /** The engine's part of stopping, once it has begun. */
  engineStopped: Promise<void> | null;
  /** All of stopping, once it has begun. */
  stopped: Promise<void> | null;
  /** Told of the end, or of what the last flush failed with. */
  onStopped: (error: unknown) => void;
}

/**
 * Starts a daemon. After a failure nothing of it is left.
 *
 * @throws `RF_OPEN`, `RF_OPEN_REFUSED`, `RF_LISTEN`, `RF_METRICS_LISTEN`, and the errors of the
 *   device checks and of the control server
 */
export async function startDaemon(
  config: Config,
  { native, log, signal }: DaemonDependencies,
): Promise<Daemon> {
  const parts: Parts = {
    ...{ config, log, layout: native.counterLayout(), state: 'starting' },
    ...{ session: null, nbd: [], control: null, metrics: null },
    ...{ engineStopped: null, stopped: null, onStopped: () => undefined },
  };
  const stopped = new Promise<void>((resolve, reject) => {
    parts.onStopped = (error) => (error === null ? resolve() : reject(error));
  });
  // Whoever awaits it hears of a failure; nobody has to.
  stopped.catch(() => undefined);
  try {
    await checkDevices(config);
    parts.control = await startControlServer(config.control, (request) =>
      handleControl(parts, request),
    );
    if (config.metrics !== null) {
      const page = createMetricsPage(() => metricSource(parts));
      const address = parseTcpAddress(config.metrics);
      parts.metrics = await startMetricsServer(address, page, () => health(parts));
    }
    const session = await openSession(config, native, log);
    parts.session = session;
    const places = signal.aborted ? [] : config.listen;
    const nbd = places.map((place) => listen(session.engine, place, config));
    parts.nbd = nbd;
    if (signal.aborted) await stop(parts, `${signal.reason}`);
    else parts.state = 'serving';
    signal.addEventListener('abort', () => {
      stop(parts, `${signal.reason}`).catch(() => undefined);
    });
    return {
      endpoints: { nbd, metrics: parts.metrics?.address ?? null, control: config.control },
      opened: session.engine.opened,
      state: () => parts.state,
      status: () => currentStatus(parts),
      stop: (reason) => stop(parts, reason),
      stopped,
    };
  } catch (error) {
    await release(parts).catch((second) => log.error(errorFields(second), 'stopping failed too'));
    throw error;
  }
}

function stop(parts: Parts, reason: string): Promise<void> {
  if (parts.stopped === null) {
    parts.log.info({ reason }, 'stopping');
    parts.state = 'stopping';
    parts.session?.connections.stop();
    parts.stopped = release(parts);
    parts.stopped.then(() => parts.onStopped(null), parts.onStopped);
  }
  return parts.stopped;
}

async function release(parts: Parts): Promise<void> {
  try {
    await stopEngine(parts);
  } finally {
    parts.session?.actions.abandon('the daemon stopped first');
    parts.state = 'stopped';
    await parts.metrics?.close();
    await parts.control?.close();
  }
}

function stopEngine(parts: Parts): Promise<void> {
  parts.engineStopped ??= shutDown(parts.session?.engine ?? null);
  return parts.engineStopped;
}

async function shutDown(engine: NativeEngine | null): Promise<void> {
  try {
    await engine?.shutdown();
  } catch (error) {
    throw ringfenceError('RF_STOP', [reasonOf(error)], error);
  }
}

function serving({ session, state }: Parts): Session {
  if (session === null || state !== 'serving') throw ringfenceError('RF_NOT_READY', [state]);
  return session;
}

async function handleControl(parts: Parts, request: ControlRequest): Promise<null | Status> {
  if (request.verb === 'stop') {
    // One that already stops is joined.
    if (parts.state !== 'stopping') serving(parts);
    // Only the engine's part is waited for: the rest of stopping waits for this very answer.
    stop(parts, 'an operator asked for it').catch(() => undefined);
    await stopEngine(parts);
    return null;
  }
  const { engine, actions } = serving(parts);
  if (request.verb === 'status') return currentStatus(parts);
  const slot = slotOf(engine.opened, request.export);
  if (request.verb === 'resolve') {
    if (damagedExport(parts, slot) === null)
      throw ringfenceError('RF_NOT_DAMAGED', [request.export]);
    parts.log.warn({ export: request.export }, 'an operator gives up what is damaged');
  }
  try {
    await actions.run(request.verb, slot);
  } catch (error) {
    const damaged = request.verb === 'drain' ? damagedExport(parts, slot) : null;
    if (damaged !== null) throw ringfenceError('RF_DAMAGED', [damaged], error);
    throw error;
  }
  return null;
}

/** The first export, of one or of all for null, whose destaging stands still before damage. */
function damagedExport(parts: Parts, slot: number | null): string | null {
  if (parts.session === null) return null;
  const { engine } = parts.session;
  const snapshot = takeSnapshot(engine, parts.layout);
  const found = engine.opened.exports.find(
    (candidate) =>
      (slot === null || candidate.slot === slot) &&
      snapshot.ofExport(candidate.slot, 'damaged') !== 0n,
  );
  return found?.name ?? null;
}

function currentStatus(parts: Parts): Status {
  const { engine } = serving(parts);
  return buildStatus(parts.config, engine.opened, takeSnapshot(engine, parts.layout), parts.nbd);
}

function metricSource({ session, state, layout }: Parts): MetricSource | null {
  if (session === null || state === 'stopped') return null;
  const { exports, guards, recoveryMs } = session.engine.opened;
  return { snapshot: takeSnapshot(session.engine, layout), exports, guards, recoveryMs };
}

function health({ session, state, layout }: Parts): Health {
  if (session === null || state !== 'serving') return { healthy: false, text: state };
  if (takeSnapshot(session.engine, layout).engine('latched') === 0n) {
    return { healthy: true, text: 'serving' };
  }
  return { healthy: false, text: 'the cache device failed; mend it and restart' };
}

/** Opens the cache and connects its events. */
async function openSession(config: Config, native: Native, log: Logger): Promise<Session> {
  let pump = (): void => undefined;
  const engine = await openEngine(config, native, () => pump());
  const actions = createActions(engine);
  const connections = createConnections(engine, config.exports, log);
  const nameOf = (slot: number) =>
    engine.opened.exports.find((candidate) => candidate.slot === slot)?.name ?? null;
  const logNotice = createNoticeLog(log, nameOf);

  function dispatch(event: NativeEvent): void {
    if (event.type === 'notice') logNotice(event);
    else if (event.type === 'controlDone') actions.ended(event.token, event.error);
    else connections.handle(event);
  }

  pump = () => {
    for (const event of engine.drainEvents()) {
      try {
        dispatch(event);
      } catch (error) {
        // One client's trouble must not keep the events after it from the others.
        log.error({ ...errorFields(error), event: event.type }, 'an event could not be handled');
      }
    }
  };
  // The bell may have rung before there was anybody to hear it.
  pump();
  logOpened(engine.opened, log);
  return { engine, actions, connections };
}

/** What an operator should know of a cache that could be opened all the same. */
function logOpened({ guards, lostRecords }: NativeOpened, log: Logger): void {
  for (const { measure, up, advice } of guards) {
    if (!up) log.warn({ measure, advice }, 'a protection of the I/O path is not in place');
  }
  if (lostRecords === null) return;
  const lost = {
    first_record: Number(lostRecords.first),
    last_record: Number(lostRecords.last),
  };
  log.error(lost, 'durable data is lost, as --accept-loss allows: the records between these');
}

async function openEngine(config: Config, native: Native, bell: () => void): Promise<NativeEngine> {
  const exports = config.exports.map(({ origin, ...rest }) => ({ ...rest, originPath: origin }));
  const { reserveBytes, connectionsMax, spinUs, cpu, acceptLoss, indexBytes } = config;
  const { destageHighPercent, destageAgeMs, destageIdleMs, memoryTierPercent } = config;
  const ring = { reserveBytes, connectionsMax, spinUs, cpu, acceptLoss, indexBytes };
  const destage = { destageHighPercent, destageAgeMs, destageIdleMs };
  const options = { ...ring, ...destage, memoryTierPercent, exports };
  try {
    return await native.open({ ...options, cachePath: config.cache }, bell);
  } catch (error) {
    if (codeOf(error)?.startsWith('RF_')) throw error;
    if (codeOf(error) === 'InvalidArg')
      throw ringfenceError('RF_OPEN_REFUSED', [reasonOf(error)], error);
    throw ringfenceError('RF_OPEN', [reasonOf(error)], error);
  }
}

function listen(engine: NativeEngine, place: string, { socketMode }: Config): Address {
  let address: Address;
  try {
    address = parseAddress(engine.listen(place).address);
  } catch (error) {
    throw ringfenceError('RF_LISTEN', [reasonOf(error)], error);
  }
  if (address.kind === 'unix' && socketMode !== null) setMode(address.path, socketMode);
  return address;
}

function setMode(path: string, mode: number): void {
  try {
    chmodSync(path, mode);
  } catch (error) {
    throw ringfenceError('RF_SOCKET_MODE_SET', [path, reasonOf(error)], error);
  }
}

function slotOf(opened: NativeOpened, name: string | null): number | null {
  if (name === null) return null;
  const found = opened.exports.find((candidate) => candidate.name === name);
  if (found !== undefined) return found.slot;
  const known = opened.exports.map((candidate) => `"${candidate.name}"`).join(', ');
  throw ringfenceError('RF_EXPORT_UNKNOWN', [name, known]);
}
