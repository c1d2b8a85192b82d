/** What the documentation names is there: links, files, folders, functions, scripts and verbs. */

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test from 'ava';
import { buildProgram } from '../../daemon/cli/main.ts';
import { createFakeNative } from '../daemon/fake-native.ts';
import { projectRoot } from '../support/process.ts';

function read(path: string): string {
  return readFileSync(join(projectRoot, path), 'utf8');
}

function pagesIn(folder: string): string[] {
  return readdirSync(join(projectRoot, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.md'))
    .map((name) => join(folder, name));
}

const PAGES = ['README.md', 'ARCHITECTURE.md', 'CHANGELOG.md', ...pagesIn('docs')];

/** The name that a heading can be linked by. */
function anchorOf(heading: string): string {
  return heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
    .replaceAll(' ', '-');
}

function anchorsOf(page: string): Set<string> {
  return new Set([...read(page).matchAll(/^#+ (.+)$/gm)].map(([, text = '']) => anchorOf(text)));
}

test('links within the project lead somewhere', (t) => {
  let count = 0;
  for (const page of PAGES) {
    for (const [, target = ''] of read(page).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue;
      const [path = '', anchor] = target.split('#');
      const file = path === '' ? page : join(dirname(page), path);
      t.true(existsSync(join(projectRoot, file)), `${page}: ${target}`);
      if (anchor !== undefined) t.true(anchorsOf(file).has(anchor), `${page}: ${target}`);
      count += 1;
    }
  }
  t.true(count > 20, `${count} links`);
});

const ARCHITECTURE = read('ARCHITECTURE.md');
const FOLDERS = /^(bench|bin|contrib|crates|daemon|docs|metrics|nbd|scripts|test)\//;

/** Code spans of a text, without what is in fenced blocks. */
function spansOf(text: string): string[] {
  const prose = text.replaceAll(/^```[\s\S]*?^```$/gm, '');
  return [...prose.matchAll(/`([^`]+)`/g)].map(([, span = '']) => span);
}

test('files and folders that are named exist', (t) => {
  const named = PAGES.flatMap((page) => spansOf(read(page)).map((span) => ({ page, span })));
  const paths = named.filter(({ span }) => FOLDERS.test(span) && !span.includes(' '));
  for (const { page, span } of paths) {
    t.true(existsSync(join(projectRoot, span)), `${page}: ${span}`);
  }
  t.true(paths.length > 50, `${paths.length} paths`);
});

test('functions are in the files that they are named with', (t) => {
  let count = 0;
  const pattern = /`([\w/.-]+\.(?:rs|ts))`: ((?:`\w+`(?:, )?)+)/g;
  for (const [, file = '', names = ''] of ARCHITECTURE.matchAll(pattern)) {
    const source = read(file);
    for (const [, name = ''] of names.matchAll(/`(\w+)`/g)) {
      t.regex(source, new RegExp(`\\b(?:fn|function) ${name}\\b`), `${file}: ${name}`);
      count += 1;
    }
  }
  t.true(count > 60, `${count} functions`);
});

test('every file of the engine and of the ring is in its listing', (t) => {
  for (const folder of ['crates/cache/src/engine', 'crates/uring/src/ring']) {
    const start = ARCHITECTURE.indexOf(`\`${folder}/\`:`);
    t.true(start > 0, folder);
    const listing = ARCHITECTURE.slice(start).split('\n\n')[1] ?? '';
    const listed = [...listing.matchAll(/^\| `([\w.]+)` \|/gm)].map(([, name = '']) => name);
    const found = readdirSync(join(projectRoot, folder)).filter((name) => name !== 'tests');
    t.deepEqual(listed.sort(), found.sort(), folder);
  }
});

const RULES = [...read('docs/format.md').matchAll(/^(\d+)\. /gm)].map(([, n]) => Number(n));

/** Numbers of rules that a text cites: `rule 4`, `rules 4, 8 and 10`. */
function citedIn(text: string): number[] {
  // A citation may be broken over lines of a comment.
  const joined = text.replaceAll(/\s*\n\s*(?:\/\/[/!]?|\*)?\s*/g, ' ');
  const citations = joined.matchAll(/\brules? (\d+(?:(?:,| and|, and) \d+)*)/gi);
  return [...citations].flatMap(([, list = '']) => list.match(/\d+/g)?.map(Number) ?? []);
}

/** Sources of the crates, each cut into what is shipped and what tests it. */
function sources() {
  const files = readdirSync(join(projectRoot, 'crates'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.rs'))
    .map((name) => join('crates', name));
  const parts = files.map((file) => {
    const isTest = file.includes('/tests/') || file.startsWith('crates/sim/');
    const [code = '', test = ''] = read(file).split('#[cfg(test)]\nmod tests');
    return isTest ? { code: '', test: code + test } : { code, test };
  });
  return {
    code: parts.flatMap(({ code }) => citedIn(code)),
    tests: parts.flatMap(({ test }) => citedIn(test)),
  };
}

test('the rules are numbered as the code cites them', (t) => {
  t.deepEqual(
    RULES,
    RULES.map((_, index) => index + 1),
  );
  const { code, tests } = sources();
  const cited = [...code, ...tests, ...PAGES.flatMap((page) => citedIn(read(page)))];
  t.deepEqual(
    cited.filter((number) => !RULES.includes(number)),
    [],
  );
  t.true(cited.length > 50, `${cited.length} citations`);
});

test('every rule is named where it is kept, and in a test', (t) => {
  const { code, tests } = sources();
  // The simulator finds each of these when a build breaks it on purpose.
  const canaries = /RULES: [^=]+= \[([^\]]+)\]/.exec(read('crates/cache/src/canary.rs'))?.[1] ?? '';
  const tested = [...tests, ...canaries.split(', ').map(Number)];
  // About origins that are NBD exports, which are not there yet.
  const rules = RULES.filter((rule) => rule !== 21);
  t.deepEqual(
    rules.filter((rule) => !code.includes(rule)),
    [],
    'kept nowhere',
  );
  t.deepEqual(
    rules.filter((rule) => !tested.includes(rule)),
    [],
    'tested nowhere',
  );
});

test('README names commands and scripts that exist, and what they need', (t) => {
  const readme = read('README.md');
  const context = { write: () => undefined, writeError: () => undefined, ask: async () => null };
  const program = buildProgram({ ...context, native: createFakeNative });
  const verbs = program.commands.map((command) => command.name());
  const used = [...readme.matchAll(/bin\/ringfence ([a-z]+)/g)].map(([, verb = '']) => verb);
  t.deepEqual(
    used.filter((verb) => !verbs.includes(verb)),
    [],
  );
  t.true(used.length >= 4);
  const scripts = Object.keys(JSON.parse(read('package.json')).scripts);
  const run = [...readme.matchAll(/npm (?:run )?([a-z]+)/g)].map(([, name = '']) => name);
  for (const name of run) t.true(scripts.includes(name), name);
  const rust = /^rust-version = "([\d.]+)"/m.exec(read('Cargo.toml'))?.[1] ?? '?';
  t.true(readme.includes(`Rust ${rust} or\nlater`) || readme.includes(`Rust ${rust} or later`));
  const { engines } = JSON.parse(read('package.json'));
  t.true(readme.includes(`Node ${engines.node.slice(2)} or later`), engines.node);
});
