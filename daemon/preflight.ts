/**
 * Looks at the cache device and the origins before the native side claims them: what can be said
 * more clearly from here. The native side checks again; a race between the two is harmless.
 */

import type { Config } from './config.ts';
import { type Device, findDevice, refuseDeviceInUse } from './devices.ts';
import { ringfenceError } from './errors.ts';

/**
 * Refuses devices that are missing, in use or given twice.
 *
 * @throws the errors of {@link findDevice} and {@link refuseDeviceInUse}, `RF_ORIGIN_TWICE` and
 *   `RF_ORIGIN_IS_CACHE`
 */
export async function checkDevices(config: Pick<Config, 'cache' | 'exports'>): Promise<void> {
  const cache = await findDevice(config.cache, 'cache device');
  const origins = new Map<string, { readonly name: string; readonly device: Device }>();
  for (const { name, origin } of config.exports) {
    const device = await findDevice(origin, 'origin');
    if (device.identity === cache.identity) {
      throw ringfenceError('RF_ORIGIN_IS_CACHE', [name, config.cache]);
    }
    const other = origins.get(device.identity);
    if (other !== undefined) {
      throw ringfenceError('RF_ORIGIN_TWICE', [other.name, name, origin]);
    }
    origins.set(device.identity, { name, device });
  }
  await refuseDeviceInUse(cache, 'cache device');
  for (const { name, mode } of config.exports) {
    // A read-only export never writes, so a mounted origin is the operator's own business.
    if (mode === 'readonly') continue;
    for (const origin of origins.values()) {
      if (origin.name === name) await refuseDeviceInUse(origin.device, 'origin');
    }
  }
}
