/** `NBD_OPT_ABORT`: the client leaves. Whatever it says along with that is ignored. */

import { OPTION } from '../../constants.ts';
import type { OptionHandler } from '../option.ts';
import { ackReply } from '../replies.ts';

/** Acknowledges, then closes; a client that has already hung up does not hear it. */
export const abort: OptionHandler = {
  option: OPTION.abort,
  handle: () => ({
    next: 'close',
    answer: ackReply(OPTION.abort),
    reason: 'the client ended the negotiation',
  }),
};
