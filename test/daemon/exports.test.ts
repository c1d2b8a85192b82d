import test from 'ava';
import fc from 'fast-check';
import { checkExportSet, EXPORT_DEFAULTS, parseExport } from '../../daemon/exports.ts';

test('an export with nothing but its origin has the defaults', (t) => {
  t.deepEqual(parseExport('disk=/dev/sdb'), {
    name: 'disk',
    origin: '/dev/sdb',
    ...EXPORT_DEFAULTS,
  });
});

test('options follow the origin in any order', (t) => {
  const given =
    'disk=/dev/sdb,order=relaxed,wait=5s,origin-timeout=1m,mode=writethrough,dirty-max=4GiB';
  t.deepEqual(parseExport(given), {
    name: 'disk',
    origin: '/dev/sdb',
    mode: 'writethrough',
    order: 'relaxed',
    dirtyBytesMax: 4n << 30n,
    waitMs: 5_000,
    originTimeoutMs: 60_000,
  });
});

test('an origin may hold an equals sign', (t) => {
  t.is(parseExport('disk=/a=b').origin, '/a=b');
});

test('what is wrong is named', (t) => {
  const wrong: readonly (readonly [string, string, RegExp])[] = [
    ['disk', 'RF_EXPORT_SYNTAX', /names no origin/],
    ['disk=', 'RF_EXPORT_SYNTAX', /origin is empty/],
    ['disk=,mode=readonly', 'RF_EXPORT_SYNTAX', /origin is empty/],
    ['=/dev/sdb', 'RF_EXPORT_NAME', /is empty/],
    ['a\nb=/dev/sdb', 'RF_EXPORT_NAME', /control character/],
    [`${'é'.repeat(128)}=/dev/sdb`, 'RF_EXPORT_NAME', /longer than 255 bytes/],
    ['disk=/x,mode=fast', 'RF_EXPORT_SYNTAX', /mode "fast" is none of writeback/],
    ['disk=/x,order=', 'RF_EXPORT_SYNTAX', /order "" is none of strict/],
    ['disk=/x,ordre=strict', 'RF_EXPORT_SYNTAX', /"ordre" is none of its options/],
    ['disk=/x,mode=readonly,mode=readonly', 'RF_EXPORT_SYNTAX', /"mode" twice/],
    ['disk=/x,wait=5', 'RF_DURATION', /not a duration/],
    ['disk=/x,wait=0ms', 'RF_DURATION_RANGE', /"0ms" is out of range: .* from 1ms to 1440m/],
    ['disk=/x,origin-timeout=0s', 'RF_DURATION_RANGE', /from 1ms to 1440m/],
    ['disk=/x,dirty-max=1MB', 'RF_SIZE', /not a size/],
    ['disk=/x,dirty-max=0', 'RF_SIZE_SMALL', /"0" is too small: write 1 MiB or more/],
    ['disk=/x,dirty-max=1023KiB', 'RF_SIZE_SMALL', /1 MiB or more/],
  ];
  for (const [text, code, message] of wrong) {
    t.throws(() => parseExport(text), { code, message }, text);
  }
});

test('any text is an export or a refusal of one line', (t) => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      try {
        t.true(parseExport(text).name.length > 0);
      } catch (error) {
        t.true(error instanceof Error && error.name === 'RingfenceError');
        t.notRegex(error instanceof Error ? error.message : '', /[\r\n]/);
      }
    }),
  );
});

test('exports share neither a name nor more than the slots there are', (t) => {
  const one = parseExport('a=/x');
  t.notThrows(() => checkExportSet([one, parseExport('b=/x')]));
  t.throws(() => checkExportSet([one, one]), { code: 'RF_EXPORT_TWICE' });
  const many = Array.from({ length: 65 }, (_, index) => parseExport(`e${index}=/x`));
  t.notThrows(() => checkExportSet(many.slice(1)));
  t.throws(() => checkExportSet(many), { code: 'RF_EXPORTS_TOO_MANY', message: /^65 .* 64/ });
});
