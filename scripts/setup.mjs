// From a clean clone to something that runs: checks the machine, installs the packages, builds the
// addon and compiles the TypeScript. Each step is skipped when nothing it depends on has changed.
//
//   node scripts/setup.mjs        (npm run build)
import { copyFileSync, existsSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import process from 'node:process';
import { filesUnder, unlessUnchanged } from './lib/inputs.mjs';
import { findCargo, output, Refusal, root, run, runAsScript } from './lib/process.mjs';
import { missingRequirements } from './lib/requirements.mjs';

const ADDON = 'crates/uring/ringfence.node';

/** @param {string} what */
const say = (what) => process.stdout.write(`${what}\n`);

async function installPackages() {
  // Scripts and settings in package.json do not change what is installed.
  const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const { dependencies, devDependencies, overrides } = manifest;
  const step = {
    name: 'packages',
    inputs: ['package-lock.json'],
    facts: [
      process.version,
      process.arch,
      JSON.stringify([dependencies, devDependencies, overrides]),
    ],
    outputs: ['node_modules/.package-lock.json'],
  };
  await unlessUnchanged(step, async () => {
    say('installing packages');
    const result = await run('npm', ['ci', '--include=dev', '--no-audit', '--no-fund'], {
      quiet: true,
      env: { npm_config_loglevel: 'error' },
    });
    if (result.status === 0) return;
    throw new Refusal(`${result.text}\nThe npm packages cannot be installed: see above.`);
  });
}

/**
 * The path of the library in cargo's messages.
 *
 * @param {string} messages one JSON object a line
 */
function builtLibrary(messages) {
  for (const line of messages.split('\n').reverse()) {
    if (!line.includes('"compiler-artifact"')) continue;
    /** @type {{ target: { name: string }, filenames: string[] }} */
    const { target, filenames } = JSON.parse(line);
    const library = filenames.find((name) => name.endsWith('.so'));
    if (target.name === 'ringfence_uring' && library !== undefined) return library;
  }
  throw new Error('cargo names no library');
}

async function buildAddon() {
  const sources = ['cache', 'wire', 'uring'].flatMap((crate) => [
    `crates/${crate}/Cargo.toml`,
    ...filesUnder(`crates/${crate}/src`, /\.rs$/),
  ]);
  const step = {
    name: 'addon',
    inputs: ['Cargo.toml', 'Cargo.lock', 'crates/uring/build.rs', ...sources],
    facts: [output('cargo', ['--version']) ?? '', process.env['RUSTFLAGS'] ?? ''],
    outputs: [ADDON],
  };
  await unlessUnchanged(step, async () => {
    say('building the native module');
    const parameters = ['build', '--release', '--locked', '--lib', '--quiet'];
    parameters.push('--package', 'ringfence-uring', '--features', 'napi');
    parameters.push('--message-format', 'json-render-diagnostics');
    const result = await run('cargo', parameters, { quiet: true });
    if (result.status !== 0) {
      const words = result.text.split('\n').filter((line) => !line.startsWith('{"reason"'));
      throw new Refusal(`${words.join('\n')}\nThe native module does not build: see above.`);
    }
    // A running daemon has the old one mapped: it is replaced, never written to.
    const fresh = join(root, `${ADDON}.${process.pid}`);
    copyFileSync(builtLibrary(result.stdout), fresh);
    renameSync(fresh, join(root, ADDON));
  });
}

/** Compiled tests whose source is gone would still run. */
function removeOrphans() {
  for (const path of filesUnder('dist', /\.js(\.map)?$/)) {
    const source = path.replace(/^dist\//, '').replace(/\.js(\.map)?$/, '.ts');
    if (!existsSync(join(root, source))) rmSync(join(root, path));
  }
}

async function compile() {
  const folders = ['daemon', 'nbd', 'metrics', 'test', 'bench'];
  const step = {
    name: 'compile',
    inputs: [
      'tsconfig.json',
      'package-lock.json',
      'crates/uring/binding.d.cts',
      ...folders.flatMap((folder) => filesUnder(folder, /\.ts$/)),
    ],
    facts: [],
    outputs: ['dist/.tsbuildinfo'],
  };
  await unlessUnchanged(step, async () => {
    say('compiling');
    const tsc = join('node_modules', 'typescript', 'bin', 'tsc');
    const result = await run(process.execPath, [tsc, '--project', '.'], { quiet: true });
    if (result.status !== 0) {
      throw new Refusal(`${result.text}\nThe TypeScript sources do not compile: see above.`);
    }
    removeOrphans();
  });
}

/** Seccomp refuses a ring without a trace in any setting: only trying shows it. */
function tryRing() {
  const { probe } = createRequire(import.meta.url)('../crates/uring/binding.cjs');
  /** @type {{ measure: string, up: boolean, advice: string | null }[]} */
  const guards = probe(0n, 0n);
  const uring = guards.find((guard) => guard.measure === 'io_uring');
  if (uring !== undefined && !uring.up) {
    throw new Refusal(uring.advice ?? 'io_uring is not available here.');
  }
}

/**
 * Makes everything ready to run.
 *
 * @param {() => void} [begin] called once nothing is missing: what it begins runs beside the build,
 *   which keeps one processor busy for the most part
 * @throws {Refusal} with a sentence for each thing that is missing, or with the words of the step
 *   that failed
 */
export async function setup(begin = () => {}) {
  findCargo();
  const missing = missingRequirements();
  if (missing.length > 0) throw new Refusal(missing.join('\n'));
  begin();
  await installPackages();
  await buildAddon();
  await compile();
  tryRing();
}

await runAsScript(import.meta.url, async () => {
  await setup();
  return 0;
});
