// Runs the page's kernel under Node: one JSON request a line in, one JSON answer a line out.
// What is asked for, and what the answers are compared with, is in `test_kernel.py`.
import { readFileSync } from "node:fs";

const from = (name) => import(new URL(`../../ledger/page/sources/${name}.mjs`, import.meta.url));
const { fromHex, hex } = await from("bytes");
const { verifyOpening } = await from("commitment");
const { ed25519Fits } = await from("ed25519");
const { keccak256 } = await from("keccak");
const merkle = await from("merkle");
const { mldsaFits } = await from("mldsa");
const { VerifierKey, noteText, parseNote } = await from("note");
const { asFragment, fromFragment } = await from("link");
const { sha256, sha512 } = await from("sha2");
const { parseJson } = await from("strict_json");
const { openTreeHead, parseTreeHead } = await from("tree_head");
const { answers, evidenceBlock, examineBundle, onTrust, reportText, toReport } = await from("verify");

const { trustOf } = await import("./vector_trust.mjs");

const bytes = (text) => Uint8Array.from(Buffer.from(text, "base64"));
const all = (texts) => texts.map(fromHex);

function assert(holds) {
  if (!holds) throw new Error("the kernel gives something else");
}

const run = {
  async bundle(given) {
    const [data, trust] = [bytes(given.data), trustOf(given.trust, VerifierKey)];
    const found = await examineBundle(data, trust);
    const taken = trust.chain ? onTrust(found, trust.chain, evidenceBlock(data)) : [];
    return { report: reportText(toReport(found)), ...answers(found), on_trust: taken };
  },
  root: (x) => assert(hex(merkle.rootHash(all(x.leaves))) === x.root),
  inclusion: (x) =>
    merkle.verifyInclusion(fromHex(x.leaf), BigInt(x.index), BigInt(x.size), all(x.path), fromHex(x.root)),
  consistency: (x) =>
    merkle.verifyConsistency(
      BigInt(x.old_size), fromHex(x.old_root), BigInt(x.new_size), fromHex(x.new_root), all(x.path),
    ),
  commitment: ({ path, salt, value, commitment }) =>
    assert(hex(verifyOpening(fromHex(commitment), { path, salt: fromHex(salt), value: fromHex(value) })) === value),
  note: ({ note }) => assert(noteText(parseNote(note)) === note),
  vkey: ({ vkey }) => assert(new VerifierKey(vkey).vkey === vkey),
  tree_head: ({ text }) => assert(parseTreeHead(text).text === text),
  async signed_tree_head({ note, keys }) {
    const { signedBy } = await openTreeHead(note, keys.map((key) => new VerifierKey(key)));
    return { signed_by: signedBy.map((key) => key.keyId) };
  },
  accumulated: ({ largest_size }) => ({ sha256: accumulate(largest_size) }),
  json: ({ data }) => ({ value: plain(parseJson(bytes(data))) }),
  signature: ({ algorithm, key, message, signature }) => {
    const fits = algorithm === "ED25519" ? ed25519Fits : mldsaFits;
    return { fits: fits(bytes(key), bytes(message), bytes(signature)) };
  },
  async fragment({ text }) {
    const data = await fromFragment(text);
    const again = await fromFragment(await asFragment(data));
    assert(hex(data) === hex(again));
    return { data: Buffer.from(data).toString("base64") };
  },
  hashes: ({ data }) => ({ all: [sha256, sha512, keccak256].map((f) => hex(f(bytes(data)))) }),
};

/** What a JSON value is, with its types, in words that Python has too. */
function plain(value) {
  if (value instanceof Map) return { object: [...value].map(([key, item]) => [key, plain(item)]) };
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === "bigint") return { whole: value.toString() };
  if (typeof value === "number") return { fraction: Number.isFinite(value) ? value : String(value) };
  return value;
}

/** Fold all proofs of all trees into one hash, h = SHA-256(h || u32 length || item). */
function accumulate(largest) {
  const leaves = Array.from({ length: largest }, (_, i) => merkle.leafHash(Uint8Array.of(i)));
  const known = new Map();
  const root = (begin, end) => {
    const name = `${begin} ${end}`;
    if (!known.has(name)) known.set(name, merkle.rootHash(leaves.slice(begin, end)));
    return known.get(name);
  };
  const split = (begin, end) => begin + 2 ** (32 - Math.clz32(end - begin - 1) - 1);
  // RFC 9162, sections 2.1.3.1 and 2.1.4.1, as they are written: by recursion
  const path = (m, begin, end) => {
    if (end - begin === 1) return [];
    const k = split(begin, end);
    return m < k ? [...path(m, begin, k), root(k, end)] : [...path(m, k, end), root(begin, k)];
  };
  const subproof = (m, begin, end, isWhole) => {
    if (m === end) return isWhole ? [] : [root(begin, end)];
    const k = split(begin, end);
    if (m <= k) return [...subproof(m, begin, k, isWhole), root(k, end)];
    return [...subproof(m, k, end, false), root(begin, k)];
  };
  let state = new Uint8Array(32);
  const fold = (items) => {
    const item = Buffer.concat(items);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(item.length);
    state = sha256(Uint8Array.from(Buffer.concat([state, length, item])));
  };
  for (let size = 1; size <= largest; size++) {
    const whole = root(0, size);
    fold([whole]);
    for (let index = 0; index < size; index++) {
      const proof = path(index, 0, size);
      merkle.verifyInclusion(leaves[index], BigInt(index), BigInt(size), proof, whole);
      fold(proof);
    }
    for (let old = 1; old <= size; old++) {
      const proof = subproof(old, 0, size, true);
      merkle.verifyConsistency(BigInt(old), root(0, old), BigInt(size), whole, proof);
      fold(proof);
    }
  }
  return hex(state);
}

for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const { kind, input } = JSON.parse(line);
  let answer;
  try {
    answer = { expect: "ok", ...(await run[kind](input)) };
  } catch (error) {
    if (error.expected === undefined) throw error;
    answer = { expect: error.name, message: error.message };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
