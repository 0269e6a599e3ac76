// RFC 9162 Merkle tree proofs, as in `ledger/proof/merkle.py`. The shape of a proof follows from
// numbers (index, sizes) and is never read from the prover. Sizes and indices are BigInts.
import { concat, equal, hex } from "./bytes.mjs";
import { ProofError, inconsistent, malformed } from "./errors.mjs";
import { sha256 } from "./sha2.mjs";

export const HASH_BYTES = 32;
export const TREE_SIZE_MAX = 2n ** 63n - 1n;
export const EMPTY_ROOT = hex(sha256(new Uint8Array()));

/** Hash an entry's exact bytes as a leaf, SHA-256(0x00 || entry). */
export const leafHash = (entry) => sha256(concat([0], entry));

/** Hash two children of 32 bytes each, SHA-256(0x01 || left || right). */
export const nodeHash = (left, right) => sha256(concat([1], left, right));

/** Return the root over leaf hashes, in order; RFC 6962, section 2.1. */
export function rootHash(leaves) {
  if (!leaves.length) return sha256(new Uint8Array());
  let nodes = leaves;
  while (nodes.length > 1) {
    const pairs = nodes.slice(0, Math.ceil(nodes.length / 2));
    nodes = pairs.map((_, i) =>
      2 * i + 1 < nodes.length ? nodeHash(nodes[2 * i], nodes[2 * i + 1]) : nodes[2 * i],
    );
  }
  return nodes[0];
}

const bitLength = (x) => (x ? x.toString(2).length : 0);
const bitCount = (x) => x.toString(2).replaceAll("0", "").length;
const bit = (x, level) => (x >> BigInt(level)) & 1n;

/** Show that `leaf` stands at `index` in the tree (size, root) of one signed head, or throw. */
export function verifyInclusion(leaf, index, size, proof, root) {
  if (!(index >= 0n && index < size && size <= TREE_SIZE_MAX)) {
    throw malformed(`leaf index ${index} is outside a tree of ${size} entries`);
  }
  const inner = bitLength(index ^ (size - 1n)); // below it, the tree is complete around the leaf
  const border = bitCount(index >> BigInt(inner)); // above it, only left siblings exist
  checkHashes(proof, inner + border, [leaf, root]);
  let node = leaf;
  proof.forEach((sibling, level) => {
    const isRight = level >= inner || bit(index, level);
    node = isRight ? nodeHash(sibling, node) : nodeHash(node, sibling);
  });
  if (!equal(node, root)) {
    const found = { expected: hex(root), actual: hex(node) };
    throw new ProofError("NotIncluded", "the path does not lead to the signed root", found);
  }
}

/** Show that the tree (newSize, newRoot) extends (oldSize, oldRoot), or throw. */
export function verifyConsistency(oldSize, oldRoot, newSize, newRoot, proof) {
  if (!(oldSize >= 1n && oldSize <= newSize && newSize <= TREE_SIZE_MAX)) {
    throw malformed(`no consistency proof leads from size ${oldSize} to ${newSize}`);
  }
  const shift = bitLength(oldSize & -oldSize) - 1; // height of the old tree's last whole subtree
  const inner = bitLength((oldSize - 1n) ^ (newSize - 1n)) - shift;
  const border = bitCount((oldSize - 1n) >> BigInt(inner + shift));
  const isWhole = oldSize === 1n << BigInt(shift); // a power of two: the old root is left out
  const length = oldSize === newSize ? 0 : inner + border + (isWhole ? 0 : 1);
  checkHashes(proof, length, [oldRoot, newRoot]);
  if (oldSize === newSize) {
    sameRoot("old", oldSize, oldRoot, newRoot);
    return;
  }
  const [seed, ...path] = isWhole ? [oldRoot, ...proof] : proof;
  let [oldNode, newNode] = [seed, seed];
  path.forEach((sibling, level) => {
    if (level >= inner || bit(oldSize - 1n, level + shift)) {
      [oldNode, newNode] = [nodeHash(sibling, oldNode), nodeHash(sibling, newNode)];
    } else newNode = nodeHash(newNode, sibling);
  });
  sameRoot("old", oldSize, oldRoot, oldNode);
  sameRoot("new", newSize, newRoot, newNode);
}

function sameRoot(which, size, expected, actual) {
  if (!equal(expected, actual)) {
    const found = { expected: hex(expected), actual: hex(actual) };
    throw inconsistent(`the trees contradict each other: wrong ${which} root at size ${size}`, found);
  }
}

/** Refuse a proof of the wrong shape before anything is hashed. */
function checkHashes(proof, length, others) {
  if (proof.length !== length) {
    const found = { expected: `${length} hashes`, actual: `${proof.length} hashes` };
    throw malformed("the proof's length is not the one its sizes demand", found);
  }
  if ([...proof, ...others].some((item) => item.length !== HASH_BYTES)) {
    throw malformed(`a hash is not exactly ${HASH_BYTES} bytes long`);
  }
}
