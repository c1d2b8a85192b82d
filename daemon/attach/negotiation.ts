/** Negotiating with a server on behalf of the kernel's client. */

import { concat } from '../../nbd/bytes.ts';
import type { BeginClientTransmission } from '../../nbd/client/effects.ts';
import { createClientHandshake } from '../../nbd/client/handshake.ts';
import { TRANSMISSION_FLAG } from '../../nbd/constants.ts';
import { type Address, formatAddress } from '../addresses.ts';
import { codeOf, reasonOf, ringfenceError } from '../errors.ts';
import type { NativeClient, NativeLink } from './native.ts';

/** A connection whose handshake is done. */
export interface Negotiated {
  readonly link: NativeLink;
  readonly begin: BeginClientTransmission;
}

/**
 * Connects and negotiates. Structured replies are not asked for: the kernel knows none.
 *
 * @throws `RF_NEGOTIATION`
 */
export async function negotiate(
  native: Pick<NativeClient, 'connectNbd'>,
  address: Address,
  exportName: string,
): Promise<Negotiated> {
  const place = formatAddress(address);
  let link: NativeLink | null = null;
  try {
    link = await native.connectNbd(place);
    return { link, begin: await shakeHands(link, exportName) };
  } catch (error) {
    link?.close();
    if (codeOf(error)?.startsWith('RF_')) throw error;
    const reason = reasonOf(error).replace(`${place} cannot be reached: `, '');
    throw ringfenceError('RF_NEGOTIATION', [place, reason], error);
  }
}

async function shakeHands(link: NativeLink, exportName: string): Promise<BeginClientTransmission> {
  const handshake = createClientHandshake({ exportName, structuredReplies: false });
  let effects = handshake.start();
  for (;;) {
    const sends: Uint8Array[] = [];
    let received: Uint8Array | null = null;
    for (const effect of effects) {
      if (effect.type === 'begin') return effect;
      if (effect.type === 'send') sends.push(effect.bytes);
      else if (effect.type === 'receive') {
        received = await link.exchange(concat(sends), effect.length);
      } else {
        // A goodbye that does not arrive changes nothing.
        await link.exchange(concat(sends), 0).catch(() => undefined);
        throw new Error(effect.reason);
      }
    }
    if (received === null) throw new Error('the handshake stands still');
    effects = handshake.onBytes(received);
  }
}

/** What the kernel was told that an export can do, and goes on to use without asking again. */
const ABILITIES = [
  ['flush', TRANSMISSION_FLAG.sendFlush],
  ['FUA', TRANSMISSION_FLAG.sendFua],
  ['trim', TRANSMISSION_FLAG.sendTrim],
  ['write zeroes', TRANSMISSION_FLAG.sendWriteZeroes],
  ['several connections', TRANSMISSION_FLAG.canMultiConn],
] as const;

/**
 * Why a device that was attached to `before` cannot go on with `now`; null where it can. A server
 * that was upgraded may offer more; one that lacks what the kernel relies on is another disk.
 */
export function incompatibility(
  before: BeginClientTransmission,
  now: BeginClientTransmission,
): string | null {
  if (now.sizeBytes !== before.sizeBytes) {
    return `it had ${before.sizeBytes} bytes and now has ${now.sizeBytes}`;
  }
  const readOnly = TRANSMISSION_FLAG.readOnly;
  if ((before.transmissionFlags & readOnly) !== (now.transmissionFlags & readOnly)) {
    return (now.transmissionFlags & readOnly) !== 0 ? 'it is read-only now' : 'it was read-only';
  }
  const lost = before.transmissionFlags & ~now.transmissionFlags;
  const missing = ABILITIES.filter(([, flag]) => (lost & flag) !== 0).map(([name]) => name);
  return missing.length === 0 ? null : `it has lost ${missing.join(', ')}`;
}
