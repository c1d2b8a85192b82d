// What a machine must have, and for each thing that it has not, one sentence that says what to do.
import { existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { output, root } from './process.mjs';

/** The oldest Node, as in package.json's `engines`. */
const NODE_OLDEST = '20.19';
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

/** @param {string} path */
function setting(path) {
  return existsSync(path) ? Number(readFileSync(path, 'utf8')) : null;
}

/** Why this user may not create a ring, or null. Seccomp is seen only when the ring is tried. */
function uringRefusal() {
  const disabled = setting('/proc/sys/kernel/io_uring_disabled') ?? 0;
  if (disabled === 0 || process.getuid?.() === 0) {
    if (disabled < 2) return null;
  }
  const group = setting('/proc/sys/kernel/io_uring_group') ?? -1;
  if (disabled === 1 && process.getgroups?.().includes(group)) return null;
  return (
    `io_uring is switched off (kernel.io_uring_disabled is ${disabled}): ` +
    'allow it with `sysctl kernel.io_uring_disabled=0`.'
  );
}

/** @returns {string | null} */
function cargoRefusal() {
  const oldest = rustOldest();
  const advice = `install Rust ${oldest} or later from https://rustup.rs.`;
  const found = output('cargo', ['--version'])?.split(' ')[1];
  if (found === undefined) return `cargo is missing: ${advice}`;
  return isAtLeast(found, oldest) ? null : `cargo ${found} is too old: ${advice}`;
}

/**
 * One sentence for each thing that is missing or too old; empty when all is there.
 *
 * @returns {string[]}
 */
export function missingRequirements() {
  const missing = [];
  if (process.platform !== 'linux') {
    return [`ringfence runs on Linux ${KERNEL_OLDEST} or later, not on ${process.platform}.`];
  }
  if (!isAtLeast(process.versions.node, NODE_OLDEST)) {
    missing.push(
      `Node ${process.versions.node} is too old: install Node ${NODE_OLDEST} or later ` +
        'from https://nodejs.org.',
    );
  }
  if (!isAtLeast(release(), KERNEL_OLDEST)) {
    missing.push(
      `Linux ${release()} is too old for the ring: boot a kernel ${KERNEL_OLDEST} or later.`,
    );
  }
  const uring = uringRefusal();
  if (uring !== null) missing.push(uring);
  if (output('cc', ['--version']) === null) {
    missing.push('A C compiler is missing: install one, on Debian with `apt-get install gcc`.');
  }
  const cargo = cargoRefusal();
  if (cargo !== null) missing.push(cargo);
  return missing;
}
