// What a user trusts, read from what is typed or pasted: keys, a trust policy, an anchor's place,
// blocks; the rules and words of `ledger/trust.py` and `ledger/chain/evidence/trusting.py`.
import { concat, fromHex, quoted, utf8 } from "./bytes.mjs";
import { ProofError } from "./errors.mjs";
import { ED25519, VerifierKey, distinct } from "./note.mjs";
import { sha256 } from "./sha2.mjs";
import { parseJson } from "./strict_json.mjs";

const SCHEMA = "rlhf-audit/trust-policy/v1";
/** Where the published contract stands on every chain, and Keccak-256 of its code. */
export const CONTRACT = "0xe15f80313528871d67ce1bb87f0a86d17b1d5aaa";
export const CODE_HASH = "0x63047ed674ddbffe37b420d854f2685d5bdf7058813d10e895cf3a41239925b5";

const invalid = (message, next = "") => new ProofError("InvalidTrust", message, { next });

/** Turn an unreadable key or policy into a sentence that says so. */
function reading(what, run) {
  try {
    return run();
  } catch (error) {
    if (error.name !== "MalformedBundle") throw error;
    throw invalid(`${what}: ${error.message}`);
  }
}

/** Read a trust policy (JSON), or vkeys, one a line (`#` begins a comment): `keys`, `anchor`. */
export function readTrust(text) {
  if (text.trimStart().startsWith("{")) {
    return reading("not a trust policy", () => readPolicy(parseJson(utf8(text))));
  }
  const lines = text.split(/\r\n|[\n\r\v\f]/).map((line) => line.trim());
  const kept = lines.filter((line) => line && !line.startsWith("#"));
  const keys = reading("not a usable key", () => kept.map((line) => new VerifierKey(line)));
  return { keys: distinct(keys), anchor: null };
}

function readPolicy(record) {
  if (!(record instanceof Map) || record.get("schema") !== SCHEMA) {
    throw invalid("not a trust policy", `"schema" must be "${SCHEMA}"`);
  }
  const keys = record.get("keys");
  const isKnown = [...record.keys()].every((name) => ["schema", "keys", "anchor"].includes(name));
  if (!isKnown || !Array.isArray(keys) || keys.some((key) => typeof key !== "string")) {
    throw invalid("a trust policy has the fields schema, keys and anchor, and no others");
  }
  const anchor = record.get("anchor") ?? null;
  return { keys: keys.map((key) => new VerifierKey(key)), anchor: anchor && policyAnchor(anchor) };
}

function policyAnchor(record) {
  const types = { chain_id: "bigint", contract: "string", publisher: "string", log_id: "string" };
  const isWhole = record instanceof Map && ["chain_id", "contract", "publisher"].every((x) => record.has(x));
  if (!isWhole || [...record].some(([name, value]) => typeof value !== types[name])) {
    throw invalid(
      "a policy's anchor has the fields chain_id, contract, publisher and, if the log's keys were " +
        "rotated, log_id",
    );
  }
  const [contract, publisher] = [record.get("contract"), record.get("publisher")];
  const logId = record.get("log_id") ?? null;
  return anchorTrust({ chainId: record.get("chain_id"), contract, publisher, logId });
}

/** Return where anchors are expected, after checking addresses and log id (hex or null). */
export function anchorTrust({ chainId, contract = CONTRACT, publisher, logId = null }) {
  const short = (text, length) => quoted(Array.from(text).slice(0, length).join(""));
  if (logId !== null && !/^[0-9a-fA-F]{64}$/.test(logId)) {
    throw invalid(`the log id ${short(logId, 80)} is none`, "64 hex digits");
  }
  for (const [name, address] of Object.entries({ contract, publisher })) {
    if (!/^0x[0-9a-fA-F]{40}$/.test(address)) {
      throw invalid(`the ${name} ${short(address, 60)} is no address`, "0x and 40 hex digits");
    }
  }
  const data = (text) => fromHex(text.replace(/^0x/, ""));
  return { chainId, contract: data(contract), publisher: data(publisher), logId: logId && data(logId) };
}

/** Read blocks such as `1:19204332:0x5e…`, one a line: chain id, number and hash. */
export function readBlocks(text, by = "you gave its hash") {
  const lines = text.split(/\s+/).filter(Boolean);
  return lines.map((line) => {
    const found = /^([1-9][0-9]{0,15}):(0|[1-9][0-9]{0,15}):0x([0-9a-fA-F]{64})$/.exec(line);
    if (!found) {
      const next = "write it as CHAIN:NUMBER:HASH, the hash as 0x and 64 hex digits";
      throw invalid(`${quoted(line.slice(0, 100))} names no block`, next);
    }
    return { chainId: BigInt(found[1]), number: BigInt(found[2]), hash: fromHex(found[3]), by };
  });
}

/** Return by what chain evidence is judged; the log is named by its first Ed25519 key. */
export function chainTrust(anchor, keys, blocks) {
  const key = keys.find(({ type }) => type === ED25519);
  if (blocks.some(({ chainId }) => chainId !== anchor?.chainId)) {
    throw invalid("a trusted block is of another chain than the anchor's");
  }
  if (!anchor) return null;
  if (!key && !anchor.logId) {
    throw invalid("an anchor needs the log's Ed25519 key, or its log id", "pin that key");
  }
  const material = key && concat(utf8(`${key.name}\n`), [ED25519], key.material);
  const known = fromHex(CONTRACT.slice(2));
  return {
    ...anchor,
    logId: anchor.logId ?? sha256(material),
    codeHash: fromHex(CODE_HASH.slice(2)),
    addressBindsCode: anchor.contract.every((x, i) => x === known[i]),
    blocks,
  };
}
