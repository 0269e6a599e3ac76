// Merkle-Patricia tries (Yellow Paper, appendix D), as in `ledger/proof/evm/trie.py`. A proof is
// the trie cut down: nodes on the way to the keys stand written out in the place where their
// parent has their hash.
import { hex } from "./bytes.mjs";
import { inconsistent, malformed } from "./errors.mjs";
import { keccak256 } from "./keccak.mjs";
import { encodeRlp } from "./rlp.mjs";

const HASH_BYTES = 32;
const BRANCH_ITEMS = 17; // a child for each hex digit, and a value
const PAIR_ITEMS = 2; // extension and leaf: part of a key, and what follows
const [ODD, LEAF] = [1, 2]; // flags in the first hex digit of such a part

/** Return the values that the trie with this root holds at all of `keys`, or throw. */
export function lookUp(root, trie, keys) {
  const found = new Map(); // key in hex to value; shown only once the root fits
  const wanted = keys.map((key) => ({ left: hex(key), key: hex(key) }));
  const isEmpty = !Array.isArray(trie) && !trie.length;
  const actual = hex(keccak256(encodeRlp(isEmpty ? trie : hashChildren(trie, wanted, found))));
  if (actual !== hex(root)) {
    throw inconsistent("the nodes do not lead to the root", { expected: hex(root), actual });
  }
  return wanted.map(({ key }) => {
    if (found.get(key)?.length) return found.get(key);
    throw inconsistent("the chain holds nothing there", { expected: `a value at ${key}` });
  });
}

/** Return the node as it is hashed: children written out replaced by what names them. */
function hashChildren(node, keys, found) {
  if (!Array.isArray(node) || ![BRANCH_ITEMS, PAIR_ITEMS].includes(node.length)) {
    throw malformed("this is no node of a trie");
  }
  const ending = (among) => among.find(({ left }) => left === "");
  const last = node[node.length - 1];
  if (node.length === BRANCH_ITEMS) {
    if (ending(keys)) found.set(ending(keys).key, valueOf(last));
    const children = node.slice(0, -1).map((child, n) => {
      const below = keys.filter(({ left }) => left.startsWith(n.toString(16)));
      return nameOf(child, shortened(below, 1), found);
    });
    return [...children, valueOf(last)];
  }
  const [part, isLeaf] = readPart(node[0]);
  const below = shortened(keys.filter(({ left }) => left.startsWith(part)), part.length);
  if (!isLeaf) return [node[0], nameOf(last, below, found)];
  if (ending(below)) found.set(ending(below).key, valueOf(last));
  return [node[0], valueOf(last)];
}

const shortened = (keys, count) => keys.map(({ left, key }) => ({ left: left.slice(count), key }));

/** Return what names a child in its parent: its hash or, below 32 bytes, the child itself. */
function nameOf(child, keys, found) {
  if (!Array.isArray(child)) {
    if (child.length && child.length !== HASH_BYTES) {
      throw malformed("a node is named by something that is no hash");
    }
    if (child.length && keys.length) throw malformed("a node is missing");
    return child;
  }
  const node = hashChildren(child, keys, found);
  const raw = encodeRlp(node);
  if (raw.length < HASH_BYTES) return node;
  if (!keys.length) throw malformed("there is a node that no key needs");
  return keccak256(raw);
}

/** Return part of a key in hex digits, and whether it ends a leaf; else MalformedBundle. */
function readPart(item) {
  const digits = Array.isArray(item) ? "" : hex(item);
  const flags = parseInt(digits[0] ?? "f", 16);
  const part = digits.slice(flags & ODD ? 1 : 2);
  if (flags > (ODD | LEAF) || (!(flags & ODD) && digits[1] !== "0")) {
    throw malformed("part of a key begins with other flags than the four there are");
  }
  if (!part && !(flags & LEAF)) throw malformed("an extension node without a part of a key");
  return [part, Boolean(flags & LEAF)];
}

function valueOf(item) {
  if (Array.isArray(item)) throw malformed("a trie's value is no bytes");
  return item;
}
