/**
 * A guest machine under qemu's software emulation: Debian's cloud kernel, the host's programs,
 * and the kernel's own NBD client.
 */

import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { connect as connectSocket, type Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { type Background, projectRoot, run, startProcess, waitUntil } from '../support/process.ts';
import type { Scope } from '../support/scope.ts';

/** Modules in the order in which they must be loaded; all below `kernel/`. */
const MODULES = [
  'net/core/failover',
  'drivers/net/net_failover',
  'drivers/virtio/virtio_ring',
  'drivers/virtio/virtio',
  'drivers/virtio/virtio_pci_legacy_dev',
  'drivers/virtio/virtio_pci_modern_dev',
  'drivers/virtio/virtio_pci',
  'drivers/net/virtio_net',
  'drivers/block/virtio_blk',
  'drivers/block/nbd',
  'fs/fuse/fuse',
  'fs/fuse/virtiofs',
  'fs/overlayfs/overlay',
] as const;

/**
 * For scripts that call ringfence: the guest has the host's programs, and the tree where it is on
 * the host. `node "$RINGFENCE" …` is the command.
 */
export const ringfencePrelude = `
export PATH='${dirname(process.execPath)}':$PATH
RINGFENCE='${join(projectRoot, 'bin', 'ringfence')}'
`;

/**
 * What every script begins with. The shell passes over a command behind `!` that succeeds, and over
 * one that fails in front of the last `&&`: `never` says of a command that it must fail, and what
 * else must hold stands on a line of its own.
 */
const SCRIPT_PRELUDE = `set -e
never() { if "$@"; then echo "this must not succeed: $*"; return 1; fi; }
`;

const MEMORY = '2G';
const BOOT_MS = 120_000;
const VIRTIOFSD = '/usr/lib/qemu/virtiofsd';

/** How a command in the guest ended. */
export interface GuestResult {
  readonly exitCode: number;
  readonly output: string;
}

/** A running guest. */
export interface Guest {
  /** Runs a shell script in the guest, whatever its exit code. */
  runAnyway(script: string, limitMs?: number): Promise<GuestResult>;
  /** Runs a shell script that must succeed; stops at its first failing command. */
  run(script: string, limitMs?: number): Promise<string>;
  /** What the kernel and the init script printed. */
  console(): string;
}

/** Downloads and unpacks the kernel, once; nothing is installed. Returns the unpacked tree. */
async function unpackedKernel(): Promise<string> {
  const folder = join(projectRoot, '.ringfence', 'guest');
  const tree = join(folder, 'kernel');
  if (existsSync(tree)) return tree;
  mkdirSync(folder, { recursive: true });
  const description = await run('apt-cache', ['depends', 'linux-image-cloud-amd64']);
  const name = /Depends: (linux-image-\S+)/.exec(description)?.[1];
  if (name === undefined) {
    throw new Error('apt knows no linux-image-cloud-amd64: run apt-get update');
  }
  await run('apt-get', ['download', name], { cwd: folder });
  const archive = readdirSync(folder).find((file) => file.endsWith('.deb'));
  if (archive === undefined) throw new Error(`apt-get downloaded no ${name}`);
  const unfinished = join(folder, 'kernel.unfinished');
  await run('dpkg-deb', ['--extract', join(folder, archive), unfinished]);
  rmSync(join(folder, archive));
  renameSync(unfinished, tree);
  return tree;
}

/** The kernel's image and an initial file system for it, in `folder`. */
async function bootFiles(folder: string): Promise<{ kernel: string; initramfs: string }> {
  const tree = await unpackedKernel();
  const image = readdirSync(join(tree, 'boot')).find((file) => file.startsWith('vmlinuz-'));
  const release = readdirSync(join(tree, 'lib', 'modules'))[0];
  if (image === undefined || release === undefined) throw new Error(`${tree} holds no kernel`);
  const root = join(folder, 'initramfs');
  mkdirSync(join(root, 'bin'), { recursive: true });
  mkdirSync(join(root, 'modules'));
  cpSync('/bin/busybox', join(root, 'bin', 'busybox'), { dereference: true });
  for (const script of ['init.sh', 'agent.sh']) {
    cpSync(join(projectRoot, 'test', 'guest', script), join(root, script));
  }
  renameSync(join(root, 'init.sh'), join(root, 'init'));
  await run('chmod', ['0755', join(root, 'init')]);
  for (const module of MODULES) {
    const file = `${module.split('/').at(-1)}.ko`;
    cpSync(
      join(tree, 'lib/modules', release, 'kernel', `${module}.ko`),
      join(root, 'modules', file),
    );
  }
  const order = MODULES.map((module) => module.split('/').at(-1)).join('\n');
  writeFileSync(join(root, 'modules', 'order'), `${order}\n`);
  const initramfs = join(folder, 'initramfs.cpio');
  await run('sh', ['-c', `find . | cpio --quiet -o -H newc > '${initramfs}'`], { cwd: root });
  return { kernel: join(tree, 'boot', image), initramfs };
}

/** The host's end of the guest's command line: one line at a time. */
interface LineReader {
  next(limitMs: number, what: () => string): Promise<string>;
}

function readLines(socket: Socket, qemu: Background): LineReader {
  const lines: string[] = [];
  let rest = '';
  socket.on('data', (chunk) => {
    const parts = (rest + chunk.toString('latin1')).split('\n');
    rest = parts.pop() ?? '';
    lines.push(...parts.map((line) => line.replaceAll('\r', '')));
  });
  socket.on('error', () => undefined);
  return {
    next: async (limitMs, what) => {
      await waitUntil(
        () => {
          if (lines.length === 0 && qemu.ended() !== null) throw new Error(what());
          return lines.length > 0;
        },
        what,
        limitMs,
      );
      return lines.shift() ?? '';
    },
  };
}

async function connectAgent(scope: Scope, path: string, qemu: Background): Promise<Socket> {
  await waitUntil(() => existsSync(path), qemu.output);
  const socket = connectSocket(path);
  scope.defer(() => socket.destroy());
  return socket;
}

/**
 * Starts a guest and waits until it takes commands.
 *
 * @param folder where its sockets and boot files go
 * @param disks images that become /dev/vda, /dev/vdb, …
 */
export async function startGuest(
  scope: Scope,
  folder: string,
  disks: readonly string[] = [],
): Promise<Guest> {
  const { kernel, initramfs } = await bootFiles(folder);
  const shareSocket = join(folder, 'virtiofs.sock');
  const agentSocket = join(folder, 'agent.sock');
  const share = startProcess(scope, VIRTIOFSD, [
    ...['-f', `--socket-path=${shareSocket}`, '-o', 'source=/', '-o', 'sandbox=chroot'],
    ...['-o', 'cache=always', '-o', 'log_level=err'],
  ]);
  await waitUntil(() => existsSync(shareSocket), share.output);
  const qemu = startProcess(scope, 'qemu-system-x86_64', [
    ...['-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '2', '-m', MEMORY],
    ...['-display', 'none', '-no-reboot', '-nodefaults'],
    ...['-object', `memory-backend-memfd,id=memory,size=${MEMORY},share=on`],
    ...['-numa', 'node,memdev=memory'],
    ...['-kernel', kernel, '-initrd', initramfs],
    ...['-append', 'console=ttyS0 quiet panic=-1 mitigations=off'],
    ...['-serial', 'stdio'],
    ...['-chardev', `socket,id=agent,path=${agentSocket},server=on,wait=off`],
    ...['-serial', 'chardev:agent'],
    ...['-chardev', `socket,id=share,path=${shareSocket}`],
    ...['-device', 'vhost-user-fs-pci,chardev=share,tag=host'],
    ...['-nic', 'user,model=virtio-net-pci'],
    ...disks.flatMap((path) => [
      '-drive',
      `file=${path},format=raw,if=virtio,cache=none,aio=threads`,
    ]),
  ]);
  const socket = await connectAgent(scope, agentSocket, qemu);
  const reader = readLines(socket, qemu);
  const whatHappened = (): string => `the guest does not answer; its console:\n${qemu.output()}`;
  while (!(await reader.next(BOOT_MS, whatHappened)).includes('@@ready')) {
    // What precedes it is noise of the serial line.
  }
  const runAnyway = async (script: string, limitMs = 120_000): Promise<GuestResult> => {
    socket.write(`${Buffer.from(script).toString('base64')}\n`);
    const output = Buffer.from(await reader.next(limitMs, whatHappened), 'base64').toString();
    const code = /@@done (\d+)/.exec(await reader.next(limitMs, whatHappened))?.[1];
    return { exitCode: Number(code), output };
  };
  return {
    runAnyway,
    run: async (script, limitMs) => {
      const result = await runAnyway(`${SCRIPT_PRELUDE}${script}`, limitMs);
      if (result.exitCode === 0) return result.output;
      throw new Error(
        `in the guest, exit code ${result.exitCode}:\n${script}\n${result.output}\n` +
          `console:\n${qemu.output().slice(-2_000)}`,
      );
    },
    console: () => qemu.output(),
  };
}
