// Loaded before all else, and in a language that Node 8 reads: an old Node is told so in a sentence
// instead of stumbling over the first line that it does not understand.
'use strict';

/** The oldest Node, as in package.json's `engines`. */
const OLDEST = '20.19';

/**
 * @param {string} found a version of Node
 * @returns {string | null} why it will not do
 */
function nodeRefusal(found) {
  const [major = 0, minor = 0] = found.split('.').map(Number);
  const [oldestMajor = 0, oldestMinor = 0] = OLDEST.split('.').map(Number);
  if (major > oldestMajor || (major === oldestMajor && minor >= oldestMinor)) return null;
  return `Node ${found} is too old: install Node ${OLDEST} or later from https://nodejs.org.`;
}

const refusal = nodeRefusal(process.versions.node);
if (refusal !== null) {
  process.stderr.write(`${refusal}\n`);
  process.exit(1);
}

module.exports = { nodeRefusal };
