// The bundle: JSON in exactly one spelling, parsed but not believed; FORMAT.md, section 6, and
// `ledger/proof/bundle.py`.
import { decodeBase64, encodeBase64, equal, grouped, hex, utf8 } from "./bytes.mjs";
import { malformed } from "./errors.mjs";
import { sha256 } from "./sha2.mjs";
import { parseJson } from "./strict_json.mjs";

export const BUNDLE_BYTES_MAX = 32 * 1024 * 1024;
const SCHEMA = "rlhf-audit/bundle/v1";
const ENTRIES_MAX = 10_000;
const ENTRY_BYTES_MAX = 65_535;
const OPENINGS_MAX = 64; // of one entry
const KEYS_MAX = 16;
const ANCHORS_MAX = 1_000;
const PATH_MAX = 64;
const INDEX_MAX = 2n ** 53n - 1n;
const FIELDS = ["schema", "log_keys", "tree_head", "entries", "anchored", "chain", "sha256"];

/**
 * Read the bytes of a bundle file; white space at the end is allowed.
 *
 * Returns `logKeys`, `treeHead`, `entries` (`index`, `entry`, `path`, `openings`), `anchored`
 * (`treeHead`, `path`), `chain` (bytes, empty if there is none) and `digestMatches`.
 */
export function parseBundle(data) {
  if (data.length > BUNDLE_BYTES_MAX) {
    throw malformed(`a bundle is at most ${grouped(BUNDLE_BYTES_MAX)} bytes`);
  }
  let end = data.length;
  while (end && [13, 10, 9, 32].includes(data[end - 1])) end--;
  const written = data.subarray(0, end);
  const record = parseJson(written);
  if (!(record instanceof Map) || record.get("schema") !== SCHEMA) {
    throw malformed("this is not a bundle of a version this verifier knows", {
      expected: SCHEMA,
      next: "install a newer rlhf-audit-trail, or ask for a bundle of this version",
    });
  }
  const bundle = fromJson(record);
  const body = toJson(bundle);
  const spelt = dump({ ...body, sha256: record.get("sha256") });
  if (!equal(spelt, written)) throw malformed("the bundle is not in its one canonical spelling");
  return { ...bundle, digestMatches: hex(sha256(dump(body))) === record.get("sha256") };
}

/** Write compact JSON; JSON.stringify escapes what Python's encoder escapes, but for one case. */
function dump(record) {
  for (const text of texts(record)) {
    if (/\p{Cs}/u.test(text)) throw malformed("a text is not valid Unicode"); // a lone surrogate
  }
  return utf8(JSON.stringify(record));
}

/** Those texts of a bundle that are not base64. */
function texts({ log_keys, tree_head, entries, anchored, sha256 = "" }) {
  const names = entries.flatMap((item) => item.openings.map((opening) => opening.path));
  return [...log_keys, tree_head, ...names, ...anchored.map((item) => item.tree_head), sha256];
}

function toJson(bundle) {
  const opening = ({ path, salt, value }) => {
    return { path, salt: encodeBase64(salt), value: encodeBase64(value) };
  };
  return {
    schema: SCHEMA,
    log_keys: bundle.logKeys,
    tree_head: bundle.treeHead,
    entries: bundle.entries.map((item) => ({
      index: Number(item.index), // below 2^53, and so exact
      entry: encodeBase64(item.entry),
      path: item.path.map(encodeBase64),
      openings: item.openings.map(opening),
    })),
    anchored: bundle.anchored.map((item) => {
      return { tree_head: item.treeHead, path: item.path.map(encodeBase64) };
    }),
    ...(bundle.chain.length ? { chain: encodeBase64(bundle.chain) } : {}),
  };
}

function fromJson(given) {
  const record = given.has("chain") ? given : new Map([...given, ["chain", ""]]);
  checkFields(record, ...FIELDS);
  checkText(record.get("sha256"));
  const bundle = {
    logKeys: checkList(record.get("log_keys"), KEYS_MAX).map(checkText),
    treeHead: checkText(record.get("tree_head")),
    entries: checkList(record.get("entries"), ENTRIES_MAX).map(readEntry),
    anchored: checkList(record.get("anchored"), ANCHORS_MAX).map(readAnchored),
    chain: readBytes(record.get("chain")),
  };
  if (!bundle.logKeys.length || !bundle.entries.length) {
    throw malformed("a bundle needs at least one log key and one entry");
  }
  if (bundle.entries.some((item, i) => i && bundle.entries[i - 1].index >= item.index)) {
    throw malformed("a bundle's entries must stand in growing index order");
  }
  return bundle;
}

function readEntry(item) {
  checkFields(item, "index", "entry", "path", "openings");
  const [index, entry] = [item.get("index"), readBytes(item.get("entry"))];
  if (typeof index !== "bigint" || index < 0n || index > INDEX_MAX) {
    throw malformed("a leaf index must be a whole number from 0 to 2**53 - 1");
  }
  if (entry.length < 1 || entry.length > ENTRY_BYTES_MAX) {
    throw malformed(`an entry must be 1 to ${grouped(ENTRY_BYTES_MAX)} bytes`);
  }
  const openings = checkList(item.get("openings"), OPENINGS_MAX);
  return { index, entry, path: readHashes(item.get("path")), openings: openings.map(readOpening) };
}

function readOpening(item) {
  checkFields(item, "path", "salt", "value");
  const path = checkText(item.get("path"));
  return { path, salt: readBytes(item.get("salt")), value: readBytes(item.get("value")) };
}

function readAnchored(item) {
  checkFields(item, "tree_head", "path");
  return { treeHead: checkText(item.get("tree_head")), path: readHashes(item.get("path")) };
}

const readHashes = (items) => checkList(items, PATH_MAX).map(readBytes);

const readBytes = (item) => decodeBase64(checkText(item), "a bundle's binary field");

function checkFields(item, ...names) {
  if (!(item instanceof Map && item.size === names.length && names.every((x) => item.has(x)))) {
    throw malformed(`a bundle's object has other fields than ${names.join(", ")}`);
  }
}

function checkList(items, most) {
  if (!Array.isArray(items) || items.length > most) {
    throw malformed(`a bundle's list is no list, or longer than ${grouped(most)}`);
  }
  return items;
}

function checkText(item) {
  if (typeof item !== "string") throw malformed("a bundle's text field is not text");
  return item;
}
