/** What an option is to the handshake: one handler per option, one file per handler. */

import type { ExportCatalogue } from '../catalogue.ts';
import type { BeginTransmission } from './effects.ts';

/** What a client has negotiated so far. A later option adds a field here and one file. */
export interface Negotiated {
  readonly structuredReplies: boolean;
}

/** Nothing yet; also what is left after TLS has begun. */
export const NOTHING_NEGOTIATED: Negotiated = { structuredReplies: false };

/** What a handler may look at. */
export interface OptionContext {
  readonly catalogue: ExportCatalogue;
  readonly negotiated: Negotiated;
  /** Whether the client wants no zeroes after the reply to `NBD_OPT_EXPORT_NAME`. */
  readonly noZeroes: boolean;
}

/** What comes of an option. */
export type OptionOutcome =
  /** Answer, and wait for the next option. */
  | {
      readonly next: 'option';
      readonly answer: Uint8Array;
      /** What is negotiated from now on. */
      readonly negotiated: Negotiated;
    }
  /** Answer, then the transmission phase. */
  | { readonly next: 'begin'; readonly answer: Uint8Array; readonly begin: BeginTransmission }
  /** Answer, if with nothing, and close. */
  | { readonly next: 'close'; readonly answer: Uint8Array; readonly reason: string };

/** An option that is understood. */
export interface OptionHandler {
  /** `NBD_OPT_*`. */
  readonly option: number;
  /** Judges the option with all of its data. Pure. */
  readonly handle: (data: Uint8Array, context: OptionContext) => OptionOutcome;
}

/** Answers, and goes on with what was negotiated before. */
export function proceed(answer: Uint8Array, { negotiated }: OptionContext): OptionOutcome {
  return { next: 'option', answer, negotiated };
}
