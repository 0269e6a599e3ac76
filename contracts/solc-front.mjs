#!/usr/bin/env node
// Lets tools that expect a native solc (py-solc-x, forge) use the compiler from npm.
//
// The npm package's own command prints remarks before its JSON and refuses options that these
// tools always pass. This front prints only JSON on stdout, and errors on stderr with status 1.
//
//   solc-front.mjs --version
//   solc-front.mjs --standard-json [FILE | -]      JSON in, JSON out; FILE defaults to stdin

import { readFileSync, writeSync } from "node:fs";
import solc from "solc";

const USAGE = `solc, the solidity compiler commandline interface
Usage: solc-front.mjs --version | --standard-json [FILE]
Options --base-path, --include-path and --allow-paths are accepted and without effect:
every source must stand in the JSON itself.
`;

// Options that forge and py-solc-x pass along, with one value each. They steer the reading of
// files, and this front reads none.
const WITHOUT_EFFECT = ["--base-path", "--include-path", "--allow-paths"];

/** Write everything: on a pipe one call may write less, or answer EAGAIN while it is full. */
function print(text) {
  let rest = Buffer.from(text);
  while (rest.length > 0) {
    try {
      rest = rest.subarray(writeSync(1, rest));
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1); // sleep 1 ms
    }
  }
}

function main(args) {
  let input = null;
  for (let i = 0; i < args.length; i++) {
    if (args[i] === "--help") return print(USAGE);
    if (args[i] === "--version") {
      return print(`solc, the solidity compiler commandline interface\nVersion: ${solc.version()}\n`);
    }
    if (args[i] === "--standard-json") input ??= 0;
    else if (WITHOUT_EFFECT.includes(args[i])) i++;
    else if (args[i] === "-") input = 0;
    else if (!args[i].startsWith("-")) input = args[i];
    else throw new Error(`unknown option ${args[i]}`);
  }
  if (input === null) throw new Error("nothing to do; see --help");
  print(solc.compile(readFileSync(input, "utf8")) + "\n");
}

try {
  main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`solc-front: ${error.message}\n`);
  process.exitCode = 1;
}
