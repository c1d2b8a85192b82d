/** `ringfence serve`: the daemon itself, in the foreground. */

import type { Command } from 'commander';
import {
  attachCommand,
  formatAddress,
  nbdUri,
  parseAddress,
  parseSocketMode,
  parseTcpAddress,
} from '../addresses.ts';
import {
  CONFIG_DEFAULTS,
  CONNECTIONS_MAX_LIMIT,
  type Config,
  completeConfig,
  defaultControlPath,
  LOG_LEVELS,
  MEMORY_TIER_PERCENT_MAX,
  type PartialConfig,
  SPIN_US_MAX,
} from '../config.ts';
import { parseExport } from '../exports.ts';
import type { Daemon } from '../lifecycle.ts';
import { createLog } from '../log.ts';
import { formatSize, parseDurationMs, parseSizeBytes } from '../units.ts';
import type { Context } from './context.ts';
import { collectedBy, controlPath, oneOf, parsedBy, wholeNumber } from './options.ts';
import { watchProcess } from './watch.ts';

/** CPUs that Linux can number. */
const CPU_MAX = 8191;

const INDEX_MEANING =
  'memory of the index (default: about 12 bytes per 4 KiB of cache device or 16 MiB, whichever ' +
  'is more, and no more than the exports need)';

const address = (text: string) => formatAddress(parseAddress(text));
const tcpAddress = (text: string) => formatAddress(parseTcpAddress(text));

/** Adds the verb. */
export function addServeCommand(program: Command, context: Context): void {
  const serving = program
    .command('serve')
    .description('serve exports through the cache, in the foreground');
  addPlaces(serving);
  addResources(serving);
  addPolicy(serving);
  serving
    .option('--config <file>', 'a TOML file that says any of this')
    .action(async (options: ServeOptions) => serve(await configOf(options), context));
}

/** What is served, and where. */
function addPlaces(serving: Command): void {
  serving
    .option('--cache <device>', 'the cache device')
    .option(
      '--export <name=origin>',
      'an export, with ,mode=writeback|writethrough|readonly ,order=strict|relaxed ' +
        ',dirty-max=SIZE ,wait=DURATION ,origin-timeout=DURATION behind it; may be repeated',
      collectedBy(parseExport),
    )
    .option(
      '--listen <address>',
      'unix:PATH or HOST:PORT for NBD clients; may be repeated',
      collectedBy(address),
    )
    .option(
      '--socket-mode <mode>',
      'who may connect to the Unix sockets, such as 660 (default: as the umask says)',
      parsedBy(parseSocketMode),
    )
    .option('--metrics <host:port>', 'serve /metrics and /healthz here', parsedBy(tcpAddress))
    .option(
      '--control <path>',
      `the control socket (default: ${defaultControlPath()})`,
      controlPath,
    );
}

/** What it may take of the machine. */
function addResources(serving: Command): void {
  const { reserveBytes, connectionsMax, spinUs } = CONFIG_DEFAULTS;
  serving
    .option(
      '--reserve <size>',
      `all memory of the I/O path (default: ${formatSize(reserveBytes)})`,
      parsedBy(parseSizeBytes),
    )
    .option(
      '--connections-max <number>',
      `clients at a time; each has its window in the reserve (default: ${connectionsMax})`,
      wholeNumber(1, CONNECTIONS_MAX_LIMIT),
    )
    .option(
      '--spin-us <microseconds>',
      `how long the ring spins before it sleeps, 0 for never (default: ${spinUs})`,
      wholeNumber(0, SPIN_US_MAX),
    )
    .option('--cpu <number>', 'pin the ring thread to this CPU', wholeNumber(0, CPU_MAX))
    .option('--index <size>', INDEX_MEANING, parsedBy(parseSizeBytes));
}

/** When it does what, and what it says. */
function addPolicy(serving: Command): void {
  const { destageHighPercent, destageAgeMs, destageIdleMs } = CONFIG_DEFAULTS;
  const { memoryTierPercent, logLevel } = CONFIG_DEFAULTS;
  serving
    .option(
      '--destage-high <percent>',
      'carry dirty data to the origin from this share of what may be dirty on ' +
        `(default: ${destageHighPercent})`,
      wholeNumber(1, 100),
    )
    .option(
      '--destage-age <duration>',
      `carry what has been dirty for so long (default: ${destageAgeMs / 1000}s)`,
      parsedBy(parseDurationMs),
    )
    .option(
      '--destage-idle <duration>',
      `carry when no client has asked for anything for so long (default: ${destageIdleMs}ms)`,
      parsedBy(parseDurationMs),
    )
    .option(
      '--memory-tier-percent <number>',
      'share of the reserve that keeps missed blocks for a second reader ' +
        `(default: ${memoryTierPercent})`,
      wholeNumber(0, MEMORY_TIER_PERCENT_MAX),
    )
    .option('--accept-loss', 'go on where durable data is damaged, losing what is named')
    .option(
      '--log-level <level>',
      `${LOG_LEVELS.join(', ')} (default: ${logLevel})`,
      oneOf(LOG_LEVELS),
    );
}

interface ServeOptions {
  readonly cache?: string;
  readonly export?: Config['exports'];
  readonly listen?: Config['listen'];
  readonly socketMode?: number;
  readonly metrics?: string;
  readonly control?: string;
  readonly reserve?: bigint;
  readonly connectionsMax?: number;
  readonly spinUs?: number;
  readonly cpu?: number;
  readonly index?: bigint;
  readonly destageHigh?: number;
  readonly destageAge?: number;
  readonly destageIdle?: number;
  readonly memoryTierPercent?: number;
  readonly acceptLoss?: boolean;
  readonly logLevel?: Config['logLevel'];
  readonly config?: string;
}

async function configOf(options: ServeOptions): Promise<Config> {
  const { config: file, export: exports, reserve, index, ...others } = options;
  const { destageHigh, destageAge, destageIdle, ...rest } = others;
  const destage = { destageHighPercent: destageHigh, destageAgeMs: destageAge };
  const sizes = { reserveBytes: reserve, indexBytes: index };
  const said = { ...rest, ...sizes, ...destage, destageIdleMs: destageIdle, exports };
  return completeConfig(file === undefined ? {} : await fromFile(file), said);
}

// What only a daemon needs is half of what there is to load, and the other verbs are short.

async function fromFile(file: string): Promise<PartialConfig> {
  const { readConfigFile } = await import('../config-file.ts');
  return readConfigFile(file);
}

async function serve(config: Config, context: Context): Promise<void> {
  const log = createLog(config.logLevel);
  const native = context.native();
  const life = watchProcess(log);
  try {
    const { startDaemon } = await import('../lifecycle.ts');
    const daemon = await startDaemon(config, { native, log, signal: life.signal });
    if (daemon.state() === 'serving') {
      context.write(servingText(config, daemon));
      const { cacheUuid, recoveredRecords, recoveryMs } = daemon.opened;
      const recovered = { recovered_records: Number(recoveredRecords), recovery_ms: recoveryMs };
      log.info({ cache: cacheUuid, ...recovered }, 'serving');
    }
    await daemon.stopped;
    log.info('stopped');
  } finally {
    life.unwatch();
  }
  const failure = life.failure();
  if (failure !== null) throw failure;
}

/** What an operator needs to go on: where everything is, and how to attach it. */
export function servingText(config: Config, { endpoints, opened }: Daemon): string {
  const command = process.argv[1] ?? 'ringfence';
  const sizes = opened.exports.map(({ name, sizeBytes }) => `"${name}" (${formatSize(sizeBytes)})`);
  const attach = endpoints.nbd.flatMap((address) =>
    opened.exports.map(({ name }) => `  ${attachCommand(command, address, name)}`),
  );
  const uris = endpoints.nbd.flatMap((address) =>
    opened.exports.map(({ name }) => `  ${nbdUri(address, name)}`),
  );
  const { metrics } = endpoints;
  const lines = [
    `ringfence serves ${sizes.join(', ')}`,
    `through the cache ${opened.cacheUuid} on ${config.cache}`,
    '',
    ...endpoints.nbd.map((address) => `NBD:     ${formatAddress(address)}`),
    `metrics: ${metrics === null ? 'off; --metrics HOST:PORT turns them on' : pageUrl(metrics)}`,
    `control: ${endpoints.control}`,
    '',
    'Attach, as root; a mounted filesystem survives a restart of the daemon:',
    ...attach,
    '',
    'For libnbd, qemu and fio:',
    ...uris,
  ];
  return `${lines.join('\n')}\n\n`;
}

function pageUrl(address: Parameters<typeof formatAddress>[0]): string {
  return `http://${formatAddress(address)}/metrics`;
}
