/** Clients that vanish, stall or send rubbish, beside one that behaves and must not notice. */

import test from 'ava';
import { KIB, MIB } from '../support/loop.ts';
import { COMMAND, connectNbd, type NbdConnection, requestHeader } from '../support/nbd-client.ts';
import { waitUntil } from '../support/process.ts';
import { readMetric, socketPath, startDaemon } from '../support/ringfence.ts';
import { EXPORT, type ServedDisk, serveDisk } from '../support/setting.ts';

function connect({ daemon }: ServedDisk): Promise<NbdConnection> {
  return connectNbd({ path: socketPath(daemon.setup) }, EXPORT);
}

/** Connections that the daemon counts now. */
async function connections({ daemon }: ServedDisk): Promise<number> {
  const samples = await readMetric(daemon, 'ringfence_connections');
  return [...samples.values()].reduce((total, value) => total + value, 0);
}

/** Bytes of the reserve that are in use for connections. */
async function receiveBytesInUse({ daemon }: ServedDisk): Promise<number> {
  const samples = await readMetric(daemon, 'ringfence_reserve_bytes');
  const used = [...samples].filter(
    ([labels]) => labels.includes('pool="receive"') && labels.includes('state="used"'),
  );
  if (used.length !== 1) throw new Error('the receive pool is not counted');
  return used[0]?.[1] ?? Number.NaN;
}

/** Writes and reads back for as long as `busy` says; the answers must be right. */
async function behave(connection: NbdConnection, busy: () => boolean): Promise<number> {
  let rounds = 0;
  while (busy()) {
    const data = Buffer.alloc(16 * KIB, rounds);
    await connection.write((rounds % 64) * 16 * KIB, data);
    const back = await connection.read((rounds % 64) * 16 * KIB, data.length);
    if (!back.equals(data)) throw new Error(`round ${rounds} read something else`);
    rounds += 1;
  }
  return rounds;
}

/** Rude behaviour, by name; each ends its connection or leaves it hanging. */
const RUDE: Readonly<Record<string, (connection: NbdConnection) => void>> = {
  'vanishes in mid-payload': (connection) => {
    connection.sendRaw(requestHeader(COMMAND.write, 0, 1, 4 * MIB, MIB));
    connection.sendRaw(Buffer.alloc(100 * KIB));
    connection.destroy();
  },
  'vanishes in mid-header': (connection) => {
    connection.sendRaw(requestHeader(COMMAND.read, 0, 1, 0, 4096).subarray(0, 13));
    connection.destroy();
  },
  'vanishes with requests in flight in both directions': (connection) => {
    for (let cookie = 1; cookie < 20; cookie += 1) {
      connection.sendRaw(requestHeader(COMMAND.read, 0, cookie, 0, MIB));
      connection.sendRaw(requestHeader(COMMAND.write, 0, cookie + 100, 8 * MIB, 64 * KIB));
      connection.sendRaw(Buffer.alloc(64 * KIB));
    }
    setImmediate(() => connection.destroy());
  },
  'sends rubbish': (connection) => {
    connection.sendRaw(Buffer.alloc(64, 0x5a));
  },
};

for (const [what, misbehave] of Object.entries(RUDE)) {
  test.serial(`a client that ${what}, 200 times, harms nobody and leaves nothing`, async (t) => {
    t.timeout(120_000);
    const setting = await serveDisk(t);
    const good = await connect(setting);
    let busy = true;
    const inUse = await receiveBytesInUse(setting);
    const behaving = behave(good, () => busy);
    // Its failure is reported where it is awaited, also when the test ends before.
    behaving.catch(() => undefined);
    for (let time = 0; time < 200; time += 1) {
      const rude = await connect(setting);
      misbehave(rude);
      await rude.gone();
    }
    await waitUntil(
      async () => (await connections(setting)) === 1,
      () => 'connections of clients that are gone stay counted',
    );
    busy = false;
    t.true((await behaving) > 0);
    t.is(await receiveBytesInUse(setting), inUse);
    await good.disconnect();
  });
}

test.serial('clients that stall, sending or receiving, hold up nobody', async (t) => {
  t.timeout(120_000);
  const setting = await serveDisk(t);
  const stalled: NbdConnection[] = [];
  for (let index = 0; index < 8; index += 1) {
    const connection = await connect(setting);
    stalled.push(connection);
    if (index % 2 === 0) {
      connection.sendRaw(requestHeader(COMMAND.write, 0, 1, 4 * MIB, MIB));
      connection.sendRaw(Buffer.alloc(300 * KIB));
    } else {
      connection.stall();
      for (let cookie = 1; cookie < 200; cookie += 1) {
        connection.sendRaw(requestHeader(COMMAND.read, 0, cookie, 0, MIB));
      }
    }
  }
  const good = await connect(setting);
  let rounds = 0;
  const behaved = await behave(good, () => {
    rounds += 1;
    return rounds <= 500;
  });
  t.is(behaved, 500);
  await good.flush();
  await good.disconnect();
  for (const connection of stalled) connection.destroy();
  await waitUntil(
    async () => (await connections(setting)) === 0,
    () => 'stalled clients stay counted after they are gone',
  );
});

test.serial('a client that takes no answer holds up a stop for ten seconds', async (t) => {
  t.timeout(120_000);
  const setting = await serveDisk(t);
  const { scope, daemon } = setting;
  const good = await connect(setting);
  const data = Buffer.alloc(16 * KIB, 7);
  await good.write(0, data);
  await good.disconnect();
  const stalled = await connect(setting);
  stalled.stall();
  for (let cookie = 1; cookie < 200; cookie += 1) {
    stalled.sendRaw(requestHeader(COMMAND.read, 0, cookie, 0, MIB));
  }
  await waitUntil(
    async () => (await receiveBytesInUse(setting)) > 0,
    () => 'nothing of the stalled client arrives',
  );
  const began = performance.now();
  daemon.background.signal('SIGTERM');
  t.is((await daemon.background.wait()).exitCode, 0, daemon.background.output());
  const waitedMs = performance.now() - began;
  t.true(waitedMs > 9000, `it did not wait for what was in flight: ${waitedMs} ms`);
  t.true(waitedMs < 60_000, `it waited for ${waitedMs} ms`);
  stalled.destroy();
  const again = { ...setting, daemon: await startDaemon(scope, daemon.setup) };
  const reader = await connect(again);
  t.deepEqual(await reader.read(0, data.length), data);
  await reader.disconnect();
});
