/** Options that several verbs share, and the parsers of option values. */

import { resolve } from 'node:path';
import { InvalidArgumentError, Option } from 'commander';
import { defaultControlPath } from '../config.ts';
import { RingfenceError } from '../errors.ts';

/** `--control PATH`, for the verbs that talk to a daemon. */
export function controlOption(): Option {
  return new Option('--control <path>', 'the control socket of the daemon')
    .argParser(controlPath)
    .default(defaultControlPath());
}

/** A parser for the path of a control socket, which becomes absolute: a bare number is no port. */
export function controlPath(text: string): string {
  if (text === '') throw new InvalidArgumentError('A path cannot be empty.');
  return resolve(text);
}

/** `--json`, for the verbs with an answer. */
export function jsonOption(): Option {
  return new Option('--json', 'answer in JSON');
}

/** Makes a parser of ours one of commander's, which names the option before our sentence. */
export function parsedBy<Parsed>(parser: (text: string) => Parsed): (text: string) => Parsed {
  return (text) => {
    try {
      return parser(text);
    } catch (error) {
      if (error instanceof RingfenceError) throw new InvalidArgumentError(error.message);
      throw error;
    }
  };
}

/** The same for an option that may be given several times. */
export function collectedBy<Parsed>(
  parser: (text: string) => Parsed,
): (text: string, before: readonly Parsed[] | undefined) => readonly Parsed[] {
  const parse = parsedBy(parser);
  return (text, before) => [...(before ?? []), parse(text)];
}

/** A parser for whole numbers from `low` to `high`. */
export function wholeNumber(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^[0-9]{1,15}$/.test(text) && value >= low && value <= high) return value;
    throw new InvalidArgumentError(`Write a whole number from ${low} to ${high}.`);
  };
}

/** A parser for one of several words. */
export function oneOf<Choice extends string>(choices: readonly Choice[]): (text: string) => Choice {
  return (text) => {
    const choice = choices.find((candidate) => candidate === text);
    if (choice !== undefined) return choice;
    throw new InvalidArgumentError(`Write one of ${choices.join(', ')}.`);
  };
}
