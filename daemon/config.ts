/**
 * How the daemon is to run: the command line, a TOML file (`config-file.ts`), or both. What the
 * command line says replaces what the file says, for a list the whole list.
 */

import { tmpdir } from 'node:os';
import { resolve } from 'node:path';
import { ringfenceError } from './errors.ts';
import { checkExportSet, type ExportConfig } from './exports.ts';

/** What pino knows. */
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal'] as const;

/** Everything that `serve` needs to know, complete and checked. */
export interface Config {
  /** Path of the cache device. */
  readonly cache: string;
  readonly exports: readonly ExportConfig[];
  /** Addresses for NBD clients: `unix:PATH` or `HOST:PORT`. */
  readonly listen: readonly string[];
  /** Permissions of the Unix sockets among them, or null for what the umask leaves. */
  readonly socketMode: number | null;
  /** Address of the metrics page, `HOST:PORT`, or null for none. */
  readonly metrics: string | null;
  /** Absolute path of the control socket. */
  readonly control: string;
  readonly reserveBytes: bigint;
  readonly connectionsMax: number;
  /** How long the ring spins before it sleeps; 0 turns it off. */
  readonly spinUs: number;
  /** CPU to pin the ring thread to, or null. */
  readonly cpu: number | null;
  /** Destage from this share of an export's dirty limit on, in percent. */
  readonly destageHighPercent: number;
  /** Destage what has been dirty for so long. */
  readonly destageAgeMs: number;
  /** Destage when no client has asked for anything for so long. */
  readonly destageIdleMs: number;
  /** Go on where durable data is damaged, losing what is named. */
  readonly acceptLoss: boolean;
  /** Memory of the index, or null for as much as the cache device's size asks for. */
  readonly indexBytes: bigint | null;
  /** Share of the reserve that keeps missed blocks for a second reader. */
  readonly memoryTierPercent: number;
  readonly logLevel: (typeof LOG_LEVELS)[number];
}

/** Whatever of a {@link Config} the command line or a file says. */
export type PartialConfig = { readonly [Key in keyof Config]?: Config[Key] | undefined };

/** What holds where nothing else is said; the rest has to be said. */
export const CONFIG_DEFAULTS = {
  exports: [],
  listen: [],
  socketMode: null,
  metrics: null,
  reserveBytes: 256n << 20n,
  // Each connection owns windows of about 3 MiB of the reserve: a fifth of it in all.
  connectionsMax: 16,
  spinUs: 50,
  cpu: null,
  destageHighPercent: 50,
  destageAgeMs: 5_000,
  destageIdleMs: 500,
  acceptLoss: false,
  indexBytes: null,
  memoryTierPercent: 10,
  logLevel: 'info',
} as const satisfies PartialConfig;

/** Addresses that the ring listens on (`LISTENERS_MAX` in the ring). */
export const LISTEN_MAX = 16;
/** Connections beyond this would need a reserve of several GiB for their windows alone. */
export const CONNECTIONS_MAX_LIMIT = 1024;
/** More would take the memory tier from the log's newest segments, which serve reads too. */
export const MEMORY_TIER_PERCENT_MAX = 50;
/** Spinning longer than this costs more than the wake-ups that it saves. */
export const SPIN_US_MAX = 1000;

/**
 * The control socket where nobody says otherwise: the same for the daemon and its clients. A user
 * without a runtime directory gets one of his own, which nobody else may have made.
 */
export function defaultControlPath(environment: NodeJS.ProcessEnv = process.env): string {
  const user = process.getuid?.() ?? 0;
  if (user === 0) return '/run/ringfence/control.sock';
  const runtime = environment.XDG_RUNTIME_DIR;
  const folder = runtime === undefined ? `${tmpdir()}/ringfence-${user}` : `${runtime}/ringfence`;
  return `${folder}/control.sock`;
}

/**
 * Puts file, command line and defaults together.
 *
 * @throws `RF_CONFIG_MISSING` where a cache, an export or an address to listen on was not given,
 *   `RF_LISTEN_TOO_MANY`, `RF_LISTEN_TWICE`, and what {@link checkExportSet} throws
 */
export function completeConfig(file: PartialConfig, commandLine: PartialConfig): Config {
  const said = { ...withoutUndefined(file), ...withoutUndefined(commandLine) };
  const config = { ...CONFIG_DEFAULTS, control: defaultControlPath(), ...said };
  const { cache } = config;
  if (cache === undefined) {
    throw ringfenceError('RF_CONFIG_MISSING', ['cache device', '--cache DEVICE', '"cache"']);
  }
  if (config.exports.length === 0) {
    throw ringfenceError('RF_CONFIG_MISSING', ['export', '--export NAME=ORIGIN', '[[export]]']);
  }
  if (config.listen.length === 0) {
    throw ringfenceError('RF_CONFIG_MISSING', ['address', '--listen ADDR', '"listen"']);
  }
  if (config.listen.length > LISTEN_MAX) {
    throw ringfenceError('RF_LISTEN_TOO_MANY', [`${config.listen.length}`, `${LISTEN_MAX}`]);
  }
  // Of port 0 each is another port.
  const twice = config.listen.find(
    (place, index) => !place.endsWith(':0') && config.listen.indexOf(place) !== index,
  );
  if (twice !== undefined) throw ringfenceError('RF_LISTEN_TWICE', [twice]);
  checkExportSet(config.exports);
  // Of a bare number node would make a TCP port, open to everybody.
  return { ...config, cache, control: resolve(config.control) };
}

type Defined<Given> = { [Key in keyof Given]: Exclude<Given[Key], undefined> };

function withoutUndefined(config: PartialConfig): Partial<Defined<Config>> {
  return Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined));
}
