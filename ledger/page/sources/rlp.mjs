// RLP (Ethereum Yellow Paper, appendix B), as in `ledger/proof/evm/rlp.py`. An item is bytes or an
// array of items. Each has one encoding, and only that is read: decoded, encoded again, compared.
import { concat, equal, fromHex, joined, toNumber } from "./bytes.mjs";
import { malformed } from "./errors.mjs";

const DEPTH_MAX = 72;
const TEXT = 0x80;
const LIST = 0xc0;
const SHORT_MAX = 55; // a longer payload has its length written out behind the first byte
const TOO_EARLY = "RLP that ends too early";

/** Read one item that is all of `data`, else MalformedBundle. */
export function decodeRlp(data) {
  const [item, end] = readItem(data, 0, DEPTH_MAX);
  if (end !== data.length || !equal(encodeRlp(item), data)) {
    throw malformed("RLP in another than its one spelling, or with something after it");
  }
  return item;
}

/** Write an item. */
export function encodeRlp(item) {
  if (Array.isArray(item)) {
    const payload = joined(item.map(encodeRlp));
    return concat(prefix(LIST, payload.length), payload);
  }
  if (item.length === 1 && item[0] < TEXT) return item;
  return concat(prefix(TEXT, item.length), item);
}

/** Return a number as the bytes that stand for it: big-endian, without leading zeros. */
export function writeNumber(number) {
  const digits = number ? number.toString(16) : "";
  return fromHex(digits.length % 2 ? `0${digits}` : digits);
}

/** Read a number of at most so many bytes, without leading zeros, as a BigInt. */
export function readNumber(item, bytesMax) {
  if (Array.isArray(item) || item.length > bytesMax || item[0] === 0) {
    throw malformed("a number has leading zeros, too many bytes, or is none");
  }
  return toNumber(item);
}

function prefix(kind, length) {
  if (length <= SHORT_MAX) return [kind + length];
  const written = writeNumber(length);
  return [kind + SHORT_MAX + written.length, ...written];
}

/** Read the item at `at`, and return with it where it ends; its spelling is checked later. */
function readItem(data, at, depth) {
  if (!depth || at >= data.length) throw malformed(`${TOO_EARLY}, or is nested too deep`);
  const first = data[at];
  if (first < TEXT) return [data.subarray(at, at + 1), at + 1];
  const kind = first >= LIST ? LIST : TEXT;
  let begin = at + 1;
  let length = first - kind;
  if (length > SHORT_MAX) {
    const from = begin;
    begin += length - SHORT_MAX;
    length = Number(toNumber(data.subarray(from, begin)));
  }
  const end = begin + length;
  if (end > data.length) throw malformed(TOO_EARLY);
  if (kind === TEXT) return [data.subarray(begin, end), end];
  const items = [];
  while (begin < end) {
    const [item, next] = readItem(data, begin, depth - 1);
    items.push(item);
    begin = next;
  }
  if (begin !== end) throw malformed("an RLP item reaches beyond its list");
  return [items, end];
}
