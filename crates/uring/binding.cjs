'use strict';

// Loads the addon that `npm run build` puts beside this file. Its types are in `binding.d.cts`,
// generated from the Rust sources; `daemon/native.ts` is the contract that both sides keep.
const { existsSync } = require('node:fs');
const { join } = require('node:path');

const addon = join(__dirname, 'ringfence.node');
if (!existsSync(addon)) {
  throw new Error('the native module is not built yet: run `npm run build` first');
}
module.exports = require(addon);
