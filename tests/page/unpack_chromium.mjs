// Unpacks the Chromium of package.json, beside it: the program, and libraries for machines that
// have never had a browser. Prints nothing; the files are there, whole, or not at all.
import { chmodSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { brotliDecompressSync } from "node:zlib";

const folder = new URL("node_modules/", import.meta.url);
const packed = new URL("@sparticuz/chromium/bin/", folder);
const unpacked = new URL(".chromium/", folder);
mkdirSync(unpacked, { recursive: true });
for (const name of ["al2023.tar", "chromium"]) {
  const made = new URL(`${name}.${process.pid}`, unpacked);
  writeFileSync(made, brotliDecompressSync(readFileSync(new URL(`${name}.br`, packed))));
  chmodSync(made, 0o755);
  renameSync(made, new URL(name, unpacked));
}
