/** `NBD_OPT_EXPORT_NAME`: the oldest way to begin. It cannot be answered with an error. */

import { concat, decodeString, u16, u64 } from '../../bytes.ts';
import { resolveExport } from '../../catalogue.ts';
import { EXPORT_NAME_ZERO_BYTES, OPTION } from '../../constants.ts';
import { quote } from '../../text.ts';
import { beginTransmission } from '../begin.ts';
import type { OptionHandler, OptionOutcome } from '../option.ts';

/** Begins with the export, or closes. */
export const exportName: OptionHandler = {
  option: OPTION.exportName,
  handle(data, { catalogue, negotiated, noZeroes }) {
    const name = decodeString(data);
    if (name === null) return refuse('the client asked for an export by a name that is none');
    const description = resolveExport(catalogue, name);
    if (description === null) return refuse(`there is no export ${quote(name)}`);
    const begin = beginTransmission(description, negotiated);
    const zeroes = new Uint8Array(noZeroes ? 0 : EXPORT_NAME_ZERO_BYTES);
    const answer = concat([u64(begin.sizeBytes), u16(begin.transmissionFlags), zeroes]);
    return { next: 'begin', answer, begin };
  },
};

function refuse(reason: string): OptionOutcome {
  return { next: 'close', answer: new Uint8Array(0), reason };
}
