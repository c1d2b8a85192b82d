/** The real daemon: formatting, serving, asking, stopping and killing it. */

import { connect as connectSocket, createServer } from 'node:net';
import { join } from 'node:path';
import { type Background, projectRoot, run, startProcess, waitUntil } from './process.ts';
import type { Scope } from './scope.ts';

/** The command under test: the tree's own, or what `RINGFENCE_COMMAND` names. */
export const ringfenceCommand =
  process.env.RINGFENCE_COMMAND ?? join(projectRoot, 'bin', 'ringfence');

/** An export as the command line takes it. */
export interface ExportArgument {
  readonly name: string;
  readonly origin: string;
  /** For example `mode=readonly,order=relaxed`. */
  readonly options?: string;
}

/** Everything that a restart repeats. */
export interface DaemonSetup {
  readonly cache: string;
  readonly exports: readonly ExportArgument[];
  /** A folder for the sockets. */
  readonly folder: string;
  readonly metricsPort: number;
  /** A TCP port to listen on beside the Unix socket, or null. */
  readonly tcpPort: number | null;
  readonly reserve: string;
  /** Further arguments of `serve`. */
  readonly extra: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** CPUs to pin the daemon to, as `taskset` takes them, or null. */
  readonly cpus: string | null;
}

/** A daemon that serves. */
export interface Daemon {
  readonly setup: DaemonSetup;
  readonly background: Background;
  /** From the start of the process until it greeted a client. */
  readonly startMs: number;
}

/** What `status --json` says, as far as the tests read it. */
export interface Status {
  readonly cache: { readonly size_bytes: number; readonly used_bytes: number };
  readonly reserve: Readonly<Record<string, unknown>>;
  readonly guards: Readonly<Record<string, unknown>>;
  readonly exports: readonly {
    readonly name: string;
    readonly size_bytes: number;
    readonly dirty_bytes: number;
    readonly cached_bytes: number;
    readonly origin: { readonly uri: string; readonly state: string };
  }[];
}

/** Formats a device for use as cache. */
export async function formatCache(device: string, segment = '4MiB'): Promise<void> {
  const args = ['format', device, '--yes', '--segment', segment];
  // Every block of a loop device is written: by hand some are large.
  await run(ringfenceCommand, args, { timeoutMs: 1_200_000 });
}

/** A TCP port that nobody listened on a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  await new Promise<void>((resolve) => server.close(() => resolve()));
  if (address === null || typeof address === 'string') throw new Error('no port was bound');
  return address.port;
}

/** Makes a setup with free ports, a small reserve and what else the caller says. */
export async function daemonSetup(
  required: Pick<DaemonSetup, 'cache' | 'exports' | 'folder'>,
  optional: Partial<DaemonSetup> = {},
): Promise<DaemonSetup> {
  return {
    metricsPort: await freePort(),
    tcpPort: null,
    reserve: '128MiB',
    extra: [],
    env: {},
    cpus: null,
    ...optional,
    ...required,
  };
}

/** The Unix socket that a daemon serves on. */
export function socketPath(setup: DaemonSetup): string {
  return join(setup.folder, 'nbd.sock');
}

function controlPath(setup: DaemonSetup): string {
  return join(setup.folder, 'control.sock');
}

/** The address of an export as libnbd, qemu and fio take it. */
export function exportUri(setup: DaemonSetup, name: string): string {
  return `nbd+unix:///${name}?socket=${socketPath(setup)}`;
}

/** The arguments that a daemon is started with. */
export function serveArguments(setup: DaemonSetup): string[] {
  const exports = setup.exports.flatMap(({ name, origin, options }) => [
    '--export',
    options === undefined ? `${name}=${origin}` : `${name}=${origin},${options}`,
  ]);
  return [
    ...['serve', '--cache', setup.cache, ...exports, '--listen', `unix:${socketPath(setup)}`],
    ...(setup.tcpPort === null ? [] : ['--listen', `127.0.0.1:${setup.tcpPort}`]),
    ...['--metrics', `127.0.0.1:${setup.metricsPort}`, '--control', controlPath(setup)],
    ...['--reserve', setup.reserve, ...setup.extra],
  ];
}

/** Whether an NBD server greets on a Unix socket. */
export function greets(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connectSocket(path);
    socket.setTimeout(1_000, () => socket.destroy());
    socket.on('data', (bytes) => {
      resolve(bytes.toString('latin1').startsWith('NBDMAGIC'));
      socket.destroy();
    });
    socket.on('error', () => resolve(false));
    socket.on('close', () => resolve(false));
  });
}

/** Starts the daemon and waits until it greets clients. */
export async function startDaemon(scope: Scope, setup: DaemonSetup): Promise<Daemon> {
  const began = performance.now();
  const background = startProcess(scope, ringfenceCommand, serveArguments(setup), {
    env: setup.env,
    ...(setup.cpus === null ? {} : { cpus: setup.cpus }),
  });
  await waitUntil(
    () => {
      if (background.ended() !== null) {
        throw new Error(`ringfence ended instead of serving:\n${background.output()}`);
      }
      return greets(socketPath(setup));
    },
    () => `ringfence does not serve:\n${background.output()}`,
  );
  return { setup, background, startMs: performance.now() - began };
}

/** Kills the daemon as a power cut would. */
export async function killDaemon(daemon: Daemon): Promise<void> {
  daemon.background.signal('SIGKILL');
  await daemon.background.wait();
}

/** Kills a daemon and starts it again on the same addresses. */
export async function killAndRestart(scope: Scope, daemon: Daemon): Promise<Daemon> {
  await killDaemon(daemon);
  return startDaemon(scope, daemon.setup);
}

/** Asks the daemon through its control socket: `status`, `flush`, `drain` or `stop`. */
export async function ask(daemon: Daemon, ...args: readonly string[]): Promise<string> {
  return run(ringfenceCommand, [...args, '--control', controlPath(daemon.setup)], {
    timeoutMs: 300_000,
  });
}

/** The parsed `status --json`. */
export async function readStatus(daemon: Daemon): Promise<Status> {
  return JSON.parse(await ask(daemon, 'status', '--json')) as Status;
}

/** Stops the daemon in the orderly way and checks that it says so. */
export async function stopDaemon(daemon: Daemon): Promise<void> {
  daemon.background.signal('SIGTERM');
  const ended = await daemon.background.wait();
  if (ended.exitCode !== 0) {
    throw new Error(
      `ringfence ended with ${JSON.stringify(ended)}:\n${daemon.background.output()}`,
    );
  }
}

/** The samples of one metric, by their labels as printed (`{…}` or the empty string). */
export async function readMetric(daemon: Daemon, name: string): Promise<Map<string, number>> {
  const response = await fetch(`http://127.0.0.1:${daemon.setup.metricsPort}/metrics`);
  const samples = new Map<string, number>();
  for (const line of (await response.text()).split('\n')) {
    const match = /^([a-z_]+)(\{.*\})? (\S+)$/.exec(line);
    if (match?.[1] === name) samples.set(match[2] ?? '', Number(match[3]));
  }
  return samples;
}
