/** `NBD_OPT_LIST`: the names of all exports. */

import { concat } from '../../bytes.ts';
import { ANSWER_BYTES_MAX, OPTION, REPLY_ERROR } from '../../constants.ts';
import { type OptionHandler, proceed } from '../option.ts';
import { ackReply, errorReply, serverReply } from '../replies.ts';

/** One `NBD_REP_SERVER` per export. */
export const list: OptionHandler = {
  option: OPTION.list,
  handle(data, context) {
    if (data.length > 0) {
      const message = 'NBD_OPT_LIST takes no data';
      return proceed(errorReply(OPTION.list, REPLY_ERROR.invalid, message), context);
    }
    const replies = context.catalogue
      .list()
      .map(({ name, description }) => serverReply(OPTION.list, name, description));
    const answer = concat([...replies, ackReply(OPTION.list)]);
    if (answer.length > ANSWER_BYTES_MAX) {
      const message = 'there are too many exports to list; ask for one by its name';
      return proceed(errorReply(OPTION.list, REPLY_ERROR.tooBig, message), context);
    }
    return proceed(answer, context);
  },
};
