import { execFile, execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import type { Native, NativeEngine, NativeEvent, NativeOpenOptions } from '../../daemon/native.ts';
import { ENGINE } from '../support/engine.ts';

const require = createRequire(import.meta.url);
const native: Native = require('#binding');

const CACHE_BYTES = 64 << 20;
const ORIGIN_BYTES = 8 << 20;
const SEGMENT_BYTES = 4n << 20n;

/** A formatted cache and an origin, as files in a folder of their own. */
async function prepared(t: ExecutionContext): Promise<NativeOpenOptions & { folder: string }> {
  const folder = mkdtempSync(join(tmpdir(), 'ringfence-binding-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const cachePath = join(folder, 'cache');
  const originPath = join(folder, 'origin');
  writeFileSync(cachePath, '');
  truncateSync(cachePath, CACHE_BYTES);
  writeFileSync(originPath, '');
  truncateSync(originPath, ORIGIN_BYTES);
  await native.format(cachePath, SEGMENT_BYTES);
  const served = { name: 'disk', originPath, mode: 'writeback', order: 'strict' } as const;
  return {
    folder,
    cachePath,
    ...ENGINE,
    exports: [{ ...served, dirtyBytesMax: null, waitMs: 1000, originTimeoutMs: 1000 }],
  };
}

/** An open engine and what it has told so far. */
interface Session {
  readonly engine: NativeEngine;
  readonly folder: string;
  /** How often the bell rang. */
  rings(): number;
  /** The next event of a type, now or when it comes; those before it are passed over. */
  next<T extends NativeEvent['type']>(type: T): Promise<Extract<NativeEvent, { type: T }>>;
}

async function session(t: ExecutionContext): Promise<Session> {
  const { folder, ...options } = await prepared(t);
  let rings = 0;
  let wake = (): void => {};
  const bell = (): void => {
    rings += 1;
    wake();
  };
  const engine = await native.open(options, bell);
  t.teardown(() => engine.shutdown());
  const waiting: NativeEvent[] = [];
  const next: Session['next'] = async (type) => {
    for (;;) {
      const rung = new Promise<void>((resolve) => {
        wake = resolve;
      });
      waiting.push(...engine.drainEvents());
      const event = waiting.shift();
      if (event?.type === type) return event as never;
      if (event === undefined) await rung;
    }
  };
  return { engine, folder, rings: () => rings, next };
}

async function client(t: ExecutionContext, path: string): Promise<Socket> {
  const socket = connect(path);
  t.teardown(() => socket.destroy());
  await once(socket, 'connect');
  return socket;
}

test('formatting and describing agree, and a file of zeroes is no cache', async (t) => {
  const { cachePath, folder } = await prepared(t);
  const found = await native.describe(cachePath);
  t.is(found?.segmentBytes, SEGMENT_BYTES);
  t.regex(found?.uuid ?? '', /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  t.deepEqual(found?.exports, []);
  t.is(await native.describe(join(folder, 'origin')), null);
});

test('opening leaves the JavaScript thread free and tells what was found', async (t) => {
  const { folder, ...options } = await prepared(t);
  const opening = native.open(options, () => {});
  t.is(await Promise.race([opening.then(() => 'opened'), turn('free')]), 'free');
  const engine = await opening;
  t.teardown(() => engine.shutdown());
  const { opened } = engine;
  t.is(opened.segmentBytes, SEGMENT_BYTES);
  t.is(opened.exports.length, 1);
  t.is(opened.exports[0]?.name, 'disk');
  t.is(opened.exports[0]?.sizeBytes, BigInt(ORIGIN_BYTES));
  t.is(opened.exports[0]?.known, false);
  for (const { up, advice } of opened.guards) t.is(up, advice === null);
  const again = await t.throwsAsync(native.open(options, () => {}));
  t.true(again?.message.includes(folder), again?.message);
});

test('a handshake passes through: exactly what was asked for, and what was sent', async (t) => {
  const { engine, folder, next } = await session(t);
  const path = join(folder, 'socket');
  const { listener, address } = engine.listen(`unix:${path}`);
  t.is(address, `unix:${path}`);
  const socket = await client(t, path);
  const accepted = await next('accepted');
  t.is(accepted.listener, listener);
  const { connection } = accepted;
  engine.receive(connection, 3, 60_000);
  socket.write('abcdef');
  t.deepEqual(Buffer.from((await next('received')).bytes), Buffer.from('abc'));
  engine.receive(connection, 3, 60_000);
  t.deepEqual(Buffer.from((await next('received')).bytes), Buffer.from('def'));
  engine.send(connection, Buffer.from('answer'));
  engine.close(connection);
  const [answer] = (await once(socket, 'data')) as [Buffer];
  t.is(answer.toString(), 'answer');
  t.is((await next('closed')).connection, connection);
});

test('a deadline that passes closes the connection', async (t) => {
  const { engine, folder, next } = await session(t);
  const path = join(folder, 'socket');
  engine.listen(`unix:${path}`);
  await client(t, path);
  const { connection } = await next('accepted');
  engine.receive(connection, 1, 1);
  t.is((await next('closed')).connection, connection);
});

test('a busy port is refused with a sentence that names it', async (t) => {
  const { engine } = await session(t);
  const { address } = engine.listen('127.0.0.1:0');
  t.notRegex(address, /:0$/);
  const error = t.throws(() => engine.listen(address));
  t.true(error?.message.includes(address), error?.message);
});

test('however long JavaScript stands still, the bell waits once', async (t) => {
  const { engine, folder, rings, next } = await session(t);
  const path = join(folder, 'socket');
  engine.listen(`unix:${path}`);
  const clients = `
    const { connect } = require('node:net');
    const one = (left) => left > 0 && connect(${JSON.stringify(path)}, function () {
      this.destroy();
      setTimeout(one, 20, left - 1);
    });
    one(5);`;
  const before = rings();
  execFileSync(process.execPath, ['--eval', clients]);
  await turn();
  await turn();
  t.is(rings(), before + 1);
  for (let left = 5; left > 0; left -= 1) await next('accepted');
});

test('an action ends with its token; one for an export that is not there throws', async (t) => {
  const { engine, next } = await session(t);
  engine.control(7, 'flush', null);
  t.deepEqual(await next('controlDone'), { type: 'controlDone', token: 7, error: null });
  engine.control(8, 'drain', 0);
  t.deepEqual(await next('controlDone'), { type: 'controlDone', token: 8, error: null });
  t.throws(() => engine.control(9, 'flush', 200));
  t.throws(() => engine.control(10, 'flush', 0.5), { message: /slot/ });
});

test('counters fill an array of their length and refuse any other', async (t) => {
  const { engine } = await session(t);
  const error = t.throws(() => engine.counters(new BigUint64Array(1)));
  const length = Number(/array of (\d+) elements/.exec(error?.message ?? '')?.[1]);
  const values = new BigUint64Array(length).fill(2n ** 64n - 1n);
  engine.counters(values);
  t.false(values.includes(2n ** 64n - 1n));
});

test('after shutdown every call is refused, and a second shutdown is not', async (t) => {
  const { engine } = await session(t);
  await engine.shutdown();
  await engine.shutdown();
  t.throws(() => engine.listen('127.0.0.1:0'), { message: /stopped/ });
  t.throws(() => engine.control(1, 'flush', null), { message: /stopped/ });
});

/** Runs a script that has `native` and `options`, in a process of its own. */
async function script(t: ExecutionContext, text: string): Promise<string> {
  const { folder: _, ...options } = await prepared(t);
  const literal = JSON.stringify(options, (_key, value) =>
    typeof value === 'bigint' ? `${value}n` : value,
  ).replaceAll(/"(\d+n)"/g, '$1');
  const whole = `
    const native = require(${JSON.stringify(require.resolve('#binding'))});
    const options = ${literal};
    (async () => {${text}})();`;
  const parameters = ['--expose-gc', '--eval', whole];
  const { stdout } = await promisify(execFile)(process.execPath, parameters);
  return stdout;
}

test('an engine that JavaScript has lost sight of goes on serving', async (t) => {
  const text = `
    const address = await native.open(options, () => {}).then((engine) =>
      engine.listen('127.0.0.1:0').address);
    for (let i = 0; i < 5; i += 1) {
      globalThis.gc();
      await new Promise((resolve) => setImmediate(resolve));
    }
    const port = Number(address.split(':').pop());
    require('node:net').connect(port, '127.0.0.1', () => {
      console.log('connected');
      process.exit(0);
    });`;
  t.is(await script(t, text), 'connected\n');
});

test('an open engine keeps the process alive, and one that is shut down does not', async (t) => {
  const text = `
    const engine = await native.open(options, () => {});
    let shut = false;
    process.on('exit', () => console.log(shut ? 'after shutdown' : 'before shutdown'));
    setTimeout(async () => {
      await engine.shutdown();
      shut = true;
    }, 50).unref();
    setTimeout(() => {}, 0);`;
  t.is(await script(t, text), 'after shutdown\n');
});
