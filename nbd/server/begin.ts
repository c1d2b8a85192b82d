/** What the transmission phase begins with, for every option that leads there. */

import { type ExportDescription, transmissionFlags } from '../catalogue.ts';
import type { BeginTransmission } from './effects.ts';
import type { Negotiated } from './option.ts';

/** The export with what was negotiated. */
export function beginTransmission(
  description: ExportDescription,
  { structuredReplies }: Negotiated,
): BeginTransmission {
  return {
    type: 'begin',
    exportName: description.name,
    sizeBytes: description.sizeBytes,
    readOnly: description.readOnly,
    transmissionFlags: transmissionFlags(description, structuredReplies),
    structuredReplies,
  };
}
