// Tree heads: origin, size, root, and the signatures that make them binding; FORMAT.md, 5.3.
import { concat, decodeBase64, hex, latin1, toNumber, u64, utf8 } from "./bytes.mjs";
import { ed25519Fits } from "./ed25519.mjs";
import { ProofError, malformed } from "./errors.mjs";
import { EMPTY_ROOT, HASH_BYTES, TREE_SIZE_MAX } from "./merkle.mjs";
import { mldsaFits } from "./mldsa.mjs";
import { ED25519, checkName, parseNote } from "./note.mjs";

const TEXT = /^([^\n]+)\n(0|[1-9][0-9]{0,18})\n([^\n]+)\n$/;
const TIME_BYTES = 8;

/** Read a note's text as a tree head: `origin`, `size`, `root`, and the `text` itself. */
export function parseTreeHead(text) {
  const found = TEXT.exec(text);
  if (!found) {
    throw malformed("a tree head must be three lines: origin, decimal size, root");
  }
  const [, origin, digits, encoded] = found;
  checkName(origin); // a log's keys bear its origin as their name
  const [size, root] = [BigInt(digits), decodeBase64(encoded, "a root hash")];
  const fits = root.length === HASH_BYTES && (size > 0n || hex(root) === EMPTY_ROOT);
  if (size > TREE_SIZE_MAX || !fits) {
    throw malformed("a tree size is out of range, or its root hash does not fit it");
  }
  return { origin, size, root, text };
}

/** Return the bytes that an ML-DSA-44 key signs: the whole tree as one subtree; 5.4. */
function mldsaMessage(name, time, head) {
  const [signer, origin] = [utf8(name), utf8(head.origin)];
  const label = latin1("subtree/v1\n\0");
  const tree = concat([origin.length], origin, u64(0n), u64(head.size), head.root);
  return concat(label, [signer.length], signer, u64(toNumber(time)), tree);
}

/**
 * Ask the browser whether an ML-DSA-44 signature fits; false if it does not say yes.
 *
 * Its yes is enough, in half a millisecond: the algorithm has no corners in which implementations
 * differ. Its no may only mean that it has no such algorithm, or that the page came over http.
 */
async function browserFinds(key, message, signature) {
  try {
    const name = { name: "ML-DSA-44" };
    const imported = await crypto.subtle.importKey("raw-public", key, name, false, ["verify"]);
    return await crypto.subtle.verify(name, imported, signature, message);
  } catch {
    return false;
  }
}

/** Show that `key` signed `head`, or throw BadSignature. */
async function verifySignature(key, head, blob) {
  let fits;
  if (key.type === ED25519) {
    fits = ed25519Fits(key.material, utf8(head.text), blob);
  } else {
    const message = mldsaMessage(key.name, blob.subarray(0, TIME_BYTES), head);
    const signed = [key.material, message, blob.subarray(TIME_BYTES)];
    fits = (await browserFinds(...signed)) || mldsaFits(...signed);
  }
  if (!fits) {
    const text = `the ${key.algorithm} signature of ${key.name} does not fit this tree head`;
    throw new ProofError("BadSignature", text, {
      expected: `signature by key ${key.keyId}`,
      actual: "a signature over other bytes, or by another key",
    });
  }
}

/**
 * Read a signed tree head and check every signature by one of `keys`: `head` and `signedBy`.
 *
 * Lines by unknown keys are ignored. No signature is demanded here.
 */
export async function openTreeHead(note, keys) {
  const parsed = parseNote(note);
  const head = parseTreeHead(parsed.text);
  const signedBy = [];
  for (const key of keys) {
    const isOf = (line) => line.name === key.name && line.keyId === key.keyId;
    const lines = parsed.signatures.filter(isOf);
    for (const line of lines) await verifySignature(key, head, line.blob);
    if (lines.length && key.name === head.origin) signedBy.push(key);
  }
  return { head, signedBy };
}
