/**
 * Every error that an operator can see: its code, its sentence and its exit code, in one place.
 *
 * A sentence says what was found and what to do about it. Exit code 2 means that the input has to
 * change, so a service manager should not try again; a device that is missing may still appear.
 */

/** Something failed; the same command may work later. */
export const EXIT_FAILED = 1;
/** The input is wrong: the same command will fail again. */
export const EXIT_REFUSED = 2;

interface Definition<Fields extends readonly unknown[]> {
  readonly exitCode: number;
  readonly sentence: (...fields: Fields) => string;
}

function failed<Fields extends readonly string[]>(
  sentence: (...fields: Fields) => string,
): Definition<Fields> {
  return { exitCode: EXIT_FAILED, sentence };
}

function refused<Fields extends readonly string[]>(
  sentence: (...fields: Fields) => string,
): Definition<Fields> {
  return { exitCode: EXIT_REFUSED, sentence };
}

/** The registry: one entry per code. */
export const ERRORS = {
  RF_SIZE: refused(
    (text: string) =>
      `"${text}" is not a size: ` +
      'write a whole number, alone for bytes or with KiB, MiB, GiB or TiB.',
  ),
  RF_SIZE_SMALL: refused(
    (text: string, least: string) => `"${text}" is too small: write ${least} or more.`,
  ),
  RF_DURATION: refused(
    (text: string) =>
      `"${text}" is not a duration: write a whole number with ms, s or m, such as 30s.`,
  ),
  RF_DURATION_RANGE: refused(
    (text: string, least: string, most: string) =>
      `"${text}" is out of range: write a duration from ${least} to ${most}.`,
  ),
  RF_ADDRESS: refused(
    (text: string) =>
      `"${text}" is not an address: write unix:PATH or HOST:PORT, an IPv6 host in brackets.`,
  ),
  RF_ADDRESS_LONG: refused(
    (path: string, most: string) =>
      `The socket path ${path} is longer than ${most} bytes: give a shorter one.`,
  ),
  RF_LISTEN_TOO_MANY: refused(
    (given: string, limit: string) =>
      `${given} addresses to listen on were given, and there can be ${limit}: leave some out.`,
  ),
  RF_LISTEN_TWICE: refused(
    (address: string) => `The address ${address} was given twice: leave one out.`,
  ),
  RF_SOCKET_MODE: refused(
    (text: string) =>
      `"${text}" is not the mode of a socket: write three octal digits, such as 660.`,
  ),
  RF_SOCKET_MODE_SET: failed(
    (path: string, reason: string) => `The mode of ${path} cannot be set: ${reason}.`,
  ),
  RF_EXPORT_SYNTAX: refused(
    (text: string, problem: string) =>
      `The export "${text}" cannot be used: ${problem}; write NAME=ORIGIN[,mode=…][,order=…].`,
  ),
  RF_EXPORT_NAME: refused(
    (name: string, problem: string) => `The export name "${name}" cannot be used: it ${problem}.`,
  ),
  RF_EXPORT_TWICE: refused(
    (name: string) => `Two exports are called "${name}": give each a name of its own.`,
  ),
  RF_EXPORTS_TOO_MANY: refused(
    (given: string, limit: string) =>
      `${given} exports were given, and a cache serves at most ${limit}: ` +
      'run another daemon with a cache device of its own.',
  ),
  RF_ORIGIN_TWICE: refused(
    (first: string, second: string, path: string) =>
      `The exports "${first}" and "${second}" share the origin ${path}: ` +
      'each would overwrite what the other wrote, so give each an origin of its own.',
  ),
  RF_ORIGIN_IS_CACHE: refused(
    (name: string, path: string) =>
      `The origin of the export "${name}" is the cache device ${path}: give it another origin.`,
  ),
  RF_CONFIG_UNREADABLE: refused(
    (path: string, reason: string) =>
      `The configuration ${path} cannot be read: ${reason}; check what --config names.`,
  ),
  RF_CONFIG_SYNTAX: refused(
    (place: string, problem: string) => `${place}: this is not TOML: ${problem}.`,
  ),
  RF_CONFIG_UNKNOWN_KEY: refused(
    (place: string, key: string, known: string) =>
      `${place}: unknown key "${key}"; the keys known here are ${known}.`,
  ),
  RF_CONFIG_VALUE: refused(
    (place: string, key: string, problem: string) =>
      `${place}: the value of "${key}" cannot be used: ${problem}`,
  ),
  RF_CONFIG_MISSING: refused(
    (what: string, option: string, key: string) =>
      `No ${what} was given: say ${option} on the command line or ${key} in the configuration.`,
  ),
  RF_DEVICE_MISSING: failed(
    (role: string, path: string) =>
      `The ${role} ${path} does not exist: check the path, and that the device is attached.`,
  ),
  RF_DEVICE_KIND: refused(
    (role: string, path: string, kind: string) =>
      `The ${role} ${path} is a ${kind}: give a block device or a regular file.`,
  ),
  RF_DEVICE_UNREADABLE: failed(
    (role: string, path: string, reason: string) =>
      `The ${role} ${path} cannot be opened: ${reason}.`,
  ),
  RF_DEVICE_MOUNTED: failed(
    (role: string, path: string, where: string) =>
      `The ${role} ${path} is in use: ${where}; unmount it first, or give another device.`,
  ),
  RF_DEVICE_HELD: failed(
    (role: string, path: string, holder: string) =>
      `The ${role} ${path} is held open by ${holder}: stop that first, or give another device.`,
  ),
  RF_SIGNATURES_UNKNOWN: failed(
    (path: string, reason: string) =>
      `What ${path} holds could not be looked up with wipefs, so it is left alone: ${reason}.`,
  ),
  RF_CACHE_DIRTY: refused(
    (path: string, uuid: string, dirty: string) =>
      `The cache ${uuid} on ${path} holds ${dirty}, which formatting would lose: ` +
      `serve and drain it first, or give --discard-dirty ${uuid}.`,
  ),
  RF_CACHE_UNREADABLE: refused(
    (path: string, reason: string) =>
      `The cache on ${path} cannot be read (${reason}) and may hold data that no origin has: ` +
      'give --discard-dirty unreadable to destroy it all the same.',
  ),
  RF_NOT_CONFIRMED: refused(
    (path: string) => `${path} was left as it is: answer "yes" or give --yes to format it.`,
  ),
  RF_DEVICE_CHANGED: failed(
    (path: string) =>
      `${path} was left as it is, for it is not what it was when you were asked: ` +
      'look at what is there now, and format it again.',
  ),
  RF_SEGMENT: refused(
    (size: string, least: string, most: string) =>
      `A segment of ${size} is not possible: give a power of two from ${least} to ${most}.`,
  ),
  RF_DEVICE_SMALL: refused(
    (path: string, size: string, segment: string, needed: string) =>
      `The device ${path} has ${size}, and a cache with segments of ${segment} needs at least ` +
      `${needed}: use a larger device, or smaller segments with --segment.`,
  ),
  RF_FORMAT: failed((path: string, reason: string) => `${path} was not formatted: ${reason}.`),
  RF_CHECK_DAMAGED: failed(
    (path: string, count: string) =>
      `The cache on ${path} is damaged in ${count}: see above what that means for its data.`,
  ),
  RF_CHECK_IMPOSSIBLE: refused(
    (path: string, reason: string) => `The cache on ${path} cannot be checked: ${reason}.`,
  ),
  RF_NATIVE_MISSING: failed(
    (reason: string) =>
      `The native part of ringfence could not be loaded: run "npm run build" first (${reason}).`,
  ),
  RF_NATIVE_MISMATCH: failed(
    (counter: string) =>
      `The native part of ringfence does not count "${counter}": run "npm run build" again.`,
  ),
  RF_UNSUITABLE: failed((advice: string) => `The daemon cannot run here: ${advice}`),
  RF_OPEN_REFUSED: refused((reason: string) => `The cache cannot be served as asked: ${reason}.`),
  RF_OPEN: failed((reason: string) => `The cache cannot be served: ${reason}.`),
  RF_LISTEN: failed((reason: string) => `Clients cannot be served: ${reason}.`),
  RF_METRICS_LISTEN: failed(
    (address: string, reason: string) =>
      `The metrics page cannot be served on ${address}: ${reason}; ` +
      'stop what has it, or give another --metrics.',
  ),
  RF_CONTROL_BUSY: failed(
    (path: string) =>
      `Another daemon answers on the control socket ${path}: stop it, or give another --control.`,
  ),
  RF_OUTPUT: failed(
    (reason: string) =>
      `The command did its work, but what it says cannot be written (${reason}): ` +
      'give it another place to write to.',
  ),
  RF_CONTROL_LISTEN: failed(
    (path: string, reason: string) =>
      `The control socket ${path} cannot be used: ${reason}; give another --control.`,
  ),
  RF_CONTROL_UNREACHABLE: failed(
    (path: string, reason: string) =>
      `No daemon answers on the control socket ${path} (${reason}): ` +
      'start "ringfence serve", or give the --control that it prints.',
  ),
  RF_CONTROL_FORBIDDEN: failed(
    (path: string) =>
      `The control socket ${path} is another user's: ask as the user that the daemon runs as.`,
  ),
  RF_CONTROL_REQUEST: failed(
    (problem: string) => `The control request was not understood: ${problem}.`,
  ),
  RF_CONTROL_LOST: failed(
    (path: string) =>
      `The daemon behind ${path} went away before it answered: look at its log for the reason.`,
  ),
  RF_EXPORT_UNKNOWN: failed(
    (name: string, known: string) => `There is no export "${name}"; the daemon serves ${known}.`,
  ),
  RF_DAMAGED: failed(
    (name: string) =>
      `Data of "${name}" is damaged, and its origin gets nothing newer: look at the log for what ` +
      `is lost, restore or overwrite it, then say "ringfence resolve ${name} --accept-loss".`,
  ),
  RF_NOT_DAMAGED: failed(
    (name: string) => `Destaging of "${name}" does not stand still: there is nothing to resolve.`,
  ),
  RF_NBD_DEVICE: refused(
    (text: string) => `"${text}" is not a device of the nbd driver: write /dev/nbdN.`,
  ),
  RF_NEGOTIATION: failed(
    (address: string, reason: string) => `The server at ${address} cannot be used: ${reason}.`,
  ),
  RF_ATTACH: failed(
    (name: string, reason: string) => `The export "${name}" cannot be attached: ${reason}.`,
  ),
  RF_DETACH: failed((device: string, reason: string) => `${device} is not detached: ${reason}.`),
  RF_STAYS_ATTACHED: failed(
    (device: string, use: string) =>
      `${device} stays attached, with nobody to mend its connection: ${use}; ` +
      'run the same "ringfence attach" again, or stop what uses it and "ringfence detach" it.',
  ),
  RF_ACTION: failed((action: string, reason: string) => `The ${action} failed: ${reason}.`),
  RF_ACTIONS_TOO_MANY: failed(
    (action: string, limit: string) =>
      `The ${action} was not started: ${limit} flushes and drains are on the way already; ` +
      'try again when some have ended, and see "ringfence status" for what they wait for.',
  ),
  RF_STOP: failed(
    (reason: string) =>
      `The daemon stopped, but ${reason}; what was not flushed before may be lost.`,
  ),
  RF_NOT_READY: failed((state: string) => `The daemon is ${state}: try again later.`),
  RF_INTERNAL: failed(
    (reason: string) => `Something went wrong that should not: ${reason}. Please report it.`,
  ),
} as const satisfies Record<string, Definition<never>>;

/** The name of an error. */
export type ErrorCode = keyof typeof ERRORS;

type FieldsOf<Code extends ErrorCode> = Parameters<(typeof ERRORS)[Code]['sentence']>;

/** An error out of the registry; its message is the whole sentence. */
export class RingfenceError extends Error {
  /** The registry's name for it. */
  readonly code: ErrorCode;
  /** What the process should exit with. */
  readonly exitCode: number;

  constructor(code: ErrorCode, sentence: string, cause: unknown) {
    super(sentence, cause === undefined ? undefined : { cause });
    this.name = 'RingfenceError';
    this.code = code;
    this.exitCode = ERRORS[code].exitCode;
  }
}

/** Builds an error of the registry from the fields of its sentence, keeping what caused it. */
export function ringfenceError<Code extends ErrorCode>(
  code: Code,
  fields: FieldsOf<Code>,
  cause?: unknown,
): RingfenceError {
  const sentence = ERRORS[code].sentence as (...values: FieldsOf<Code>) => string;
  return new RingfenceError(code, oneLine(sentence(...fields)), cause);
}

/** Rebuilds an error that crossed the control socket; an unknown code becomes `RF_INTERNAL`. */
export function errorFromWire(code: string, sentence: string): RingfenceError {
  return new RingfenceError(isErrorCode(code) ? code : 'RF_INTERNAL', oneLine(sentence), undefined);
}

/** Any thrown value as an error of the registry; what is not one already is `RF_INTERNAL`. */
export function toRingfenceError(thrown: unknown): RingfenceError {
  if (thrown instanceof RingfenceError) return thrown;
  return ringfenceError('RF_INTERNAL', [reasonOf(thrown)], thrown);
}

/** What a thrown value says, without a full stop at its end, for use within a sentence. */
export function reasonOf(thrown: unknown): string {
  const systemReason = SYSTEM_REASONS[codeOf(thrown) ?? ''];
  if (systemReason !== undefined) return systemReason;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return oneLine(message).replace(/[.!]+$/, '');
}

/** The system's name of an error (`EACCES`), or null for a value that has none. */
export function codeOf(thrown: unknown): string | null {
  if (typeof thrown !== 'object' || thrown === null || !('code' in thrown)) return null;
  return typeof thrown.code === 'string' ? thrown.code : null;
}

/** In plain words, because "EADDRINUSE: address already in use 127.0.0.1:1" says it twice. */
const SYSTEM_REASONS: Readonly<Record<string, string>> = {
  EACCES: 'permission denied, so run this as root or as a user who may',
  EADDRINUSE: 'the address is already in use',
  EADDRNOTAVAIL: 'the address does not belong to this machine',
  EBUSY: 'it is in use by something else',
  ECONNREFUSED: 'nothing listens there',
  EISDIR: 'it is a directory',
  ENOENT: 'it does not exist',
  ENOTDIR: 'a part of the path is not a directory',
  ENOTFOUND: 'the host name is not known',
  EPERM: 'operation not permitted',
};

function isErrorCode(code: string): code is ErrorCode {
  return Object.hasOwn(ERRORS, code);
}

function oneLine(text: string): string {
  return text.replace(/\s*[\r\n]+\s*/g, ' ').trim();
}
