import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { join, resolve } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { Context } from '../../daemon/cli/context.ts';
import { buildProgram, main } from '../../daemon/cli/main.ts';
import { FILE_KEYS } from '../../daemon/config-file.ts';
import { startControlServer } from '../../daemon/control/server.ts';
import { ringfenceError } from '../../daemon/errors.ts';
import type { Status } from '../../daemon/status.ts';
import { createFakeNative, DESCRIPTION, type FakeNative } from './fake-native.ts';
import { temporaryFolder } from './temporary.ts';

interface Command {
  readonly native: FakeNative;
  /** What the operator says when asked; null: nobody is there. */
  answer: string | null;
  /** What happens while the question waits. */
  meanwhile: () => Promise<void>;
  readonly questions: string[];
  output: string;
  errors: string;
  /** Resolves when something is written. */
  written: Promise<void>;
  run(...words: readonly string[]): Promise<number>;
}

function command(): Command {
  let wake = (): void => undefined;
  const self: Command = {
    native: createFakeNative(),
    answer: null,
    meanwhile: async () => undefined,
    questions: [],
    output: '',
    errors: '',
    written: new Promise((resolve) => {
      wake = resolve;
    }),
    run: (...words) => main(['node', 'ringfence', ...words], context),
  };
  const context: Context = {
    write: (text) => {
      self.output += text;
      wake();
    },
    writeError: (text) => {
      self.errors += text;
    },
    ask: async (question) => {
      self.questions.push(question);
      await self.meanwhile();
      return self.answer;
    },
    native: () => self.native,
  };
  return self;
}

/** A file that can stand for a device. */
async function deviceFile(t: ExecutionContext, name = 'device'): Promise<string> {
  const path = join(await temporaryFolder(t), name);
  await writeFile(path, '');
  await truncate(path, 256 << 20);
  return path;
}

function formatted({ native }: Command): boolean {
  return native.calls.some(([name]) => name === 'format');
}

/** A failure is one line, says its code, and has an exit code of its kind. */
function assertRefused(t: ExecutionContext, self: Command, exit: number, message: RegExp): void {
  t.true(exit === 1 || exit === 2, `exit code ${exit}`);
  t.regex(self.errors, message);
  t.is(self.errors.trim().split('\n').length, 1, self.errors);
}

test('help is help, and nothing at all is a mistake', async (t) => {
  const help = command();
  t.is(await help.run('--help'), 0);
  for (const verb of [
    ...['format', 'serve', 'status', 'flush', 'drain', 'resolve', 'stop', 'doctor', 'check'],
    ...['attach', 'detach'],
  ]) {
    t.regex(help.output, new RegExp(`^  ${verb}\\b`, 'm'));
    const own = command();
    t.is(await own.run(verb, '--help'), 0, own.errors);
    t.regex(own.output, new RegExp(`^Usage: ringfence ${verb}\\b`));
  }
  t.is(await command().run('--version'), 0);
  t.is(await command().run(), 2);
});

test('what is not understood is a sentence and exit code 2', async (t) => {
  const wrong: readonly (readonly [readonly string[], RegExp])[] = [
    [['fromat', '/dev/x'], /unknown command 'fromat'/],
    [['format'], /missing required argument 'device'/],
    [['format', '/dev/x', '--force'], /unknown option '--force'/],
    [['format', '/dev/x', '--segment', '1MB'], /--segment.*"1MB" is not a size/],
    [['serve', '--export', 'disk'], /--export.*names no origin/],
    [['serve', '--listen', '10809'], /--listen.*not an address/],
    [['serve', '--metrics', 'unix:/x'], /--metrics.*not an address/],
    [['serve', '--control', ''], /--control.*a path cannot be empty/i],
    [['status', '--control', ''], /--control.*a path cannot be empty/i],
    [['serve', '--reserve', 'much'], /--reserve.*not a size/],
    [['serve', '--connections-max', '0'], /--connections-max.*from 1 to/],
    [['serve', '--spin-us', '1e3'], /--spin-us.*from 0 to/],
    [['serve', '--log-level', 'loud'], /--log-level.*one of trace/],
    [
      ['serve', '--config', '/does/not/exist.toml'],
      /does not exist; check what --config names\. \[RF_CONFIG_UNREADABLE\]/,
    ],
    [['serve'], /No cache device was given.* \[RF_CONFIG_MISSING\]/],
  ];
  for (const [words, message] of wrong) {
    const self = command();
    t.is(await self.run(...words), 2, words.join(' '));
    t.regex(self.errors, message);
    t.regex(self.errors, /^ringfence: /);
    t.deepEqual(self.native.calls, []);
  }
});

test('a number as the control socket is a path, and no port', async (t) => {
  const server = createServer((socket) => socket.destroy()).listen(0, '127.0.0.1');
  t.teardown(() => server.close());
  await once(server, 'listening');
  const port = `${(server.address() as AddressInfo).port}`;
  const self = command();
  t.is(await self.run('status', '--control', port), 1);
  const absolute = resolve(port);
  t.true(self.errors.includes(`No daemon answers on the control socket ${absolute} `), self.errors);
});

test('everything that serve understands can stand in the file', (t) => {
  const serve = buildProgram({ ...silent, native: createFakeNative }).commands.find(
    (verb) => verb.name() === 'serve',
  );
  const options = (serve?.options ?? []).map(({ long }) => long?.slice(2).replaceAll('-', '_'));
  t.deepEqual(options.filter((name) => name !== 'config').sort(), [...FILE_KEYS.top].sort());
});

const silent = { write: () => undefined, writeError: () => undefined, ask: async () => null };

test('format shows what is there, asks, and formats after "yes"', async (t) => {
  const path = await deviceFile(t);
  const self = command();
  self.native.description = null;
  self.answer = 'yes';
  t.is(await self.run('format', path, '--segment', '4MiB'), 0, self.errors);
  t.is(self.questions.length, 1);
  t.regex(self.output, /^size +256 MiB \(268435456 bytes\)$/m);
  t.regex(self.output, /^signatures none$/m);
  t.deepEqual(self.native.calls.at(-1), ['format', path, 4n << 20n]);
  t.true(self.output.includes(DESCRIPTION.uuid));
});

test('format shows the signatures that it would destroy', async (t) => {
  const path = await deviceFile(t);
  // The magic of a swap area lies at the end of its first page.
  const page = Buffer.alloc(4096);
  page.write('SWAPSPACE2', 4086, 'latin1');
  page.writeUInt32LE(1, 1024);
  page.writeUInt32LE(1000, 1028);
  await writeFile(path, page, { flag: 'r+' });
  const self = command();
  self.native.description = null;
  t.is(await self.run('format', path, '--dry-run'), 0, self.errors);
  t.regex(self.output, /^signatures swap/m);
  t.false(formatted(self));
});

test('format leaves the device alone unless it is told "yes"', async (t) => {
  const path = await deviceFile(t);
  for (const answer of [null, '', 'y', 'no']) {
    const self = command();
    self.answer = answer;
    const exit = await self.run('format', path);
    assertRefused(t, self, exit, /was left as it is/);
    t.false(formatted(self));
  }
});

test('format leaves what has changed while it asked', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'by-id');
  const device = await deviceFile(t);
  const other = await deviceFile(t, 'other');
  await symlink(device, path);
  const dirty = [{ name: 'disk', sizeBytes: 1n, originIdentity: 'x', dirtyBytes: 8192n }];
  const changes: readonly (readonly [(self: Command) => Promise<void>, RegExp])[] = [
    [
      async ({ native }) => {
        native.description = { ...DESCRIPTION, exports: dirty };
      },
      /8 KiB that the origin of "disk" lacks.*RF_CACHE_DIRTY/,
    ],
    [
      async ({ native }) => {
        native.description = DESCRIPTION;
      },
      /RF_DEVICE_CHANGED/,
    ],
    [() => rm(device), /RF_DEVICE_MISSING/],
    [() => rm(path).then(() => symlink(other, path)), /not what it was.*RF_DEVICE_CHANGED/],
  ];
  for (const [change, message] of changes) {
    const self = command();
    self.native.description = null;
    self.answer = 'yes';
    self.meanwhile = () => change(self);
    assertRefused(t, self, await self.run('format', path), message);
    t.is(self.questions.length, 1);
    t.false(formatted(self));
    await writeFile(device, '');
    await truncate(device, 256 << 20);
  }
});

test('format opens the device that it looked at, and not the link to it', async (t) => {
  const device = await deviceFile(t);
  const path = `${device}-link`;
  await symlink(device, path);
  const self = command();
  t.is(await self.run('format', path, '--yes', '--segment', '4MiB'), 0, self.errors);
  t.deepEqual(self.native.calls.at(-1), ['format', device, 4n << 20n]);
  t.true(self.output.includes(`${path} is now the cache`));
});

test('format does not ask with --yes, and writes nothing with --dry-run', async (t) => {
  const path = await deviceFile(t);
  const yes = command();
  t.is(await yes.run('format', path, '--yes'), 0);
  t.deepEqual(yes.questions, []);
  t.true(formatted(yes));
  const dry = command();
  t.is(await dry.run('format', path, '--yes', '--dry-run'), 0);
  t.regex(dry.output, /Nothing was written/);
  t.false(formatted(dry));
});

test('format keeps dirty data unless the right cache is named', async (t) => {
  const path = await deviceFile(t);
  const exports = [
    { name: 'clean', sizeBytes: 1n, originIdentity: 'x', dirtyBytes: 0n },
    { name: 'disk', sizeBytes: 1n, originIdentity: 'x', dirtyBytes: 8192n },
  ];
  const other = 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  for (const words of [[], ['--discard-dirty', other], ['--discard-dirty', 'unreadable']]) {
    const self = command();
    self.native.description = { ...DESCRIPTION, exports };
    const exit = await self.run('format', path, '--yes', ...words);
    assertRefused(
      t,
      self,
      exit,
      /8 KiB that the origin of "disk" lacks.*--discard-dirty 01234567-/,
    );
    t.false(formatted(self));
  }
  const named = command();
  named.native.description = { ...DESCRIPTION, exports };
  t.is(await named.run('format', path, '--yes', '--discard-dirty', DESCRIPTION.uuid), 0);
  t.true(formatted(named));
});

test('format keeps a cache that it cannot read unless told that it may go', async (t) => {
  const path = await deviceFile(t);
  const self = command();
  self.native.failures.set('describe', new Error('formatted by a newer version'));
  const exit = await self.run('format', path, '--yes');
  assertRefused(t, self, exit, /formatted by a newer version.*--discard-dirty unreadable/);
  t.false(formatted(self));
  self.native.failures.set('describe', new Error('formatted by a newer version'));
  t.is(await self.run('format', path, '--yes', '--discard-dirty', 'unreadable'), 0);
  t.true(formatted(self));
});

test('format refuses what cannot become a cache before it asks, in a dry run too', async (t) => {
  const path = await deviceFile(t);
  for (const [words, message] of [
    [['--segment', '5MiB'], /segment of 5 MiB is not possible: .* from 4 MiB to 256 MiB/],
    [['--segment', '2MiB'], /power of two from 4 MiB/],
    [['--segment', '512MiB'], /power of two from 4 MiB/],
    [['--segment', '32MiB'], /has 256 MiB, .* of 32 MiB needs at least 385 MiB: use.*_SMALL/],
    [['--segment', '256MiB'], /has 256 MiB, .* of 256 MiB needs at least 3073 MiB: use.*_SMALL/],
    [['--segment', '4200000'], /A segment of 4200000 bytes is not possible/],
  ] as const) {
    for (const more of [[], ['--yes'], ['--dry-run']]) {
      const self = command();
      self.answer = 'yes';
      t.is(await self.run('format', path, ...words, ...more), 2);
      t.regex(self.errors, message);
      t.deepEqual(self.questions, []);
      t.false(formatted(self));
    }
  }
});

test('format refuses what is no device and says what the engine refuses', async (t) => {
  const folder = await temporaryFolder(t);
  for (const [path, message] of [
    [join(folder, 'missing'), /does not exist.*RF_DEVICE_MISSING/],
    [folder, /is a directory.*RF_DEVICE_KIND/],
  ] as const) {
    const self = command();
    assertRefused(t, self, await self.run('format', path, '--yes'), message);
    t.deepEqual(self.native.calls, []);
  }
  const small = command();
  small.native.failures.set('format', new Error('the device is too small.'));
  const exit = await small.run('format', await deviceFile(t), '--yes');
  assertRefused(t, small, exit, /was not formatted: the device is too small\. \[RF_FORMAT\]/);
});

// Serial: a daemon's handlers of signals and exceptions belong to the whole process.
test.serial('serve runs until a signal comes, and exits with 0', async (t) => {
  const cache = await deviceFile(t, 'cache');
  const origin = await deviceFile(t, 'origin');
  const folder = await temporaryFolder(t);
  const self = command();
  const socket = `unix:${folder}/nbd.sock`;
  const control = join(folder, 'control.sock');
  const exit = self.run(
    ...['serve', '--cache', cache, '--export', `disk=${origin}`, '--listen', socket],
    ...['--control', control, '--metrics', '127.0.0.1:0', '--log-level', 'fatal'],
  );
  await self.written;
  t.regex(self.output, new RegExp(`^NBD: +${socket}$`, 'm'));
  t.regex(self.output, /^metrics: http:\/\/127\.0\.0\.1:[1-9]\d*\/metrics$/m);
  t.true(self.output.includes(`control: ${control}`));
  const attach = `attach disk --connect unix:${folder}/nbd.sock\n`;
  t.true(self.output.includes(attach), self.output);

  const status = command();
  t.is(await status.run('status', '--control', control), 0);
  t.regex(status.output, /^disk +1 GiB +writeback +strict/m);

  process.emit('SIGTERM', 'SIGTERM');
  t.is(await exit, 0, self.errors);
  t.true(self.native.calls.some(([name]) => name === 'shutdown'));
  t.is(process.listenerCount('SIGTERM'), 0, 'the handlers are gone with the daemon');
});

test.serial('serve reads its file', async (t) => {
  const cache = await deviceFile(t, 'cache');
  const origin = await deviceFile(t, 'origin');
  const folder = await temporaryFolder(t);
  const control = join(folder, 'control.sock');
  const file = join(folder, 'ringfence.toml');
  const lines = [`cache = "${cache}"`, 'listen = "127.0.0.1:0"', `control = "${control}"`];
  const tables = ['[[export]]', 'name = "disk"', `origin = "${origin}"`, 'mode = "readonly"'];
  await writeFile(file, [...lines, 'log_level = "fatal"', ...tables].join('\n'));
  const self = command();
  const exit = self.run('serve', '--config', file);
  await self.written;
  t.is(self.native.opened()?.exports[0]?.mode, 'readonly');
  const stop = command();
  t.is(await stop.run('stop', '--control', control, '--json'), 0, stop.errors);
  t.deepEqual(JSON.parse(stop.output), { stopped: true });
  t.is(await exit, 0);
});

test('serve says in a sentence why it does not start', async (t) => {
  const origin = await deviceFile(t, 'origin');
  const cache = await deviceFile(t, 'cache');
  const control = join(await temporaryFolder(t), 'control.sock');
  const rest = ['--listen', '127.0.0.1:0', '--control', control, '--log-level', 'fatal'];
  const missing = command();
  const words = ['serve', '--cache', `${cache}-x`, '--export', `disk=${origin}`, ...rest];
  assertRefused(t, missing, await missing.run(...words), /cache device .*-x does not exist/);
  const newer = command();
  newer.native.failures.set('open', new Error('cache device x: newer format'));
  const good = ['serve', '--cache', cache, '--export', `disk=${origin}`, ...rest];
  t.is(await newer.run(...good), 1);
  t.regex(newer.errors, /^ringfence: The cache cannot be served: cache device x: newer format\. /);
  t.is(newer.output, '');
});

const STATUS: Status = {
  cache: {
    path: '/dev/x',
    uuid: DESCRIPTION.uuid,
    size_bytes: 1 << 30,
    used_bytes: 1 << 29,
    unserved_dirty_bytes: 4096,
    segment_bytes: 1 << 24,
    segments: { free: 30, used: 32, reclaiming: 0 },
    latched: true,
    exports_max: 64,
    recovered_records: 0,
    recovery_ms: 0,
  },
  reserve: {
    size_bytes: 4096,
    used_bytes: 0,
    connections_max: 16,
    pools: {},
    ring_allocations: 0,
  },
  index: { size_bytes: 0, leaves: 1, leaves_used: 0 },
  guards: { io_flusher: { up: false, advice: 'Give it a capability.' } },
  exports: [],
  listen: ['unix:/run/x.sock'],
};

test('status is JSON for programs and a table for people', async (t) => {
  const control = join(await temporaryFolder(t), 'control.sock');
  const server = await startControlServer(control, async () => STATUS);
  t.teardown(() => server.close());
  const json = command();
  t.is(await json.run('status', '--json', '--control', control), 0);
  t.deepEqual(JSON.parse(json.output), STATUS);
  const people = command();
  t.is(await people.run('status', '--control', control), 0);
  t.regex(people.output, /512 MiB of 1 GiB in use/);
  t.regex(people.output, /index +.* of [0-9]+ leaves in use/);
  t.regex(people.output, /io_flusher +down +Give it a capability\./);
  t.regex(people.output, /holds 4 KiB for exports that are not served/);
  t.regex(people.output, /The cache device failed/);
});

/** A daemon's control socket, and what it was asked. */
async function controlServer(t: ExecutionContext) {
  const control = join(await temporaryFolder(t), 'control.sock');
  const asked: unknown[] = [];
  const server = await startControlServer(control, async (request) => {
    asked.push(request);
    return null;
  });
  t.teardown(() => server.close());
  return { control, asked };
}

test('flush and drain name their export', async (t) => {
  const { control, asked } = await controlServer(t);
  const self = command();
  t.is(await self.run('flush', '--control', control), 0);
  t.is(await self.run('drain', 'disk', '--control', control), 0);
  t.deepEqual(asked, [
    { verb: 'flush', export: null },
    { verb: 'drain', export: 'disk' },
  ]);
  t.regex(self.output, /The origin of "disk" has everything/);
});

test('resolve names its export and wants the loss to be accepted', async (t) => {
  const { control, asked } = await controlServer(t);
  const self = command();
  t.is(await self.run('resolve', 'disk', '--control', control), 2);
  t.regex(self.errors, /--accept-loss/);
  t.deepEqual(asked, []);
  t.is(await self.run('resolve', 'disk', '--accept-loss', '--control', control), 0);
  t.deepEqual(asked, [{ verb: 'resolve', export: 'disk', accept_loss: true }]);
  t.regex(self.output, /"disk" is given up/);
});

test('without a daemon every verb that needs one says so', async (t) => {
  const control = join(await temporaryFolder(t), 'control.sock');
  for (const verb of ['status', 'flush', 'drain', 'stop']) {
    const self = command();
    const exit = await self.run(verb, '--control', control);
    assertRefused(t, self, exit, /No daemon answers on the control socket/);
    t.is(exit, 1, verb);
  }
});

test('attach asks the daemon where it listens, and says why it cannot reach it', async (t) => {
  const control = join(await temporaryFolder(t), 'control.sock');
  const listen = ['0.0.0.0:1', 'unix:/run/x.sock'];
  const server = await startControlServer(control, async () => ({ ...STATUS, listen }));
  t.teardown(() => server.close());
  const asked = command();
  const exit = await asked.run('attach', 'disk', '--control', control, '--log-level', 'fatal');
  t.is(exit, 1);
  t.deepEqual(asked.native.calls, [['connectNbd', 'unix:/run/x.sock']]);
  t.regex(asked.errors, /at unix:\/run\/x\.sock cannot be used: nobody is there\. \[RF_NEGOT/);
  const told = command();
  await told.run('attach', 'disk', '--connect', '0.0.0.0:2', '--log-level', 'fatal');
  t.deepEqual(told.native.calls, [['connectNbd', '127.0.0.1:2']]);
  for (const [words, reason] of [
    [['attach', 'disk', '/dev/sda'], /"\/dev\/sda" is not a device of the nbd driver/],
    [['attach', 'disk', '--resend', '500ms'], /"500ms" is out of range: .* from 1s to/],
    [['attach', 'disk', '--block-size', '8192'], /512, 1024, 2048, 4096/],
  ] as const) {
    const wrong = command();
    t.is(await wrong.run(...words), 2);
    t.regex(wrong.errors, reason);
  }
});

test('detach lets go of a device, by force even of one that cannot be looked at', async (t) => {
  const absent = command();
  t.is(await absent.run('detach', '/dev/nbd9999'), 1);
  t.deepEqual(absent.native.calls, []);
  const forced = command();
  t.is(await forced.run('detach', '/dev/nbd9999', '--force'), 0);
  t.deepEqual(forced.native.calls, [['detachNbd', 9999]]);
  t.is(forced.output, '/dev/nbd9999 is detached.\n');
  const refused = command();
  refused.native.failures.set('detachNbd', new Error('it is not attached'));
  t.is(await refused.run('detach', '/dev/nbd9999', '--force'), 1);
  t.regex(refused.errors, /^ringfence: \/dev\/nbd9999 is not detached: it is not attached\. /);
});

test('doctor shows each protection with its advice, and what is on a device', async (t) => {
  const self = command();
  self.native.guards = [
    { measure: 'io_uring', up: true, advice: null },
    { measure: 'memory_locked', up: false, advice: 'Set LimitMEMLOCK=infinity.' },
  ];
  self.native.description = {
    ...DESCRIPTION,
    exports: [{ name: 'disk', sizeBytes: 1n << 30n, originIdentity: 'y', dirtyBytes: 8192n }],
  };
  t.is(await self.run('doctor', '--cache', await deviceFile(t)), 0);
  t.regex(self.output, /^ +memory_locked +down +Set LimitMEMLOCK=infinity\.$/m);
  t.regex(self.output, /^ +io_uring +up$/m);
  t.regex(self.output, /^ +nbd driver +(loaded|not loaded; .* "modprobe nbd")/m);
  t.true(self.output.includes(DESCRIPTION.uuid));
  t.regex(self.output, /export "disk" +1 GiB, 8 KiB dirty, origin y/);
});

test('doctor asks for as much memory as a daemon takes by itself', async (t) => {
  const self = command();
  const path = await deviceFile(t);
  await truncate(path, 2 ** 40);
  await self.run('doctor');
  await self.run('doctor', '--cache', '/nowhere');
  await self.run('doctor', '--cache', path);
  const asked = self.native.calls.filter(([name]) => name === 'probe').map(([, ...all]) => all);
  const [reserve, least] = [256n << 20n, 16n << 20n];
  t.deepEqual(asked, [
    [reserve, least],
    [reserve, least],
    [reserve, 4n << 30n],
  ]);
});

test('doctor tells of the machine even where the device is missing', async (t) => {
  const self = command();
  self.native.guards = [{ measure: 'io_uring', up: true, advice: null }];
  const exit = await self.run('doctor', '--cache', '/nowhere');
  assertRefused(t, self, exit, /\/nowhere .*\[RF_DEVICE_MISSING\]/);
  t.regex(self.output, /^ +io_uring +up$/m);
});

test('doctor fails where the daemon could not run at all', async (t) => {
  const self = command();
  self.native.guards = [{ measure: 'io_uring', up: false, advice: 'Set io_uring_disabled to 0.' }];
  const exit = await self.run('doctor');
  assertRefused(t, self, exit, /cannot run here: Set io_uring_disabled to 0\. \[RF_UNSUITABLE\]/);
  t.regex(self.output, /^ +io_uring +down/m);
});

test('check calls nothing damage that only keeps it from reading', async (t) => {
  const path = await deviceFile(t);
  let errors = '';
  const context = {
    ...silent,
    native: () => {
      throw ringfenceError('RF_NATIVE_MISSING', ['no such file']);
    },
    writeError: (text: string) => {
      errors += text;
    },
  };
  t.is(await main(['node', 'ringfence', 'check', path], context), 2);
  t.regex(errors, /cannot be checked: The native part .* \[RF_CHECK_IMPOSSIBLE\]/);
});

test('an error that nobody foresaw is still a sentence', async (t) => {
  const self = command();
  self.native.failures.set('describe', new Error('x'));
  const context = { ...silent, native: () => JSON.parse('') };
  let errors = '';
  const exit = await main(['node', 'ringfence', 'doctor'], {
    ...context,
    writeError: (text) => {
      errors += text;
    },
  });
  t.is(exit, 1);
  t.regex(errors, /^ringfence: Something went wrong that should not: .* \[RF_INTERNAL\]\n/);
});

test('an uncaught exception stops the daemon orderly, with exit code 1', async (t) => {
  const cache = await deviceFile(t, 'cache');
  const origin = await deviceFile(t, 'origin');
  const control = join(await temporaryFolder(t), 'control.sock');
  const script = `
    import { main } from '${new URL('../../daemon/cli/main.js', import.meta.url).href}';
    import { createFakeNative } from '${new URL('./fake-native.js', import.meta.url).href}';
    const native = createFakeNative();
    const write = (text) => {
      process.stdout.write(text);
      if (text.includes('Attach')) setImmediate(() => { throw new Error('planted'); });
    };
    const context = { write, writeError: write, native: () => native, ask: async () => null };
    const words = process.argv.slice(1);
    process.exitCode = await main(['node', 'ringfence', ...words], context);
    write(native.calls.some(([name]) => name === 'shutdown') ? 'shut down' : 'not shut down');
  `;
  const words = ['serve', '--cache', cache, '--export', `disk=${origin}`, '--control', control];
  const child = spawn(
    process.execPath,
    ['--input-type=module', '-e', script, '--', ...words, '--listen', '127.0.0.1:0'],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  let output = '';
  let errors = '';
  child.stdout.on('data', (bytes: Buffer) => {
    output += bytes.toString();
  });
  child.stderr.on('data', (bytes: Buffer) => {
    errors += bytes.toString();
  });
  const [exit] = await once(child, 'close');
  t.is(exit, 1, output + errors);
  t.regex(output, /shut down$/);
  t.notRegex(output, /not shut down/);
  t.regex(output, /planted/);
});
