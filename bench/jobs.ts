/** What is measured: one fio job per row of the table, the same for every server. */

/** A peer, or the limit that the bare device sets. */
export type ServerName =
  | 'ringfence'
  | 'nbdkit null'
  | 'nbdkit memory'
  | 'nbdkit file'
  | 'qemu-nbd'
  | 'bare device';

/** What must be at least this many times a peer's figure. */
export interface Target {
  readonly peer: ServerName;
  readonly ratioMin: number;
}

/** How the data is laid before a job. */
export type Preparation =
  /** Nothing special: whatever the jobs before have left. */
  | 'none'
  /** The whole export is written in order, so that what lies below is on the device only. */
  | 'fill'
  /** The area is small; it is written and read once, so it lies in memory where there is any. */
  | 'warm';

/** One fio job. */
export interface Job {
  readonly name: string;
  /** As a reader of the report sees it. */
  readonly title: string;
  readonly pattern: 'randwrite' | 'randread' | 'write' | 'read';
  readonly blockBytes: number;
  readonly depth: number;
  /** A flush after this many writes; 0: none. */
  readonly flushEvery: number;
  /**
   * Whether fio replays a list of requests. Asked for `--fsync=32`, fio 3.33 sends 32 writes and
   * then turns each request that its queue has room for into a flush, until a write follows: at
   * depth 32 as many flushes as writes. One flush each 32 has to be put into a list.
   */
  readonly replayed: boolean;
  /** The job stays below this offset. */
  readonly areaBytes: number;
  readonly preparation: Preparation;
  readonly targets: readonly Target[];
  /** Peers that the server's CPU time per request must stay below. */
  readonly cpuBelow: readonly ServerName[];
}

const MIB = 1 << 20;

/** Size of every export, and of the device that peers serve. */
export const EXPORT_BYTES = 1024 * MIB;
/**
 * Size of the log: a burst of 3 s at 220,000 writes per second, which is what one client can send,
 * is 2.6 GB and fits twice over below the share of the log that dirty data may fill (3/4).
 */
export const CACHE_BYTES = 8192 * MIB;
/** The log of the sustained job: a few seconds fill it. */
export const SMALL_CACHE_BYTES = 512 * MIB;
/** ringfence's reserve, most of which holds what was written last. */
export const RESERVE = '256MiB';
/** What a read job asks for once the export was filled in order: none of it is in the reserve. */
const ON_DEVICE_BYTES = EXPORT_BYTES - 256 * MIB;

const base = {
  blockBytes: 4096,
  depth: 32,
  flushEvery: 0,
  replayed: false,
  areaBytes: EXPORT_BYTES,
  preparation: 'none',
  cpuBelow: ['nbdkit file', 'qemu-nbd'],
} as const;

/** Without a target for the CPU time: that is for a depth of 32. */
const shallow = { ...base, cpuBelow: [] } as const;

/** Of both ways to flush between many writes. */
const FLUSHING_TARGETS: readonly Target[] = [
  { peer: 'qemu-nbd', ratioMin: 2.0 },
  { peer: 'bare device', ratioMin: 1.2 },
];

/** All jobs, in the order in which they run and are reported. */
export const jobs: readonly Job[] = [
  {
    ...base,
    name: 'randwrite-32',
    title: 'random writes, depth 32, burst',
    pattern: 'randwrite',
    targets: [{ peer: 'nbdkit null', ratioMin: 1.0 }],
  },
  {
    ...shallow,
    name: 'randwrite-1',
    title: 'random writes, depth 1',
    pattern: 'randwrite',
    depth: 1,
    targets: [{ peer: 'nbdkit memory', ratioMin: 1.5 }],
  },
  {
    ...base,
    name: 'randwrite-32-flush',
    title: 'random writes, depth 32, a flush each 32',
    pattern: 'randwrite',
    flushEvery: 32,
    replayed: true,
    targets: FLUSHING_TARGETS,
  },
  {
    ...base,
    name: 'randwrite-32-fsync',
    title: 'the same as `fio --fsync=32` sends it, many flushes after each 32',
    pattern: 'randwrite',
    flushEvery: 32,
    targets: FLUSHING_TARGETS,
  },
  {
    ...shallow,
    name: 'randwrite-1-flush',
    title: 'random writes, depth 1, a flush each',
    pattern: 'randwrite',
    depth: 1,
    flushEvery: 1,
    targets: [{ peer: 'bare device', ratioMin: 0.9 }],
  },
  {
    ...base,
    name: 'randread-device',
    title: 'random reads of cached blocks, depth 32, from the device',
    pattern: 'randread',
    areaBytes: ON_DEVICE_BYTES,
    preparation: 'fill',
    targets: [
      { peer: 'bare device', ratioMin: 0.85 },
      { peer: 'qemu-nbd', ratioMin: 1.2 },
    ],
  },
  {
    ...base,
    name: 'randread-reserve',
    title: 'the same, from the reserve',
    pattern: 'randread',
    areaBytes: 32 * MIB,
    preparation: 'warm',
    targets: [{ peer: 'nbdkit file', ratioMin: 1.0 }],
  },
  {
    ...shallow,
    name: 'write-128k',
    title: '128 KiB stream, writing',
    pattern: 'write',
    blockBytes: 128 << 10,
    depth: 8,
    targets: [{ peer: 'qemu-nbd', ratioMin: 1.2 }],
  },
  {
    ...shallow,
    name: 'read-128k',
    title: '128 KiB stream, reading from the device',
    pattern: 'read',
    blockBytes: 128 << 10,
    depth: 8,
    areaBytes: ON_DEVICE_BYTES,
    preparation: 'fill',
    targets: [{ peer: 'qemu-nbd', ratioMin: 1.2 }],
  },
];
