import test from 'ava';
import {
  attachCommand,
  formatAddress,
  nbdUri,
  parseAddress,
  parseSocketMode,
  parseTcpAddress,
} from '../../daemon/addresses.ts';

test('an address reads back as it is written', (t) => {
  for (const text of ['unix:/run/x.sock', '127.0.0.1:10809', '[::1]:0', 'localhost:65535']) {
    t.is(formatAddress(parseAddress(text)), text);
  }
});

test('the mode of a socket is three octal digits', (t) => {
  t.is(parseSocketMode('660'), 0o660);
  t.is(parseSocketMode('0666'), 0o666);
  for (const text of ['', '66', '668', '1660', '0o660', '-rw', '6600']) {
    t.throws(() => parseSocketMode(text), { code: 'RF_SOCKET_MODE' }, text);
  }
});

test('a socket is known by its whole path, and that has a limit', (t) => {
  t.is(formatAddress(parseAddress('unix:a/../nbd.sock')), `unix:${process.cwd()}/nbd.sock`);
  const longest = `unix:/${'x'.repeat(106)}`;
  t.is(formatAddress(parseAddress(longest)), longest);
  t.throws(() => parseAddress(`${longest}x`), { code: 'RF_ADDRESS_LONG' });
});

test('what is no address is refused', (t) => {
  const wrong = ['', 'unix:', '10809', ':10809', '::1:1', 'a:65536'];
  for (const text of [...wrong, 'a:b', 'http://a:1/', 'a b:1']) {
    t.throws(() => parseAddress(text), { code: 'RF_ADDRESS' }, text);
  }
  t.throws(() => parseTcpAddress('unix:/x'), { code: 'RF_ADDRESS' });
});

test('the attach command names the export and an address that can be reached', (t) => {
  t.is(
    attachCommand('/opt/bin/ringfence', parseAddress('0.0.0.0:10809'), 'disk'),
    '/opt/bin/ringfence attach disk --connect 127.0.0.1:10809',
  );
  t.is(
    attachCommand('my bin/ringfence', parseAddress('unix:/run/my disks/s'), "it's"),
    "'my bin/ringfence' attach 'it'\\''s' --connect 'unix:/run/my disks/s'",
  );
});

test('URIs are escaped', (t) => {
  t.is(nbdUri(parseAddress('unix:/run/a&b'), 'a/b c'), 'nbd+unix:///a%2Fb%20c?socket=/run/a%26b');
  t.is(nbdUri(parseAddress('[::]:1'), 'x'), 'nbd://[::1]:1/x');
});
