/** Data that can be made again at any time, and comparing what came back. */

import { closeSync, openSync, readSync, writeSync } from 'node:fs';

/** A small generator of pseudo-random 32-bit numbers: equal seeds give equal numbers. */
export function createRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    // splitmix32: every seed, zero too, starts a sequence of full period.
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = state;
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return (mixed ^ (mixed >>> 15)) >>> 0;
  };
}

/**
 * Fills a buffer with the content that belongs at a byte offset. Every 4 KiB differ, and equal
 * seed and offset give equal bytes however the range is cut. Both are multiples of 4 KiB.
 */
export function fillContent(buffer: Uint8Array, seed: number, offset: number): void {
  const words = new Uint32Array(buffer.buffer, buffer.byteOffset, buffer.byteLength / 4);
  for (let block = 0; block < words.length; block += 1024) {
    const random = createRandom((seed ^ Math.imul(offset / 4096 + block / 1024, 0x85ebca6b)) >>> 0);
    for (let word = block; word < block + 1024; word += 1) words[word] = random();
  }
}

/** A fresh buffer of {@link fillContent}'s data, safe to view as 32-bit words. */
export function makeContent(lengthBytes: number, seed: number, offset: number): Buffer {
  const buffer = Buffer.from(new ArrayBuffer(lengthBytes));
  fillContent(buffer, seed, offset);
  return buffer;
}

/** Writes a file of deterministic data. */
export function writeContentFile(path: string, sizeBytes: number, seed: number): void {
  const descriptor = openSync(path, 'w');
  const buffer = Buffer.from(new ArrayBuffer(1 << 20));
  for (let offset = 0; offset < sizeBytes; offset += buffer.length) {
    fillContent(buffer, seed, offset);
    writeSync(descriptor, buffer, 0, Math.min(buffer.length, sizeBytes - offset), offset);
  }
  closeSync(descriptor);
}

/** The byte offset where two files begin to differ, or null when `sizeBytes` of them are equal. */
export function firstDifference(left: string, right: string, sizeBytes: number): number | null {
  const descriptors = [openSync(left, 'r'), openSync(right, 'r')] as const;
  const buffers = [Buffer.alloc(1 << 20), Buffer.alloc(1 << 20)] as const;
  try {
    for (let offset = 0; offset < sizeBytes; offset += 1 << 20) {
      const length = Math.min(1 << 20, sizeBytes - offset);
      const counts = [0, 1].map((side) =>
        readSync(descriptors[side as 0 | 1], buffers[side as 0 | 1], 0, length, offset),
      );
      if (counts[0] !== length || counts[1] !== length) return offset;
      const equal = buffers[0].subarray(0, length).equals(buffers[1].subarray(0, length));
      if (equal) continue;
      return offset + buffers[0].findIndex((byte, index) => byte !== buffers[1][index]);
    }
    return null;
  } finally {
    for (const descriptor of descriptors) closeSync(descriptor);
  }
}
