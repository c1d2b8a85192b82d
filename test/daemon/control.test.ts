import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, chown, readdir, rename, stat, writeFile } from 'node:fs/promises';
import { createConnection, createServer, type Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { askDaemon } from '../../daemon/control/client.ts';
import { REQUEST_BYTES_MAX } from '../../daemon/control/protocol.ts';
import { type ControlHandler, startControlServer } from '../../daemon/control/server.ts';
import { ringfenceError } from '../../daemon/errors.ts';
import { projectRoot, run } from '../support/process.ts';
import { temporaryFolder } from './temporary.ts';

async function socketPath(t: ExecutionContext): Promise<string> {
  return join(await temporaryFolder(t), 'run', 'control.sock');
}

async function serve(
  t: ExecutionContext,
  handle: ControlHandler,
  patienceMs?: number,
): Promise<string> {
  const path = await socketPath(t);
  const server = await startControlServer(path, handle, patienceMs);
  t.teardown(() => server.close());
  return path;
}

/** Sends raw bytes and gives everything that comes back. */
async function raw(path: string, bytes: string, end: boolean): Promise<unknown> {
  const socket: Socket = createConnection(path);
  socket.write(bytes);
  if (end) socket.end();
  return JSON.parse(await text(socket));
}

test('a request is answered with its result', async (t) => {
  const path = await serve(t, async (request) => ({ asked: request }));
  const request = { verb: 'drain', export: 'disk' } as const;
  t.deepEqual(await askDaemon(path, request), { asked: request });
});

test('an error crosses the socket with its code and sentence', async (t) => {
  const path = await serve(t, async () => {
    throw ringfenceError('RF_EXPORT_UNKNOWN', ['x', '"disk"']);
  });
  await t.throwsAsync(askDaemon(path, { verb: 'flush', export: 'x' }), {
    code: 'RF_EXPORT_UNKNOWN',
    message: 'There is no export "x"; the daemon serves "disk".',
  });
});

test('only the owner may connect', async (t) => {
  const path = await serve(t, async () => null);
  t.is((await stat(path)).mode & 0o777, 0o600);
});

test('requests that are not understood are refused in a sentence', async (t) => {
  const path = await serve(t, async () => t.fail('nothing of this may be done'));
  const wrong: readonly (readonly [string, RegExp])[] = [
    ['rubbish\n', /not JSON/],
    ['{"verb":"format"}\n', /verb/],
    ['{"verb":"flush"}\n', /export/],
    ['{"verb":"stop","now":true}\n', /now/],
    ['{"verb":"stop"}', /ended before its line did/],
    ['x'.repeat(REQUEST_BYTES_MAX + 1), /longer than/],
  ];
  for (const [bytes, message] of wrong) {
    const { ok, error } = (await raw(path, bytes, true)) as {
      ok: boolean;
      error: { code: string; message: string };
    };
    t.false(ok);
    t.is(error.code, 'RF_CONTROL_REQUEST');
    t.regex(error.message, message);
  }
});

test('a client that leaves before its answer disturbs nobody', async (t) => {
  let release = (): void => undefined;
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  const started = new Promise<string>((resolve) => {
    void serve(t, async ({ verb }) => {
      if (verb === 'drain') await gate;
      return verb;
    }).then(resolve);
  });
  const path = await started;
  const leaving = createConnection(path);
  leaving.write('{"verb":"drain","export":null}\n');
  await once(leaving, 'connect');
  leaving.destroy();
  t.is(await askDaemon(path, { verb: 'status' }), 'status');
  release();
  t.is(await askDaemon(path, { verb: 'status' }), 'status');
});

/** Connects, and never closes. */
async function lingering(t: ExecutionContext, path: string): Promise<Socket> {
  const socket = createConnection({ path, allowHalfOpen: true });
  socket.on('error', () => undefined);
  t.teardown(() => socket.destroy());
  await once(socket, 'connect');
  return socket;
}

/** Asks until there is a place for it. */
async function askOnceThereIsRoom(path: string): Promise<unknown> {
  const untilMs = Date.now() + 30_000;
  for (;;) {
    try {
      return await askDaemon(path, { verb: 'status' });
    } catch (error) {
      if (Date.now() > untilMs) throw error;
      await setTimeout(50);
    }
  }
}

test('clients that have their answer and never close keep no place', async (t) => {
  const path = await serve(t, async () => 'status', 300);
  for (let count = 0; count < 64; count += 1) {
    const socket = await lingering(t, path);
    socket.write('{"verb":"status"}\n');
  }
  t.is(await askOnceThereIsRoom(path), 'status');
});

test('a request that comes byte by byte has one deadline', async (t) => {
  const path = await serve(t, async () => null, 500);
  const socket = await lingering(t, path);
  const drip = setInterval(() => socket.write('{'), 100);
  t.teardown(() => clearInterval(drip));
  // Not `once`: what is written meanwhile may end with an error.
  await new Promise((resolve) => socket.once('close', resolve));
  t.pass();
});

test('an answer that takes long is waited for', async (t) => {
  const slow = () => setTimeout(600, 'late');
  const path = await serve(t, slow, 200);
  t.is(await askDaemon(path, { verb: 'status' }), 'late');
});

test('closing lets the answers that are on their way go out', async (t) => {
  const path = await socketPath(t);
  let release = (): void => undefined;
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  let asked = (): void => undefined;
  const arrived = new Promise<void>((resolve) => {
    asked = resolve;
  });
  const server = await startControlServer(path, async () => {
    asked();
    await gate;
    return 'done';
  });
  const answer = askDaemon(path, { verb: 'stop' });
  await arrived;
  const closed = server.close();
  release();
  t.is(await answer, 'done');
  await closed;
  await t.throwsAsync(stat(path), { code: 'ENOENT' });
});

test('the socket of a killed daemon is replaced', async (t) => {
  const path = join(await temporaryFolder(t), 'control.sock');
  const script = `require('node:net').createServer().listen(process.argv[1], () => console.log())`;
  const child = spawn(process.execPath, ['-e', script, path], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  await once(child.stdout, 'data');
  child.kill('SIGKILL');
  await once(child, 'exit');
  t.true((await stat(path)).isSocket(), 'it left its socket behind');
  const server = await startControlServer(path, async () => 'new');
  t.teardown(() => server.close());
  t.is(await askDaemon(path, { verb: 'status' }), 'new');
});

test('of two daemons that start at once over a stale socket one is refused', async (t) => {
  const folder = await temporaryFolder(t);
  for (let round = 0; round < 20; round += 1) {
    const path = join(folder, `${round}.sock`);
    const killed = createServer().listen(`${path}.new`);
    await once(killed, 'listening');
    await rename(`${path}.new`, path);
    killed.close();
    // Beyond the steps of a filesystem's clock, as with any daemon that was killed.
    await setTimeout(20);
    const start = async (name: string) => {
      const server = await startControlServer(path, async () => name);
      t.teardown(() => server.close());
      return name;
    };
    const first = start('first');
    // A little later each time, so that the one is somewhere else when the other looks.
    for (let turn = 0; turn < round; turn += 1) await setImmediate();
    const started = await Promise.allSettled([first, start('second')]);
    const names = started.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
    t.is(names.length, 1, `round ${round}`);
    t.is(await askDaemon(path, { verb: 'status' }), names[0]);
  }
  const left = (await readdir(folder)).filter((name) => !/^\d+\.sock$/.test(name));
  t.deepEqual(left, []);
});

test('the socket of a living daemon is left alone', async (t) => {
  const path = await serve(t, async () => 'first');
  await t.throwsAsync(
    startControlServer(path, async () => 'second'),
    {
      code: 'RF_CONTROL_BUSY',
    },
  );
  t.is(await askDaemon(path, { verb: 'status' }), 'first');
});

test('a path that cannot hold a socket is refused', async (t) => {
  const folder = await temporaryFolder(t);
  const file = join(folder, 'file');
  await writeFile(file, 'precious');
  // Node would cut a path that is too long, and listen somewhere else.
  const long = join(folder, 'x'.repeat(108));
  for (const path of [file, join(file, 'control.sock'), folder, long]) {
    await t.throwsAsync(
      startControlServer(path, async () => null),
      { code: 'RF_CONTROL_LISTEN' },
      path,
    );
  }
});

test('a folder of another user is refused: he could take the socket away', async (t) => {
  t.is(process.getuid?.(), 0, 'only root can give a folder away');
  const folder = await temporaryFolder(t);
  await chown(folder, 65_534, 65_534);
  await t.throwsAsync(
    startControlServer(join(folder, 'control.sock'), async () => null),
    { code: 'RF_CONTROL_LISTEN', message: /belongs to another user/ },
  );
});

test('a folder that everybody may write to is refused: anybody could listen there', async (t) => {
  for (const mode of [0o1777, 0o777]) {
    const folder = await temporaryFolder(t);
    await chmod(folder, mode);
    await t.throwsAsync(
      startControlServer(join(folder, 'control.sock'), async () => null),
      { code: 'RF_CONTROL_LISTEN', message: /everybody may write to its folder/ },
    );
  }
});

test('a daemon that is not there is one sentence', async (t) => {
  const path = await socketPath(t);
  await t.throwsAsync(askDaemon(path, { verb: 'status' }), {
    code: 'RF_CONTROL_UNREACHABLE',
    message: /does not exist.*ringfence serve/,
  });
});

test("another user's daemon is one sentence", async (t) => {
  const path = await serve(t, async () => null);
  const client = pathToFileURL(join(projectRoot, 'dist', 'daemon', 'control', 'client.js')).href;
  const ask = `
    const { askDaemon } = await import(process.argv[1]);
    process.setuid(65_534);
    await askDaemon(process.argv[2], { verb: 'status' }).catch(({ code }) => console.log(code));`;
  await chmod(dirname(path), 0o755);
  const words = ['--input-type=module', '-e', ask, client, path];
  t.is((await run(process.execPath, words)).trim(), 'RF_CONTROL_FORBIDDEN');
});

test('a daemon that dies before it answers is one sentence', async (t) => {
  const path = join(await temporaryFolder(t), 'control.sock');
  const server = createServer((socket) => socket.destroy()).listen(path);
  t.teardown(() => server.close());
  await once(server, 'listening');
  await t.throwsAsync(askDaemon(path, { verb: 'status' }), { code: 'RF_CONTROL_LOST' });
});
