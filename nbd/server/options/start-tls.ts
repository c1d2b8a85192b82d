/** `NBD_OPT_STARTTLS`, as a server without TLS answers it. */

import { OPTION, REPLY_ERROR } from '../../constants.ts';
import { type OptionHandler, proceed } from '../option.ts';
import { errorReply } from '../replies.ts';

/** Refuses; what was negotiated stays, since nothing changed. */
export const startTls: OptionHandler = {
  option: OPTION.startTls,
  handle(data, context) {
    const [type, message] =
      data.length > 0
        ? [REPLY_ERROR.invalid, 'NBD_OPT_STARTTLS takes no data']
        : [REPLY_ERROR.unsupported, 'this server has no TLS'];
    return proceed(errorReply(OPTION.startTls, type, message), context);
  },
};
