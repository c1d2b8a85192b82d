/** An operator's actions on the way: each has a token, and an event tells its end. */

import { ringfenceError } from './errors.ts';
import type { NativeEngine } from './native.ts';

/** What an operator can ask of the engine. */
export type Action = 'flush' | 'drain' | 'resolve';

/** The actions of one engine. */
export interface Actions {
  /**
   * Starts an action on an export, or on all for null; ends when the engine has done it.
   *
   * @throws `RF_ACTION` with what the engine said, `RF_ACTIONS_TOO_MANY`
   */
  run(action: Action, slot: number | null): Promise<void>;
  /** Takes a `controlDone` event. */
  ended(token: number, error: string | null): void;
  /** Fails what is still on the way, since no event will come any more. */
  abandon(reason: string): void;
}

/** More would take the engine's and the control socket's room from who wants to know or stop. */
const ACTIONS_MAX = 32;
/** Tokens cross the boundary as 32-bit numbers. */
const TOKENS = 2 ** 32;

interface Waiting {
  readonly action: Action;
  readonly settle: (error: string | null) => void;
}

/** Keeps track of the actions of one engine. */
export function createActions(engine: Pick<NativeEngine, 'control'>): Actions {
  const waiting = new Map<number, Waiting>();
  let lastToken = 0;

  function nextToken(): number {
    do {
      lastToken = (lastToken + 1) % TOKENS;
    } while (waiting.has(lastToken));
    return lastToken;
  }

  return {
    run: (action, slot) =>
      new Promise((resolve, reject) => {
        // A resolve is answered at once, and may be what the others wait for.
        if (action !== 'resolve' && waiting.size >= ACTIONS_MAX) {
          throw ringfenceError('RF_ACTIONS_TOO_MANY', [action, `${ACTIONS_MAX}`]);
        }
        const token = nextToken();
        const settle = (error: string | null) => {
          waiting.delete(token);
          if (error === null) resolve();
          else reject(ringfenceError('RF_ACTION', [action, error.replace(/[.]$/, '')]));
        };
        waiting.set(token, { action, settle });
        try {
          engine.control(token, action, slot);
        } catch (error) {
          settle(error instanceof Error ? error.message : String(error));
        }
      }),
    ended: (token, error) => waiting.get(token)?.settle(error),
    abandon: (reason) => {
      for (const { settle } of [...waiting.values()]) settle(reason);
    },
  };
}
