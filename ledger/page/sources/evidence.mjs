// Chain evidence: the tree head that a contract held, or announced, as of one block. The checks
// are those of FORMAT.md, section 9.1, as in `ledger/proof/evm/evidence.py`.
//
// `trust` is what the user trusts about a chain, none of it from the file: `chainId`, `contract`,
// `publisher`, `logId`, `codeHash`, `addressBindsCode`, and `blocks` of `chainId`, `number`,
// `hash` and `by`. Numbers are BigInts.
import { concat, equal, grouped, hex, quoted, toNumber, utf8 } from "./bytes.mjs";
import { ProofError, inconsistent, malformed } from "./errors.mjs";
import { keccak256 } from "./keccak.mjs";
import { decodeRlp, encodeRlp, readNumber, writeNumber } from "./rlp.mjs";
import { lookUp } from "./trie.mjs";

const CHAIN_BYTES_MAX = 131_072;
const ADDRESS_BYTES = 20;
const WORD_BYTES = 32;
const NO_BLOOM = new Uint8Array(256);
// Fields of a header and of an account by their place; later forks add fields behind them.
const [STATE_ROOT, RECEIPTS_ROOT, BLOOM, NUMBER, TIME, HEADER_FIELDS_MIN] = [3, 5, 6, 8, 11, 15];
const [STORAGE_ROOT, CODE_HASH, ACCOUNT_FIELDS] = [2, 3, 4];
const TIME_S_MAX = 253_402_300_799n; // the last second that a date can be written for
const EVENT = utf8("TreeHeadAnchored(address,bytes32,uint64,uint64,bytes32)");

/** Read the chain part of a bundle. */
export function parseEvidence(data) {
  if (data.length > CHAIN_BYTES_MAX) {
    throw malformed(`chain evidence is at most ${grouped(CHAIN_BYTES_MAX)} bytes`);
  }
  const items = checkItems(decodeRlp(data), "chain evidence", 7);
  const [chainId, contract, publisher, logId, header, account, storage] = items;
  checkLength(ADDRESS_BYTES, contract);
  checkLength(ADDRESS_BYTES, publisher);
  checkLength(WORD_BYTES, logId);
  return { chainId: readNumber(chainId, 8), contract, publisher, logId, header, account, storage };
}

/**
 * Return `shown`, the tree heads (`treeSize`, `root`, `where`) that a bundle's chain evidence
 * shows; or none, and `why` it does not count here. Throws where it contradicts.
 */
export function openEvidence(data, trust) {
  const evidence = parseEvidence(data);
  let block;
  if (trust === null) {
    block = check("7.1 header", () => readBlock(evidence.header));
  } else {
    const found = verifyEvidence(evidence, trust);
    if (found.trusted) return { shown: [found], why: null };
    ({ block } = found);
  }
  const name = `${evidence.chainId}:${block.number}:0x${hex(block.hash)}`;
  const text = `the file's own chain evidence is of block ${name}, and nobody you trust confirmed it`;
  const next = `compare it with a source you trust, then pass --trusted-block-hash ${name}`;
  return { shown: [], why: new ProofError("NotAnchored", text, { next }) };
}

/** Read a block header of any fork since the first. */
export function readBlock(header) {
  const items = [...checkItems(header, "a header")];
  const bloom = items[BLOOM] ?? [];
  if (items.length < HEADER_FIELDS_MIN || same(bloom, NO_BLOOM)) {
    throw malformed("a header lacks fields, or has zeros for a bloom filter");
  }
  if (!Array.isArray(bloom) && !bloom.length) items[BLOOM] = NO_BLOOM;
  return {
    number: readNumber(items[NUMBER], 8),
    hash: keccak256(encodeRlp(items)),
    timeS: readNumber(items[TIME], 8),
    stateRoot: checkLength(WORD_BYTES, items[STATE_ROOT]),
    receiptsRoot: checkLength(WORD_BYTES, items[RECEIPTS_ROOT]),
  };
}

function verifyEvidence(evidence, trust) {
  const block = check("7.1 header", () => readBlock(evidence.header));
  check("7.2 place", () => {
    checkSame("chain id", trust.chainId, evidence.chainId);
    checkSame("contract", trust.contract, evidence.contract);
    checkSame("publisher", trust.publisher, evidence.publisher);
    checkSame("log id", trust.logId, evidence.logId);
  });
  const known = trust.blocks.filter(
    (item) => item.chainId === trust.chainId && item.number === block.number,
  );
  check("7.3 block", () => {
    for (const { hash, by } of known) {
      const what = `hash of block ${grouped(block.number)} (${by.replaceAll("_", " ")})`;
      checkSame(what, hash, block.hash);
    }
  });
  const show = Array.isArray(evidence.account) ? fromStorage : fromReceipt;
  const { treeSize, root, timeS } = show(evidence, block, trust);
  const trusted = known[0] ?? null;
  const chain = trusted ? ` of chain ${trusted.chainId}` : "";
  const seconds = timeS < TIME_S_MAX ? timeS : TIME_S_MAX;
  const since = new Date(Number(seconds) * 1000).toISOString().replace(".000Z", "Z");
  const where = `block ${grouped(block.number)}${chain}, anchored at ${since}`;
  return { treeSize, root, where, block, trusted };
}

/** Return the newest head that the contract holds as of the block. */
function fromStorage(evidence, block, trust) {
  const account = check("7.4 account", () => {
    const [value] = lookUp(block.stateRoot, evidence.account, [keccak256(trust.contract)]);
    const items = checkItems(decodeRlp(value), "an account", ACCOUNT_FIELDS);
    checkLength(WORD_BYTES, items[STORAGE_ROOT]);
    return items;
  });
  check("7.5 code", () => checkSame("code hash", trust.codeHash, account[CODE_HASH]));
  return check("7.6 storage", () => {
    const slot = headSlot(trust.publisher, trust.logId);
    const keys = [slot, BigInt.asUintN(256, slot + 1n)].map((x) => keccak256(word(writeNumber(x))));
    const values = lookUp(account[STORAGE_ROOT], evidence.storage, keys);
    const [root, packed] = values.map((value) => readNumber(decodeRlp(value), WORD_BYTES));
    const part = (n) => BigInt.asUintN(64, packed >> BigInt(64 * n));
    return { treeSize: part(0), root: word(writeNumber(root)), timeS: part(1) };
  });
}

/** Return the number of the slot that holds a head's root; the next one holds its size. */
function headSlot(publisher, logId) {
  const inner = keccak256(concat(word(publisher), new Uint8Array(WORD_BYTES)));
  return toNumber(keccak256(concat(logId, inner)));
}

/** Return the last head that a transaction of the block anchored. */
function fromReceipt(evidence, block, trust) {
  check("7.5 code", () => {
    if (trust.addressBindsCode) return;
    const text = "a receipt does not show which code stands at this address";
    throw new ProofError("PolicyUnmet", text, { next: "ask for evidence from the contract's storage" });
  });
  return check("7.6 receipt", () => {
    const key = encodeRlp(writeNumber(readNumber(evidence.account, 8)));
    const [value] = lookUp(block.receiptsRoot, evidence.storage, [key]);
    const typed = value[0] < 0x80 ? 1 : 0; // EIP-2718; a list, as before it, begins higher
    const receipt = checkItems(decodeRlp(value.subarray(typed)), "a receipt", 4);
    const wanted = [keccak256(EVENT), word(trust.publisher), trust.logId];
    for (const event of [...checkItems(receipt[3], "a list of events")].reverse()) {
      const [address, topics, data] = checkItems(event, "an event", 3);
      const isOurs = Array.isArray(topics) && wanted.every((x, i) => same(topics[i] ?? [], x));
      if (isOurs && same(address, trust.contract)) {
        checkLength(2 * WORD_BYTES, data);
        const root = data.subarray(WORD_BYTES);
        return { treeSize: toNumber(data.subarray(0, WORD_BYTES)), root, timeS: block.timeS };
      }
    }
    throw inconsistent("no event of this contract, publisher and log in the receipt");
  });
}

/** Say in an error which check it was. */
function check(name, run) {
  try {
    return run();
  } catch (error) {
    if (error instanceof ProofError) error.message = `${name}: ${error.message}`;
    throw error;
  }
}

const same = (item, bytes) => !Array.isArray(item) && equal(item, bytes);

function checkSame(what, expected, actual) {
  const isNumber = typeof expected === "bigint";
  if (isNumber ? expected === actual : same(actual, expected)) return;
  const show = (x) => (isNumber ? `${x}` : Array.isArray(x) ? itemText(x) : `0x${hex(x)}`);
  const found = { expected: show(expected), actual: show(actual) };
  throw inconsistent(`another ${what} than the one you trust`, found);
}

/** Write a list of RLP items, where bytes are expected, as Python does. */
function itemText(item) {
  if (Array.isArray(item)) return `[${item.map(itemText).join(", ")}]`;
  const text = Array.from(item, (x) => String.fromCharCode(x)).join("");
  return `b${quoted(text).replace(/[^ -~]/g, (x) => `\\x${hex([x.charCodeAt(0)])}`)}`;
}

function checkItems(item, what, length = item.length) {
  if (!Array.isArray(item) || item.length !== length) throw malformed(`this is not ${what}`);
  return item;
}

function checkLength(bytes, item) {
  if (Array.isArray(item) || item.length !== bytes) {
    throw malformed(`a hash or address is not exactly ${bytes} bytes long`);
  }
  return item;
}

const word = (data) => concat(new Uint8Array(WORD_BYTES - data.length), data);
