// What a machine must have, and for each thing that it has not, one sentence that says what to do.
import { existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { nodeRefusal } from '../../bin/node-version.cjs';
import { output, root } from './process.mjs';

/** The oldest kernel with DEFER_TASKRUN. */
const KERNEL_OLDEST = '6.1';

/**
 * Whether the dotted version `found` is `oldest` or newer, as far as `oldest` is given.
 *
 * @param {string} found
 * @param {string} oldest
 */
export function isAtLeast(found, oldest) {
  const have = found.split('.').map((part) => Number.parseInt(part, 10));
  for (const [index, part] of oldest.split('.').entries()) {
    const difference = (have[index] ?? 0) - Number(part);
    if (difference !== 0) return difference > 0;
  }
  return true;
}

/** The `rust-version` of the workspace. */
function rustOldest() {
  const manifest = readFileSync(join(root, 'Cargo.toml'), 'utf8');
  const match = /^rust-version = "([\d.]+)"/m.exec(manifest);
  if (match?.[1] === undefined) throw new Error('Cargo.toml names no rust-version');
  return match[1];
}

/**
 * What is found of a machine.
 *
 * @typedef {object} Machine
 * @property {string} platform
 * @property {string} node Node's version
 * @property {string} kernel
 * @property {string | null} cargo its version, null where there is none
 * @property {boolean} hasCompiler
 * @property {number} uringDisabled `kernel.io_uring_disabled`: 0 for nobody, 2 for everybody
 * @property {boolean} maySetUpRings with `kernel.io_uring_disabled` at 1
 */

/** @param {string} path */
function setting(path) {
  return existsSync(path) ? Number(readFileSync(path, 'utf8')) : null;
}

/** @returns {Machine} */
function thisMachine() {
  const group = setting('/proc/sys/kernel/io_uring_group') ?? -1;
  return {
    platform: process.platform,
    node: process.versions.node,
    kernel: release(),
    cargo: output('cargo', ['--version'])?.split(' ')[1] ?? null,
    hasCompiler: output('cc', ['--version']) !== null,
    uringDisabled: setting('/proc/sys/kernel/io_uring_disabled') ?? 0,
    maySetUpRings: process.getuid?.() === 0 || (process.getgroups?.().includes(group) ?? false),
  };
}

/**
 * Why this user may not create a ring, or null. Seccomp is seen only when the ring is tried.
 *
 * @param {Machine} machine
 */
function uringRefusal({ uringDisabled: disabled, maySetUpRings }) {
  if (disabled === 0 || (disabled === 1 && maySetUpRings)) return null;
  return (
    `io_uring is switched off (kernel.io_uring_disabled is ${disabled}): ` +
    'allow it with `sysctl kernel.io_uring_disabled=0`.'
  );
}

/**
 * @param {Machine} machine
 * @returns {string | null}
 */
function cargoRefusal({ cargo: found }) {
  const oldest = rustOldest();
  const advice = `install Rust ${oldest} or later from https://rustup.rs.`;
  if (found === null) return `cargo is missing: ${advice}`;
  return isAtLeast(found, oldest) ? null : `cargo ${found} is too old: ${advice}`;
}

/**
 * One sentence for each thing that is missing or too old; empty when all is there.
 *
 * @param {Machine} machine
 * @returns {string[]}
 */
export function missingRequirements(machine = thisMachine()) {
  const { platform, node, kernel, hasCompiler } = machine;
  const missing = [];
  if (platform !== 'linux') {
    return [`ringfence runs on Linux ${KERNEL_OLDEST} or later, not on ${platform}.`];
  }
  const nodeTooOld = nodeRefusal(node);
  if (nodeTooOld !== null) missing.push(nodeTooOld);
  if (!isAtLeast(kernel, KERNEL_OLDEST)) {
    missing.push(
      `Linux ${kernel} is too old for the ring: boot a kernel ${KERNEL_OLDEST} or later.`,
    );
  }
  const uring = uringRefusal(machine);
  if (uring !== null) missing.push(uring);
  if (!hasCompiler) {
    missing.push('A C compiler is missing: install one, on Debian with `apt-get install gcc`.');
  }
  const cargo = cargoRefusal(machine);
  if (cargo !== null) missing.push(cargo);
  return missing;
}
