import test from 'ava';
import { createActions } from '../../daemon/actions.ts';
import { createNoticeLog } from '../../daemon/notices.ts';
import { recordedLog } from './recorded-log.ts';

test('a notice is logged with its export, in plain words', (t) => {
  const { log, lines } = recordedLog();
  const notice = createNoticeLog(log, (slot) => (slot === 1 ? 'disk' : null));
  notice({ type: 'notice', notice: 'origin_down', slot: 1, detail: 'I/O error 5' });
  notice({ type: 'notice', notice: 'latched', slot: null, detail: 'I/O error 5' });
  notice({ type: 'notice', notice: 'invented_later', slot: null, detail: 'x' });
  t.deepEqual(
    lines.map(({ level, notice: what, export: name }) => [level, what, name]),
    [
      [40, 'origin_down', 'disk'],
      [50, 'latched', undefined],
      [40, 'invented_later', undefined],
    ],
  );
});

test('a damaged block is logged once, an origin or a standstill each time', (t) => {
  const { log, lines } = recordedLog();
  const notice = createNoticeLog(log, () => 'disk');
  for (let time = 0; time < 3; time += 1) {
    notice({ type: 'notice', notice: 'checksum_mismatch', slot: 0, detail: 'block 7' });
    notice({ type: 'notice', notice: 'checksum_mismatch', slot: 0, detail: 'block 8' });
    notice({ type: 'notice', notice: 'origin_down', slot: 0, detail: 'I/O error 5' });
    notice({ type: 'notice', notice: 'origin_up', slot: 0, detail: '' });
    notice({ type: 'notice', notice: 'destage_damaged', slot: 0, detail: 'a segment' });
  }
  const count = (what: string) => lines.filter(({ notice: name }) => name === what).length;
  t.deepEqual([count('checksum_mismatch'), count('origin_down'), count('origin_up')], [2, 3, 3]);
  t.is(count('destage_damaged'), 3);
});

test('actions end with their own token, well or not', async (t) => {
  const asked: unknown[][] = [];
  const actions = createActions({ control: (...values) => void asked.push(values) });
  const flush = actions.run('flush', null);
  const drain = actions.run('drain', 2);
  const [first, second] = asked;
  t.deepEqual(first?.slice(1), ['flush', null]);
  t.deepEqual(second?.slice(1), ['drain', 2]);
  t.not(first?.[0], second?.[0]);
  actions.ended(Number(second?.[0]), 'the origin is away.');
  actions.ended(Number(first?.[0]), null);
  actions.ended(12_345, null);
  await flush;
  await t.throwsAsync(drain, {
    code: 'RF_ACTION',
    message: 'The drain failed: the origin is away.',
  });
});

test('so many actions wait that status and stop still find room', async (t) => {
  const tokens: number[] = [];
  const actions = createActions({ control: (token) => void tokens.push(token) });
  const drains = Array.from({ length: 32 }, () => actions.run('drain', null));
  await t.throwsAsync(actions.run('flush', null), {
    code: 'RF_ACTIONS_TOO_MANY',
    message: /^The flush was not started: 32 flushes and drains are on the way/,
  });
  t.is(tokens.length, 32);
  // What the drains wait for may be resolved.
  const resolved = actions.run('resolve', 1);
  actions.ended(tokens.pop() ?? -1, null);
  await resolved;
  actions.ended(tokens[0] ?? -1, null);
  drains.push(actions.run('flush', null));
  for (const token of tokens) actions.ended(token, null);
  t.is((await Promise.all(drains)).length, 33);
});

test('actions that nobody will end any more fail', async (t) => {
  const actions = createActions({ control: () => undefined });
  const drain = actions.run('drain', null);
  actions.abandon('the daemon stopped first');
  await t.throwsAsync(drain, { code: 'RF_ACTION', message: /stopped first/ });
  const refusing = createActions({
    control: () => {
      throw new Error('the ring has stopped');
    },
  });
  await t.throwsAsync(refusing.run('flush', null), { message: /the ring has stopped/ });
});
