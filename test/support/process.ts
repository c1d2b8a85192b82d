/** Running foreign programs: to their end, or as servers for the length of a scope. */

import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import type { Scope } from './scope.ts';

/** The top of the source tree: the nearest folder above this file that holds a package.json. */
export const projectRoot = findProjectRoot(import.meta.dirname);

function findProjectRoot(start: string): string {
  for (let folder = start; folder !== dirname(folder); folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json'))) return folder;
  }
  throw new Error(`no package.json above ${start}`);
}

/** How a program ended. */
export interface Finished {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** What a program is given. */
export interface RunOptions {
  readonly input?: string | Uint8Array;
  readonly timeoutMs?: number;
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
}

const RUN_TIMEOUT_MS = 120_000;

/** Runs a program to its end and tells how it ended; one that hangs or cannot start throws. */
export async function runAnyway(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Finished> {
  const result = await execa(command, args, {
    reject: false,
    timeout: options.timeoutMs ?? RUN_TIMEOUT_MS,
    killSignal: 'SIGKILL',
    ...(options.input === undefined ? { stdin: 'ignore' } : { input: options.input }),
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.env === undefined ? {} : { env: options.env }),
  });
  if (result.exitCode === undefined) {
    throw new Error(`${result.shortMessage}\n${result.stdout}\n${result.stderr}`);
  }
  return { exitCode: result.exitCode, stdout: result.stdout, stderr: result.stderr };
}

/** Runs a program to its end; returns its standard output, throws unless it exits with 0. */
export async function run(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const result = await runAnyway(command, args, options);
  if (result.exitCode !== 0) {
    throw new Error(
      `${command} ${args.join(' ')}: exit code ${result.exitCode}\n${result.stdout}\n${result.stderr}`,
    );
  }
  return result.stdout;
}

/** A program that runs until it is told to stop. */
export interface Background {
  readonly pid: number;
  /** Everything it printed so far, both streams. */
  output(): string;
  /** Null while it runs. */
  ended(): Ended | null;
  /** Waits for its end. */
  wait(): Promise<Ended>;
  /** Sends a signal, unless it has ended. */
  signal(name: NodeJS.Signals): void;
  /** Writes to its standard input. */
  write(text: string): void;
}

/** How a background program ended. */
export interface Ended {
  readonly exitCode: number | null;
  readonly signal: string | null;
}

/**
 * Starts a program. It is killed when the scope closes, and by the kernel when this process dies
 * first, so that no failing test leaves a server behind.
 */
export function startProcess(
  scope: Scope,
  command: string,
  args: readonly string[],
  options: { readonly env?: Readonly<Record<string, string>>; readonly cpus?: string } = {},
): Background {
  const pinned = options.cpus === undefined ? [] : ['taskset', '--cpu-list', options.cpus];
  const child = execa('setpriv', ['--pdeathsig', 'KILL', '--', ...pinned, command, ...args], {
    reject: false,
    buffer: false,
    // How long a signal may take is the test's business.
    forceKillAfterDelay: false,
    stdin: 'pipe',
    env: { ...options.env },
    cwd: projectRoot,
  });
  const pid = child.pid;
  if (pid === undefined) throw new Error(`${command} did not start: is setpriv installed?`);
  let printed = '';
  const collect = (chunk: Buffer): void => {
    printed += chunk.toString();
  };
  child.stdout.on('data', collect);
  child.stderr.on('data', collect);
  // A program that has gone away breaks the pipe; its end is reported by `wait`.
  child.stdin.on('error', () => undefined);
  let ended: Ended | null = null;
  const end = child.then((result) => {
    ended = { exitCode: result.exitCode ?? null, signal: result.signal ?? null };
    return ended;
  });
  const background: Background = {
    pid,
    output: () => printed,
    ended: () => ended,
    wait: () => end,
    signal: (name) => {
      if (ended === null) child.kill(name);
    },
    write: (text) => {
      child.stdin.write(text);
    },
  };
  scope.defer(async () => {
    background.signal('SIGKILL');
    await end;
  });
  return background;
}

/** Waits until a condition holds; throws the sentence that `describe` makes when it never does. */
export async function waitUntil(
  condition: () => boolean | Promise<boolean>,
  describe: () => string,
  limitMs = 60_000,
): Promise<void> {
  const end = performance.now() + limitMs;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`waited ${limitMs} ms: ${describe()}`);
    await sleep(10);
  }
}

/** CPU time that a process with all its threads has used, in milliseconds. */
export function cpuTimeMs(pid: number): number {
  const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
  // The command's name may hold spaces; the fields after the last parenthesis do not.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const ticks = Number(fields[11]) + Number(fields[12]);
  return ticks * 10;
}

/** Holds a file open for as long as the scope lives. */
export function holdOpen(scope: Scope, path: string): void {
  const descriptor = openSync(path, 'r');
  scope.defer(() => closeSync(descriptor));
}
