import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { runAnyway } from '../support/process.ts';
import { ringfenceCommand } from '../support/ringfence.ts';
import { temporaryFolder } from './temporary.ts';

/** Prints every module that the command imports, on standard error, as `import NAME`. */
const PRELOAD = `
  import { register } from 'node:module';
  const hooks = \`
    import { writeSync } from 'node:fs';
    export function resolve(name, context, next) {
      writeSync(2, 'import ' + name + '\\\\n');
      return next(name, context);
    }\`;
  register('data:text/javascript,' + encodeURIComponent(hooks));
`;

async function importedBy(...words: readonly string[]): Promise<readonly string[]> {
  const preload = `data:text/javascript,${encodeURIComponent(PRELOAD)}`;
  const { stderr } = await runAnyway('node', ['--import', preload, ringfenceCommand, ...words]);
  return stderr.split('\n').flatMap((line) => /^import (.*)$/.exec(line)?.slice(1) ?? []);
}

test('a verb loads schemas, TOML and metrics only where it needs them', async (t) => {
  const dear = (modules: readonly string[]) =>
    ['zod', 'smol-toml', 'prom-client'].filter((name) => modules.includes(name));
  const config = join(await temporaryFolder(t), 'config.toml');
  await writeFile(config, 'no = "such key"\n');
  const [attach, serve] = await Promise.all([
    importedBy('attach', '--help'),
    importedBy('serve', '--config', config),
  ]);
  t.true(attach.includes('commander'));
  t.deepEqual(dear(attach), []);
  t.deepEqual(dear(serve), ['zod', 'smol-toml']);
});
