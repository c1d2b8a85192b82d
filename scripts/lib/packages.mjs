// What the tests need beyond the project: foreign clients and servers, and a machine to boot.
import { existsSync, readFileSync } from 'node:fs';
import process from 'node:process';
import { output, run } from './process.mjs';

/** Debian's package, and what shows that it is there. */
const NEEDED = [
  { package: 'busybox-static', program: 'busybox' },
  { package: 'cpio', program: 'cpio' },
  { package: 'e2fsprogs', program: 'mkfs.ext4' },
  { package: 'fio', program: 'fio' },
  { package: 'libnbd-bin', program: 'nbdcopy' },
  { package: 'mount', program: 'losetup' },
  { package: 'nbd-client', program: 'nbd-client' },
  { package: 'nbdfuse', program: 'nbdfuse' },
  { package: 'nbdkit', program: 'nbdkit' },
  { package: 'prometheus', program: 'promtool' },
  { package: 'python3-libnbd', file: '/usr/lib/python3/dist-packages/nbd.py' },
  { package: 'qemu-system-common', file: '/usr/lib/qemu/virtiofsd' },
  { package: 'qemu-system-x86', program: 'qemu-system-x86_64' },
  { package: 'qemu-utils', program: 'qemu-io' },
  { package: 'xfsprogs', program: 'mkfs.xfs' },
];

const FOLDERS = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];

/** Debian's packages that are not there. */
function missingPackages() {
  const missing = NEEDED.filter(({ program, file }) =>
    file === undefined
      ? !FOLDERS.some((folder) => existsSync(`${folder}/${program}`))
      : !existsSync(file),
  );
  return missing.map((need) => need.package);
}

function isDebian() {
  if (!existsSync('/etc/os-release')) return false;
  const names = readFileSync('/etc/os-release', 'utf8');
  return /^ID(_LIKE)?=.*\bdebian\b/m.test(names) && output('apt-get', ['--version']) !== null;
}

/**
 * Installs what is missing where that is possible.
 *
 * @param {string} log path of a file for apt's words
 * @returns {Promise<string | null>} a sentence that names what is still missing, or null
 */
export async function installTestPackages(log) {
  const wanted = missingPackages();
  if (wanted.length > 0 && process.getuid?.() === 0 && isDebian()) {
    // Prometheus and nbd-client bring services, which nobody wants started.
    const env = { DEBIAN_FRONTEND: 'noninteractive', RUNLEVEL: '1', SYSTEMD_OFFLINE: '1' };
    const install = ['install', '--yes', '--no-install-recommends', ...wanted];
    await run('apt-get', ['update'], { quiet: true, log, env });
    await run('apt-get', install, { quiet: true, log, env });
  }
  const missing = missingPackages();
  if (missing.length === 0) return null;
  return `The tests need these Debian packages: ${missing.join(', ')}. Install them first.`;
}
