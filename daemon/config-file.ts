/**
 * The configuration file. {@link FILE_SCHEMA} is the one description of it; `docs/operations.md` is
 * tested against it.
 */

import { readFile } from 'node:fs/promises';
import { parse, TomlError } from 'smol-toml';
import { z } from 'zod';
import { formatAddress, parseAddress, parseSocketMode, parseTcpAddress } from './addresses.ts';
import {
  CONNECTIONS_MAX_LIMIT,
  LOG_LEVELS,
  MEMORY_TIER_PERCENT_MAX,
  type PartialConfig,
  SPIN_US_MAX,
} from './config.ts';
import { RingfenceError, reasonOf, ringfenceError } from './errors.ts';
import {
  EXPORT_DEFAULTS,
  exportNameProblem,
  MODES,
  ORDERS,
  parseDirtyBytesMax,
  parsePatienceMs,
} from './exports.ts';
import { parseDurationMs, parseSizeBytes } from './units.ts';

const size = checkedBy(z.union([z.string(), z.int().nonnegative()]), (value) =>
  parseSizeBytes(`${value}`),
);
const dirtyMax = checkedBy(z.union([z.string(), z.int().nonnegative()]), (value) =>
  parseDirtyBytesMax(`${value}`),
);
const duration = checkedBy(z.string(), (text) => parseDurationMs(text));
const patience = checkedBy(z.string(), parsePatienceMs);
const clientAddress = checkedBy(z.string(), (text) => formatAddress(parseAddress(text)));
const tcpAddress = checkedBy(z.string(), (text) => formatAddress(parseTcpAddress(text)));
const socketMode = checkedBy(z.string(), parseSocketMode);
const path = z.string().min(1, 'a path cannot be empty.');

const EXPORT_SCHEMA = z.strictObject({
  name: z.string().superRefine((name, context) => {
    const problem = exportNameProblem(name);
    if (problem !== null) context.addIssue({ code: 'custom', message: `the name ${problem}.` });
  }),
  origin: path,
  mode: z.enum(MODES).default(EXPORT_DEFAULTS.mode),
  order: z.enum(ORDERS).default(EXPORT_DEFAULTS.order),
  dirty_max: dirtyMax.optional(),
  wait: patience.optional(),
  origin_timeout: patience.optional(),
});

/** The file, key by key. */
export const FILE_SCHEMA = z.strictObject({
  cache: path.optional(),
  listen: z
    .union([clientAddress.transform((address) => [address]), z.array(clientAddress)])
    .optional(),
  socket_mode: socketMode.optional(),
  metrics: tcpAddress.optional(),
  control: path.optional(),
  reserve: size.optional(),
  connections_max: z.int().min(1).max(CONNECTIONS_MAX_LIMIT).optional(),
  spin_us: z.int().min(0).max(SPIN_US_MAX).optional(),
  cpu: z.int().nonnegative().optional(),
  destage_high: z.int().min(1).max(100).optional(),
  destage_age: duration.optional(),
  destage_idle: duration.optional(),
  accept_loss: z.boolean().optional(),
  index: size.optional(),
  memory_tier_percent: z.int().min(0).max(MEMORY_TIER_PERCENT_MAX).optional(),
  log_level: z.enum(LOG_LEVELS).optional(),
  export: z.array(EXPORT_SCHEMA).optional(),
});

/** The keys of the file, and of an `[[export]]` in it. */
export const FILE_KEYS = {
  top: Object.keys(FILE_SCHEMA.shape),
  export: Object.keys(EXPORT_SCHEMA.shape),
} as const;

/**
 * Reads a configuration file.
 *
 * @throws `RF_CONFIG_UNREADABLE`, or what {@link parseConfigFile} throws
 */
export async function readConfigFile(file: string): Promise<PartialConfig> {
  let source: string;
  try {
    source = await readFile(file, 'utf8');
  } catch (error) {
    throw ringfenceError('RF_CONFIG_UNREADABLE', [file, reasonOf(error)], error);
  }
  return parseConfigFile(file, source);
}

/**
 * Parses the text of a configuration file; `file` is only its name for messages.
 *
 * @throws `RF_CONFIG_SYNTAX`, `RF_CONFIG_UNKNOWN_KEY`, `RF_CONFIG_VALUE`, each with its line
 */
export function parseConfigFile(file: string, source: string): PartialConfig {
  const table = parseToml(file, source);
  const parsed = FILE_SCHEMA.safeParse(table);
  if (!parsed.success) throw firstIssue(file, source, table, parsed.error.issues);
  const { data } = parsed;
  return {
    cache: data.cache,
    listen: data.listen,
    socketMode: data.socket_mode,
    metrics: data.metrics,
    control: data.control,
    reserveBytes: data.reserve,
    connectionsMax: data.connections_max,
    spinUs: data.spin_us,
    cpu: data.cpu,
    destageHighPercent: data.destage_high,
    destageAgeMs: data.destage_age,
    destageIdleMs: data.destage_idle,
    acceptLoss: data.accept_loss,
    indexBytes: data.index,
    memoryTierPercent: data.memory_tier_percent,
    logLevel: data.log_level,
    exports: data.export?.map((given) => ({
      name: given.name,
      origin: given.origin,
      mode: given.mode,
      order: given.order,
      dirtyBytesMax: given.dirty_max ?? EXPORT_DEFAULTS.dirtyBytesMax,
      waitMs: given.wait ?? EXPORT_DEFAULTS.waitMs,
      originTimeoutMs: given.origin_timeout ?? EXPORT_DEFAULTS.originTimeoutMs,
    })),
  };
}

/** A schema whose values go through one of our parsers, whose sentence becomes the issue. */
function checkedBy<Given, Parsed>(schema: z.ZodType<Given>, parser: (given: Given) => Parsed) {
  return schema.transform((given, context): Parsed => {
    try {
      return parser(given);
    } catch (error) {
      if (!(error instanceof RingfenceError)) throw error;
      context.addIssue({ code: 'custom', message: error.message });
      return z.NEVER;
    }
  });
}

function parseToml(file: string, source: string): unknown {
  try {
    return parse(source);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    const problem = error.message.split('\n', 1)[0] ?? '';
    const place = `${file}:${error.line}`;
    const detail = problem.replace(/^Invalid TOML document: /, '').replace(/\.$/, '');
    throw ringfenceError('RF_CONFIG_SYNTAX', [place, detail], error);
  }
}

type Path = readonly PropertyKey[];

/** The first by line; what is missing goes last, since a misspelt key may be the reason. */
function firstIssue(
  file: string,
  source: string,
  table: unknown,
  issues: readonly z.core.$ZodIssue[],
): RingfenceError {
  const errors = issues.map((issue) => {
    const unknown = issue.code === 'unrecognized_keys' ? issue.keys[0] : undefined;
    const where = unknown === undefined ? issue.path : [...issue.path, unknown];
    return { issue, unknown, where, line: lineOfKey(source, where), there: holds(table, where) };
  });
  errors.sort((one, other) => Number(other.there) - Number(one.there) || one.line - other.line);
  const first = errors[0];
  if (first === undefined) throw new Error('a failed parse without an issue');
  const place = `${file}:${first.line}`;
  const key = `${String(first.where.findLast((part) => typeof part === 'string') ?? '')}`;
  if (first.unknown !== undefined) {
    const known = first.issue.path.length === 0 ? FILE_KEYS.top : FILE_KEYS.export;
    return ringfenceError('RF_CONFIG_UNKNOWN_KEY', [place, first.unknown, known.join(', ')]);
  }
  const problem = first.there ? issueText(first.issue) : 'it is missing.';
  return ringfenceError('RF_CONFIG_VALUE', [place, key, problem]);
}

/** The sentence of an issue; a union says nothing of its own, so its last branch speaks for it. */
function issueText(issue: z.core.$ZodIssue): string {
  const inner = issue.code === 'invalid_union' ? issue.errors.at(-1)?.[0] : undefined;
  if (inner !== undefined) return issueText(inner);
  return issue.message.endsWith('.') ? issue.message : `${issue.message}.`;
}

/**
 * The line, from 1, on which a key is set; for a key that is missing, that of what should hold it.
 *
 * The parser knows no positions. But the first number of lines that parses and holds the key ends
 * with its value, and the value starts after the lines that parse without it.
 */
export function lineOfKey(source: string, where: Path): number {
  const lines = source.split('\n');
  for (let depth = where.length; depth > 0; depth -= 1) {
    let parsedLines = 0;
    for (let count = 1; count <= lines.length; count += 1) {
      const table = parsedOrNull(lines.slice(0, count).join('\n'));
      if (table === null) continue;
      if (holds(table, where.slice(0, depth))) return parsedLines + 1;
      parsedLines = count;
    }
  }
  return 1;
}

function parsedOrNull(source: string): unknown {
  try {
    return parse(source);
  } catch {
    return null;
  }
}

function holds(table: unknown, where: Path): boolean {
  let value = table;
  for (const part of where) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, part)) return false;
    value = (value as Record<PropertyKey, unknown>)[part];
  }
  return true;
}
