/** Addresses that clients connect to, and the command that attaches one. */

import { resolve } from 'node:path';
import { ringfenceError } from './errors.ts';

/** A place to listen on or to connect to. */
export type Address =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number };

/** The kernel's limit for the path of a Unix socket, without its final zero byte. */
export const UNIX_PATH_BYTES_MAX = 107;

/**
 * Parses `unix:PATH` or `HOST:PORT`; an IPv6 host stands in brackets. The path becomes absolute.
 *
 * @throws `RF_ADDRESS`, `RF_ADDRESS_LONG`
 */
export function parseAddress(text: string): Address {
  if (text.startsWith('unix:')) {
    const given = text.slice('unix:'.length);
    if (given === '' || given.includes('\0')) throw ringfenceError('RF_ADDRESS', [text]);
    // A client may ask from another directory, and the attached device is known by this path.
    const path = resolve(given);
    if (Buffer.byteLength(path) > UNIX_PATH_BYTES_MAX) {
      throw ringfenceError('RF_ADDRESS_LONG', [path, `${UNIX_PATH_BYTES_MAX}`]);
    }
    return { kind: 'unix', path };
  }
  return parseTcpAddress(text);
}

/**
 * Parses `HOST:PORT`.
 *
 * @throws `RF_ADDRESS`
 */
export function parseTcpAddress(text: string): Address & { kind: 'tcp' } {
  const match = /^(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:[\]\s/]+)):([0-9]{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || !(port <= 65_535)) throw ringfenceError('RF_ADDRESS', [text]);
  return { kind: 'tcp', host, port };
}

/**
 * Parses who may connect to a Unix socket: `660`, or `0660`.
 *
 * @throws `RF_SOCKET_MODE`
 */
export function parseSocketMode(text: string): number {
  if (!/^0?[0-7]{3}$/.test(text)) throw ringfenceError('RF_SOCKET_MODE', [text]);
  return Number.parseInt(text, 8);
}

/** The text that {@link parseAddress} reads back. */
export function formatAddress(address: Address): string {
  if (address.kind === 'unix') return `unix:${address.path}`;
  return `${bracketed(address.host)}:${address.port}`;
}

/** The URI by which libnbd and qemu know an export: `nbd://` or `nbd+unix://`. */
export function nbdUri(address: Address, exportName: string): string {
  const name = encodeURIComponent(exportName);
  if (address.kind === 'unix') {
    const path = encodeURI(address.path).replace(/[&#?+]/g, encodeURIComponent);
    return `nbd+unix:///${name}?socket=${path}`;
  }
  return `nbd://${bracketed(reachableHost(address.host))}:${address.port}/${name}`;
}

/**
 * The command that attaches an export and keeps it attached while the daemon restarts.
 *
 * @param command how `ringfence` is called where the reader is
 */
export function attachCommand(command: string, address: Address, exportName: string): string {
  const place = shellQuoted(formatAddress(reachable(address)));
  return `${shellQuoted(command)} attach ${shellQuoted(exportName)} --connect ${place}`;
}

/** Where a client of this machine connects to. */
export function reachable(address: Address): Address {
  if (address.kind === 'unix') return address;
  return { ...address, host: reachableHost(address.host) };
}

/** A daemon that listens everywhere is reached here, at least, on the loopback address. */
function reachableHost(host: string): string {
  if (host === '0.0.0.0' || host === '*') return '127.0.0.1';
  return host === '::' ? '::1' : host;
}

function bracketed(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}

function shellQuoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
