/** All options that are understood. */

import type { OptionHandler } from '../option.ts';
import { abort } from './abort.ts';
import { exportName } from './export-name.ts';
import { go, info } from './info.ts';
import { list } from './list.ts';
import { startTls } from './start-tls.ts';
import { structuredReply } from './structured-reply.ts';

/** Handlers by their option's number. */
export const OPTION_HANDLERS: ReadonlyMap<number, OptionHandler> = new Map(
  [abort, exportName, go, info, list, startTls, structuredReply].map((handler) => [
    handler.option,
    handler,
  ]),
);
