/**
 * What a test took and must give back, in reverse order, whether it passed or not.
 *
 * Processes and loop devices do not rely on this alone: they are tied to the life of the test
 * process itself (see `process.ts` and `loop.ts`), so that nothing is left even after a SIGKILL.
 */

/** A stack of things to give back. */
export interface Scope {
  /** Remembers an action; the last one remembered runs first. */
  defer(action: () => unknown): void;
  /** Runs all actions; rejects with the first failure after all of them ran. */
  close(): Promise<void>;
}

/** Makes an empty scope. */
export function createScope(): Scope {
  const actions: (() => unknown)[] = [];
  return {
    defer: (action) => {
      actions.push(action);
    },
    close: async () => {
      const failures: unknown[] = [];
      for (let action = actions.pop(); action !== undefined; action = actions.pop()) {
        try {
          await action();
        } catch (error) {
          failures.push(error);
        }
      }
      if (failures.length > 0) throw failures[0];
    },
  };
}

/** What a scope needs of a test: ava's `t` is one. */
export interface Teardown {
  teardown(action: () => void | PromiseLike<void>): void;
}

/** A scope that closes when the test ends. */
export function testScope(t: Teardown): Scope {
  const scope = createScope();
  t.teardown(() => scope.close());
  return scope;
}
