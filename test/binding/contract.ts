/**
 * Compares the generated types of the addon with the contract, field by field. There is nothing
 * to run: when the two drift apart, this file does not compile.
 */
import type * as Generated from '#binding';
import type {
  NativeAttachEvent,
  NativeAttachment,
  NativeAttachOptions,
  NativeLink,
} from '../../daemon/attach/native.ts';
import type {
  CacheDescription,
  CheckFinding,
  CheckReport,
  CounterLayout,
  Guard,
  Listening,
  Native,
  NativeEngine,
  NativeEvent,
  NativeExport,
  NativeOpened,
  NativeOpenOptions,
} from '../../daemon/native.ts';

/** What is compared as it stands, without looking inside. */
type Leaf = Uint8Array | BigUint64Array | string | number | bigint | boolean | null | undefined;

/**
 * `T` without what the two sides may say differently: `readonly`, and the notation of methods,
 * whose parameters TypeScript would compare in both directions and so let drift pass.
 */
type Plain<T> = T extends Leaf
  ? T
  : T extends (...parameters: infer P) => infer R
    ? { parameters: Plain<P>; result: Plain<R> }
    : T extends Promise<infer V>
      ? { promised: Plain<V> }
      : { -readonly [K in keyof T]: Plain<T[K]> };

/** True when `A` and `B` are the same type, optional properties included. */
type Same<A, B> =
  (<T>() => T extends Plain<A> ? 1 : 2) extends <T>() => T extends Plain<B> ? 1 : 2 ? true : false;

/** Compiles for `true` alone. */
type Holds<T extends true> = T;

/** The module's functions. Classes are compared above; `default` is what imports call it all. */
type Functions = Omit<
  typeof Generated,
  'NativeEngine' | 'NativeLink' | 'NativeAttachment' | 'default'
>;

/** One line for each part, so that the compiler's message names the part that drifted. */
export type Contract = [
  Holds<Same<Generated.Guard, Guard>>,
  Holds<Same<Generated.Listening, Listening>>,
  Holds<Same<Generated.CounterLayout, CounterLayout>>,
  Holds<Same<Generated.CacheDescription, CacheDescription>>,
  Holds<Same<Generated.CheckFinding, CheckFinding>>,
  Holds<Same<Generated.CheckReport, CheckReport>>,
  Holds<Same<Generated.NativeExport, NativeExport>>,
  Holds<Same<Generated.NativeOpenOptions, NativeOpenOptions>>,
  Holds<Same<Generated.NativeOpened, NativeOpened>>,
  Holds<Same<Generated.NativeEvent, NativeEvent>>,
  Holds<Same<Generated.NativeEngine, NativeEngine>>,
  Holds<Same<Generated.NativeLink, NativeLink>>,
  Holds<Same<Generated.NativeAttachOptions, NativeAttachOptions>>,
  Holds<Same<Generated.NativeAttachEvent, NativeAttachEvent>>,
  Holds<Same<Generated.NativeAttachment, NativeAttachment>>,
  Holds<Same<Functions, Native>>,
];

/** The comparison itself notices what it is there for. */
export type Noticed = [
  Holds<Same<Same<{ a: number }, { a: bigint }>, false>>,
  Holds<Same<Same<{ a: number | null }, { a?: number }>, false>>,
  Holds<Same<Same<{ f(x: number): void }, { f(x: number | null): void }>, false>>,
  Holds<Same<Same<{ f(): Promise<void> }, { f(): Promise<unknown> }>, false>>,
  Holds<Same<Same<{ a: 'x' | 'y' }, { a: string }>, false>>,
  Holds<Same<Same<{ a: 1 }, { a: 1; b: 2 }>, false>>,
];
