import test from 'ava';
import {
  attachCommand,
  formatAddress,
  nbdUri,
  parseAddress,
  parseTcpAddress,
} from '../../daemon/addresses.ts';

test('an address reads back as it is written', (t) => {
  for (const text of ['unix:/run/x.sock', '127.0.0.1:10809', '[::1]:0', 'localhost:65535']) {
    t.is(formatAddress(parseAddress(text)), text);
  }
});

test('what is no address is refused', (t) => {
  const wrong = ['', 'unix:', `unix:/${'x'.repeat(107)}`, '10809', ':10809', '::1:1', 'a:65536'];
  for (const text of [...wrong, 'a:b', 'http://a:1/', 'a b:1']) {
    t.throws(() => parseAddress(text), { code: 'RF_ADDRESS' }, text);
  }
  t.throws(() => parseTcpAddress('unix:/x'), { code: 'RF_ADDRESS' });
});

test('the attach command names the export and survives a restart', (t) => {
  const overTcp = attachCommand(parseAddress('0.0.0.0:10809'), 'disk');
  t.regex(overTcp, /^nbd-client 127\.0\.0\.1 10809 \/dev\/nbd0 /);
  t.regex(overTcp, / -name disk .*-persist/);
  const overUnix = attachCommand(parseAddress('unix:/run/my disks/s'), "it's");
  t.regex(overUnix, /^nbd-client -unix '\/run\/my disks\/s' \/dev\/nbd0 /);
  t.true(overUnix.includes(`-name 'it'\\''s' `));
});

test('URIs are escaped', (t) => {
  t.is(nbdUri(parseAddress('unix:/run/a&b'), 'a/b c'), 'nbd+unix:///a%2Fb%20c?socket=/run/a%26b');
  t.is(nbdUri(parseAddress('[::]:1'), 'x'), 'nbd://[::1]:1/x');
});
