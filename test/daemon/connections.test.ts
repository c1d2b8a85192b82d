import test from 'ava';
import { pino } from 'pino';
import { createCatalogue, createConnections, HANDSHAKE_MS_MAX } from '../../daemon/connections.ts';
import { parseExport } from '../../daemon/exports.ts';
import { ENGINE } from '../support/engine.ts';
import { type Call, createFakeNative, type FakeNative } from './fake-native.ts';
import { type RecordedLog, recordedLog } from './recorded-log.ts';

const EXPORTS = [parseExport('disk=/x'), parseExport('image=/y,mode=readonly')];

const CLIENT_FLAGS = Buffer.from('00000003', 'hex');

function option(code: number, data: Buffer): Buffer {
  const header = Buffer.alloc(16);
  header.write('IHAVEOPT', 'latin1');
  header.writeUInt32BE(code, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

function go(name: string): Buffer {
  const data = Buffer.alloc(4 + name.length + 2);
  data.writeUInt32BE(name.length);
  data.write(name, 4);
  return option(7, data);
}

interface World extends RecordedLog {
  readonly native: FakeNative;
  readonly calls: Call[];
  readonly connections: ReturnType<typeof createConnections>;
  clockMs: number;
  /** Hands in what the client sends, in the pieces that the handshake asks for. */
  send(connection: number, bytes: Buffer): void;
}

async function openFake() {
  const native = createFakeNative();
  const exports = EXPORTS.map(({ origin, ...rest }) => ({ ...rest, originPath: origin }));
  const engine = await native.open({ ...ENGINE, cachePath: '/c', exports }, () => undefined);
  return { native, engine };
}

async function world(): Promise<World> {
  const { native, engine } = await openFake();
  native.calls.length = 0;
  const recorded = recordedLog();
  const self: World = {
    ...recorded,
    native,
    calls: native.calls,
    connections: createConnections(engine, EXPORTS, recorded.log, () => self.clockMs),
    clockMs: 1_000,
    send(connection, bytes) {
      let rest = bytes;
      while (rest.length > 0) {
        const asked = native.calls.findLast(
          ([name, id]) => name === 'receive' && id === connection,
        );
        const length = Number(asked?.[2] ?? 0);
        if (asked === undefined || length > rest.length) throw new Error('nobody asked for that');
        const piece = rest.subarray(0, length);
        rest = rest.subarray(length);
        self.connections.handle({ type: 'received', connection, bytes: piece });
      }
    },
  };
  return self;
}

function accept(self: World, connection: number): void {
  self.connections.handle({ type: 'accepted', connection, listener: 0, peer: 'a client' });
}

function names(calls: readonly Call[]): readonly string[] {
  return calls.map(([name]) => name);
}

test('a client is greeted, negotiates, and is handed to the ring', async (t) => {
  const self = await world();
  accept(self, 5);
  t.deepEqual(names(self.calls), ['send', 'receive']);
  t.true(
    Buffer.from(self.calls[0]?.[2] as Uint8Array)
      .toString('latin1')
      .startsWith('NBDMAGIC'),
  );
  self.send(5, Buffer.concat([CLIENT_FLAGS, option(8, Buffer.alloc(0)), go('image')]));
  t.deepEqual(self.calls.at(-1), ['beginTransmission', 5, 1, true, true]);
  t.is(self.lines.at(-1)?.['export'], 'image');
});

test('the empty name is the first export', async (t) => {
  const self = await world();
  accept(self, 1);
  self.send(1, Buffer.concat([CLIENT_FLAGS, go('')]));
  t.deepEqual(self.calls.at(-1), ['beginTransmission', 1, 0, false, false]);
});

test('the handshake has one deadline, however the client spends it', async (t) => {
  const self = await world();
  accept(self, 1);
  t.is(self.calls.at(-1)?.[3], HANDSHAKE_MS_MAX);
  self.clockMs += 4_000;
  self.send(1, CLIENT_FLAGS);
  t.is(self.calls.at(-1)?.[3], HANDSHAKE_MS_MAX - 4_000);
  self.clockMs += HANDSHAKE_MS_MAX;
  self.send(1, option(3, Buffer.alloc(0)));
  t.is(self.calls.at(-1)?.[3], 1);
});

test('rubbish closes its connection and no other', async (t) => {
  const self = await world();
  accept(self, 1);
  accept(self, 2);
  self.send(1, Buffer.from('ffffffff', 'hex'));
  t.deepEqual(self.calls.at(-1), ['close', 1]);
  self.send(2, Buffer.concat([CLIENT_FLAGS, go('disk')]));
  t.deepEqual(self.calls.at(-1), ['beginTransmission', 2, 0, false, false]);
});

test('an error of the engine closes the connection and reaches nobody else', async (t) => {
  const self = await world();
  self.native.failures.set('send', new Error('more than 64 KiB would wait'));
  accept(self, 1);
  t.deepEqual(self.calls.at(-1), ['close', 1]);
  t.is(self.lines.at(-1)?.['reason'], 'more than 64 KiB would wait');
});

test('bytes that arrive after a close are ignored', async (t) => {
  const self = await world();
  accept(self, 1);
  self.connections.handle({ type: 'closed', connection: 1, reason: 'the peer closed it' });
  const before = self.calls.length;
  self.connections.handle({ type: 'received', connection: 1, bytes: CLIENT_FLAGS });
  t.is(self.calls.length, before);
});

test('an attached client that leaves is logged with its export', async (t) => {
  const self = await world();
  accept(self, 1);
  self.send(1, Buffer.concat([CLIENT_FLAGS, go('disk')]));
  self.connections.handle({ type: 'closed', connection: 1, reason: 'NBD_CMD_DISC' });
  const line = self.lines.at(-1);
  t.deepEqual(
    [line?.msg, line?.['export'], line?.['reason']],
    ['client detached', 'disk', 'NBD_CMD_DISC'],
  );
});

test('while the daemon stops, options are refused', async (t) => {
  const self = await world();
  accept(self, 1);
  self.connections.stop();
  accept(self, 2);
  for (const connection of [1, 2]) {
    self.send(connection, Buffer.concat([CLIENT_FLAGS, go('disk')]));
    t.false(names(self.calls).includes('beginTransmission'), `connection ${connection}`);
    const sent = self.calls.findLast(([name, id]) => name === 'send' && id === connection);
    const reply = Buffer.from(sent?.[2] as Uint8Array);
    t.is(reply.readUInt32BE(12), 2 ** 31 + 7, 'NBD_REP_ERR_SHUTDOWN');
  }
});

test('a client in its handshake is no error of a daemon that has stopped', async (t) => {
  const self = await world();
  accept(self, 1);
  self.connections.stop();
  for (const call of ['send', 'receive', 'close']) {
    self.native.failures.set(call, new Error('the ring has stopped'));
  }
  t.notThrows(() =>
    self.connections.handle({ type: 'received', connection: 1, bytes: CLIENT_FLAGS }),
  );
  t.notThrows(() => accept(self, 2));
  const said = self.lines.filter(({ level }) => level >= (pino.levels.values['info'] ?? 0));
  t.deepEqual(said, []);
});

test('the catalogue has the sizes that the engine found', async (t) => {
  const { engine } = await openFake();
  const catalogue = createCatalogue(engine, EXPORTS);
  t.deepEqual(
    catalogue.list().map(({ name, sizeBytes, readOnly }) => [name, sizeBytes, readOnly]),
    [
      ['disk', 1n << 30n, false],
      ['image', 1n << 30n, true],
    ],
  );
  t.is(catalogue.find('nothing'), null);
});
