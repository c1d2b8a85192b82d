import test from 'ava';
import { temporaryFolder } from '../support/loop.ts';
import { testScope } from '../support/scope.ts';
import { startGuest } from './machine.ts';

test.serial('the guest boots with the kernel client and the programs of the host', async (t) => {
  t.timeout(180_000);
  const scope = testScope(t);
  const guest = await startGuest(scope, temporaryFolder(scope));
  t.regex(await guest.run('uname -r'), /cloud/);
  t.regex(await guest.run('nbd-client --version 2>&1; test -b /dev/nbd0 && echo there'), /there/);
  t.is((await guest.runAnyway('exit 3')).exitCode, 3);
});
