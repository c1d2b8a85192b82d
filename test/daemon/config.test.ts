import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import test from 'ava';
import { CONFIG_DEFAULTS, completeConfig, defaultControlPath } from '../../daemon/config.ts';
import { lineOfKey, parseConfigFile, readConfigFile } from '../../daemon/config-file.ts';
import { EXPORT_DEFAULTS, parseExport } from '../../daemon/exports.ts';

const WHOLE = `
# Every key there is.
cache = "/dev/nvme0n1"
listen = ["unix:/run/ringfence/nbd.sock", "127.0.0.1:10809"]
socket_mode = "660"
metrics = "127.0.0.1:9810"
control = "/run/ringfence/control.sock"
reserve = "1GiB"
connections_max = 64
spin_us = 0
cpu = 1
destage_high = 80
destage_age = "30s"
destage_idle = "250ms"
accept_loss = true
index = "32MiB"
memory_tier_percent = 20
log_level = "warn"

[[export]]
name = "disk"
origin = "/dev/sdb"
mode = "writethrough"
order = "relaxed"
dirty_max = "4GiB"
wait = "5s"
origin_timeout = "2s"

[[export]]
name = "image"
origin = "/srv/image, with a comma.raw"
`;

test('a number as the control socket is a path, and no port', (t) => {
  const said = parseConfigFile('x.toml', WHOLE.replace('/run/ringfence/control.sock', '9810'));
  t.is(completeConfig(said, {}).control, resolve('9810'));
});

test('too little dirty data is refused with its line', (t) => {
  // Somebody who means 4 GiB.
  const source = WHOLE.replace('dirty_max = "4GiB"', 'dirty_max = 4');
  const message = /^x\.toml:25: .*"4" is too small: write 1 MiB or more\./;
  t.throws(() => parseConfigFile('x.toml', source), { code: 'RF_CONFIG_VALUE', message });
});

test('everything that can be said is read', (t) => {
  const said = parseConfigFile('x.toml', WHOLE);
  t.deepEqual(completeConfig(said, {}), {
    cache: '/dev/nvme0n1',
    listen: ['unix:/run/ringfence/nbd.sock', '127.0.0.1:10809'],
    socketMode: 0o660,
    metrics: '127.0.0.1:9810',
    control: '/run/ringfence/control.sock',
    reserveBytes: 1n << 30n,
    connectionsMax: 64,
    spinUs: 0,
    cpu: 1,
    destageHighPercent: 80,
    destageAgeMs: 30_000,
    destageIdleMs: 250,
    acceptLoss: true,
    indexBytes: 32n << 20n,
    memoryTierPercent: 20,
    logLevel: 'warn',
    exports: [
      {
        name: 'disk',
        origin: '/dev/sdb',
        mode: 'writethrough',
        order: 'relaxed',
        dirtyBytesMax: 4n << 30n,
        waitMs: 5_000,
        originTimeoutMs: 2_000,
      },
      { name: 'image', origin: '/srv/image, with a comma.raw', ...EXPORT_DEFAULTS },
    ],
  });
});

test('the command line replaces what the file says, a list as a whole', (t) => {
  const file = parseConfigFile('x.toml', WHOLE);
  const config = completeConfig(file, {
    listen: ['[::1]:1'],
    reserveBytes: 5n,
    exports: [parseExport('other=/x')],
    metrics: undefined,
  });
  t.deepEqual(config.listen, ['[::1]:1']);
  t.is(config.reserveBytes, 5n);
  t.deepEqual(
    config.exports.map(({ name }) => name),
    ['other'],
  );
  t.is(config.metrics, '127.0.0.1:9810');
});

test('what nobody says has its default', (t) => {
  const said = { cache: '/c', exports: [parseExport('a=/x')], listen: ['unix:/s'] };
  t.deepEqual(completeConfig({}, said), {
    ...CONFIG_DEFAULTS,
    control: defaultControlPath(),
    ...said,
  });
});

test('what must be said is asked for by its option and its key', (t) => {
  const exports = [parseExport('a=/x')];
  const code = 'RF_CONFIG_MISSING';
  t.throws(() => completeConfig({}, {}), { code, message: /--cache DEVICE .*"cache"/ });
  t.throws(() => completeConfig({ cache: '/c' }, {}), {
    code,
    message: /--export .*\[\[export\]\]/,
  });
  t.throws(() => completeConfig({ cache: '/c', exports }, {}), { code, message: /--listen/ });
  const listen = Array.from({ length: 17 }, (_, index) => `127.0.0.1:${index + 1}`);
  t.throws(() => completeConfig({ cache: '/c', exports, listen }, {}), {
    code: 'RF_LISTEN_TOO_MANY',
    message: /^17 addresses .* there can be 16/,
  });
});

test('an address to listen on is given once, but for any port', (t) => {
  const rest = { cache: '/c', exports: [parseExport('a=/x')] };
  for (const place of ['unix:/run/s', '127.0.0.1:10809']) {
    t.throws(() => completeConfig({ ...rest, listen: [place, '[::1]:1', place] }, {}), {
      code: 'RF_LISTEN_TWICE',
      message: `The address ${place} was given twice: leave one out.`,
    });
  }
  const anyPorts = ['127.0.0.1:0', '127.0.0.1:0'];
  t.deepEqual(completeConfig({ ...rest, listen: anyPorts }, {}).listen, anyPorts);
});

test('an unknown key is an error with its line', (t) => {
  const source = WHOLE.replace('spin_us = 0', 'spin = 0');
  const line = source.split('\n').indexOf('spin = 0') + 1;
  t.throws(() => parseConfigFile('x.toml', source), {
    code: 'RF_CONFIG_UNKNOWN_KEY',
    message: new RegExp(`^x\\.toml:${line}: unknown key "spin"; .*spin_us`),
  });
});

test('an unknown key of an export is found in the right export', (t) => {
  const source = `${WHOLE}\n# the last one\nordre = "strict"\n`;
  const line = source.split('\n').indexOf('ordre = "strict"') + 1;
  t.throws(() => parseConfigFile('x.toml', source), {
    code: 'RF_CONFIG_UNKNOWN_KEY',
    message: new RegExp(`^x\\.toml:${line}: unknown key "ordre"; .*name, origin, mode, order`),
  });
});

test('an unknown table is an unknown key', (t) => {
  t.throws(() => parseConfigFile('x.toml', '\n[cache_device]\npath = "/x"\n'), {
    code: 'RF_CONFIG_UNKNOWN_KEY',
    message: /^x\.toml:2: unknown key "cache_device"/,
  });
});

test('a value that cannot be used is named with its line', (t) => {
  const wrong: readonly (readonly [string, string, RegExp])[] = [
    ['reserve = "1GiB"', 'reserve = "1GB"', /"reserve".*"1GB" is not a size/],
    ['reserve = "1GiB"', 'reserve = -1', /"reserve"/],
    ['cpu = 1', 'cpu = "one"', /"cpu".*expected number/i],
    ['spin_us = 0', 'spin_us = 1001', /"spin_us"/],
    ['destage_high = 80', 'destage_high = 0', /"destage_high"/],
    ['metrics = "127.0.0.1:9810"', 'metrics = "unix:/x"', /"metrics".*not an address/],
    ['listen = [', 'listen = ["nowhere",', /"listen".*"nowhere" is not an address/],
    ['order = "relaxed"', 'order = "loose"', /"order".*strict/],
    ['wait = "5s"', 'wait = "5"', /"wait".*not a duration/],
    ['name = "disk"', 'name = ""', /"name".*is empty/],
    ['log_level = "warn"', 'log_level = "loud"', /"log_level".*trace/],
  ];
  for (const [right, replacement, message] of wrong) {
    const source = WHOLE.replace(right, replacement);
    const line = source.split('\n').findIndex((text) => text.startsWith(replacement)) + 1;
    const error = t.throws(() => parseConfigFile('x.toml', source), {
      code: 'RF_CONFIG_VALUE',
      message,
    });
    t.true(error?.message.startsWith(`x.toml:${line}: `), `${replacement}: ${error?.message}`);
  }
});

test('an export without an origin is reported where it stands', (t) => {
  t.throws(() => parseConfigFile('x.toml', 'cache = "/c"\n\n[[export]]\nname = "a"\n'), {
    code: 'RF_CONFIG_VALUE',
    message: /^x\.toml:3: .*"origin"/,
  });
});

test('a misspelt key is named before what is missing for want of it', (t) => {
  const source = 'cache = "/c"\n\n[[export]]\nnmae = "a"\norigin = "/x"\n';
  t.throws(() => parseConfigFile('x.toml', source), {
    code: 'RF_CONFIG_UNKNOWN_KEY',
    message: /^x\.toml:4: unknown key "nmae"; .*name, origin/,
  });
  t.throws(() => parseConfigFile('x.toml', source.replace('nmae = "a"\n', '')), {
    code: 'RF_CONFIG_VALUE',
    message: 'x.toml:3: the value of "name" cannot be used: it is missing.',
  });
});

test('what is no TOML is reported with its line', (t) => {
  t.throws(() => parseConfigFile('x.toml', 'cache = "/c"\nlisten = [\n'), {
    code: 'RF_CONFIG_SYNTAX',
    message: /^x\.toml:\d+: this is not TOML: [^\n]+$/,
  });
  t.throws(() => parseConfigFile('x.toml', 'cache = "/c"\ncache = "/d"\n'), {
    code: 'RF_CONFIG_SYNTAX',
    message: /^x\.toml:2: /,
  });
});

test('the line of a key whose value has several lines is where it starts', (t) => {
  const source = 'cache = "/c"\nlisten = [\n  "a:1",\n  "b:2",\n]\n';
  t.is(lineOfKey(source, ['listen']), 2);
  t.is(lineOfKey(source, ['listen', 1]), 2);
});

test('a file that cannot be read is one sentence', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'ringfence-'));
  t.teardown(() => rm(folder, { recursive: true }));
  const missing = join(folder, 'missing.toml');
  await t.throwsAsync(readConfigFile(missing), {
    code: 'RF_CONFIG_UNREADABLE',
    message: `The configuration ${missing} cannot be read: it does not exist; check what --config names.`,
  });
  const there = join(folder, 'there.toml');
  await writeFile(there, 'cache = "/c"\n');
  t.is((await readConfigFile(there)).cache, '/c');
});
