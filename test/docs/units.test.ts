/** What the systemd units must not say. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { projectRoot } from '../support/process.ts';

/** What makes systemd give a service a mount namespace of its own, by systemd.exec(5). */
const MOUNT_NAMESPACE = [
  /^(Private(Tmp|Devices|Mounts|IPC)|Protect(System|Home|Proc|ControlGroups|Kernel\w+))=/,
  /^(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec|Bind|BindReadOnly)Paths=/,
  /^(ProcSubset|TemporaryFileSystem|Root\w+|MountFlags|DynamicUser)=/,
];

test('attach has no mount namespace: it must see that its device is mounted', (t) => {
  const unit = readFileSync(join(projectRoot, 'contrib/ringfence-attach@.service'), 'utf8');
  const makesOne = (line: string) => MOUNT_NAMESPACE.some((pattern) => pattern.test(line));
  t.deepEqual(unit.split('\n').filter(makesOne), []);
});
