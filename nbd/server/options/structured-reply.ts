/** `NBD_OPT_STRUCTURED_REPLY`: reads are answered in chunks. */

import { OPTION, REPLY_ERROR } from '../../constants.ts';
import { type OptionHandler, proceed } from '../option.ts';
import { ackReply, errorReply } from '../replies.ts';

/** Agrees. A client that asks again is told the same: nothing changes. */
export const structuredReply: OptionHandler = {
  option: OPTION.structuredReply,
  handle(data, context) {
    if (data.length > 0) {
      const message = 'NBD_OPT_STRUCTURED_REPLY takes no data';
      return proceed(errorReply(OPTION.structuredReply, REPLY_ERROR.invalid, message), context);
    }
    return {
      next: 'option',
      answer: ackReply(OPTION.structuredReply),
      negotiated: { ...context.negotiated, structuredReplies: true },
    };
  },
};
