// The verifier: the numbered steps of FORMAT.md, section 7, and the verdict they add up to, as in
// `ledger/proof/verify.py` and `ledger/verdict.py`. It opens no socket.
import { fromHex, grouped, hex, quoted } from "./bytes.mjs";
import { parseBundle } from "./bundle.mjs";
import { verifyOpening } from "./commitment.mjs";
import { ProofError, inconsistent, malformed } from "./errors.mjs";
import { openEvidence, parseEvidence, readBlock } from "./evidence.mjs";
import { leafHash, verifyConsistency, verifyInclusion } from "./merkle.mjs";
import { VerifierKey, distinct } from "./note.mjs";
import { parseJson } from "./strict_json.mjs";
import { openTreeHead } from "./tree_head.mjs";

/** Names of the numbered steps, from 1. */
export const STEPS = [
  "bundle", "tree_head", "signer", "inclusion", "openings", "consistency", "anchor", "file",
];
const EXIT_CODES = { VERIFIED: 0, FAILED: 1, INCONCLUSIVE: 3, UNREADABLE: 4 };
const VERDICTS = { failed: "FAILED", unreadable: "UNREADABLE", not_shown: "INCONCLUSIVE" };
const LIMITS = ["truth_of_values", "completeness_of_logging"];

/** What a user trusts who says nothing; see `TrustPolicy` and `OnChain` in verify.py. */
export const NO_TRUST = {
  keys: [], // VerifierKeys pinned for the log; all of them must have signed
  needAnchor: false, // whether an anchor is demanded rather than welcome
  onChain: null, // what a chain was found to say: treeSize, root, where
  chain: null, // by what the bundle's own chain evidence is judged
  acceptUnpinned: false,
  acceptUnanchored: false,
};

/**
 * Run every step that can run and report all of them; never throws for a bad bundle.
 *
 * Returns `signer`, `checks` (`step`, `state`, `text`, `finding`) and `proven`: null when not even
 * a tree head could be read, else `treeHead`, `bundle`, `entries` (those shown to stand in the
 * tree) and `opened` values (`index`, `path`, `value`).
 */
export async function examineBundle(data, trust = NO_TRUST) {
  const checks = [];
  let run;
  try {
    const bundle = parseBundle(data);
    const count = grouped(bundle.entries.length);
    checks.push(passed(1, `${grouped(data.length)} bytes, entries: ${count}`));
    run = new Run(bundle, await signedTreeHead(bundle, trust), trust);
  } catch (error) { // what follows would hang on a size and root that nobody signed
    checks.push(found(checks.length + 1, error));
    return { signer: "not_shown", checks, proven: null };
  }
  const { origin, size, root } = run.proven.treeHead.head;
  checks.push(passed(2, `${origin}: ${grouped(size)} entries, root ${hex(root)}`));
  const steps = ["byWhom", "inclusion", "openings", "consistency", "anchor", "file"];
  for (const [i, name] of steps.entries()) {
    try {
      checks.push(await run[name]());
    } catch (error) {
      checks.push(found(i + 3, error));
    }
  }
  return { signer: run.signer, checks, proven: run.proven };
}

const passed = (step, text) => ({ step, state: "passed", text, finding: null });
const notAsked = (step, text) => ({ step, state: "not_asked", text, finding: null });

function found(step, error) {
  if (!(error instanceof ProofError)) throw error; // a defect is no verdict
  const isMissing = ["NotAnchored", "PolicyUnmet"].includes(error.name);
  const otherwise = error.name === "MalformedBundle" ? "unreadable" : "failed";
  return { step, state: isMissing ? "not_shown" : otherwise, text: error.message, finding: error };
}

/** Step 2: the tree head parses, and the keys inside the file have all signed it. */
async function signedTreeHead(bundle, trust) {
  const keys = bundle.logKeys.map((text) => new VerifierKey(text));
  const signed = await openTreeHead(bundle.treeHead, distinct([...keys, ...trust.keys]));
  const strangers = keys.filter((key) => !isAmong(key, signed.signedBy));
  if (strangers.length) {
    const expected = strangers.map((key) => key.label).join(", ");
    const text = "keys inside the file did not sign the tree head";
    throw new ProofError("BadSignature", text, { expected });
  }
  return signed;
}

const isAmong = (key, keys) => keys.some((other) => other.vkey === key.vkey);

/** Steps 3 to 8 of one verification; each adds to `proven` what it shows, or throws. */
class Run {
  constructor(bundle, treeHead, trust) {
    this.bundle = bundle;
    this.trust = trust;
    this.signer = "not_shown";
    this.proven = { treeHead, bundle, entries: [], opened: new Map(), heads: [] };
  }

  /** Step 3: by whom; only keys that the user pinned answer it. */
  byWhom() {
    const { head, signedBy } = this.proven.treeHead;
    const pinned = this.trust.keys;
    const missing = pinned.filter((key) => !isAmong(key, signedBy));
    if (!pinned.length) {
      this.signer = "not_pinned";
      const text = "no key was pinned, so nothing shows who made this file";
      if (this.trust.acceptUnpinned) return notAsked(3, text);
      const next = "get the log's key from a place you trust and pass it with --key";
      throw new ProofError("PolicyUnmet", text, { next });
    }
    if (missing.length === pinned.length) {
      this.signer = "contradicted";
      throw new ProofError("BadSignature", "no pinned key signed this tree head", {
        expected: pinned.map((key) => key.label).join(", "),
        actual: `${head.origin}, keys in the file: ${this.bundle.logKeys.length}`,
        next: "check that the key belongs to this log; else treat the file as forged",
      });
    }
    if (missing.length) {
      this.signer = "partly_pinned";
      const names = missing.map((key) => `${key.algorithm} ${key.keyId}`).join(", ");
      const next = "ask for a bundle that carries all of the log's signatures";
      throw new ProofError("PolicyUnmet", `pinned keys that did not sign: ${names}`, { next });
    }
    this.signer = "pinned";
    const names = pinned.map((key) => key.algorithm.replaceAll("_", "-")).join(" + ");
    return passed(3, `signed by ${head.origin} (${names}), pinned by you`);
  }

  /** Step 4: each entry leads to the signed root; index and signed size give the shape. */
  inclusion() {
    const { head } = this.proven.treeHead;
    const { entries } = this.bundle;
    for (const item of entries) {
      try {
        verifyInclusion(leafHash(item.entry), item.index, head.size, item.path, head.root);
      } catch (error) {
        error.message = `entry ${grouped(item.index)}: ${error.message}`;
        error.next = `ask for a fresh bundle of entry ${grouped(item.index)}`;
        throw error;
      }
      this.proven.entries.push(item);
    }
    const text = `${grouped(entries.length)} of ${grouped(head.size)} entries`;
    return passed(4, `${text} shown to stand in the signed tree, unchanged`);
  }

  /** Step 5: opened values are those that the entries committed to. */
  openings() {
    const { opened } = this.proven;
    for (const { index, entry, openings } of this.bundle.entries) {
      const commitments = openings.length ? commitmentsOf(index, entry) : new Map();
      for (const opening of openings) {
        const { path } = opening;
        if (!commitments.has(path)) {
          const name = quoted(Array.from(path).slice(0, 80).join(""));
          throw inconsistent(`entry ${grouped(index)} has no sealed ${name}`);
        }
        const value = verifyOpening(commitments.get(path), opening);
        opened.set(`${index} ${path}`, { index, path, value });
      }
    }
    if (!opened.size) return notAsked(5, "no sealed value is opened in this file");
    return passed(5, `${grouped(opened.size)} opened values are the committed ones`);
  }

  /** Step 6: further tree heads have the same signers, and all are of one history. */
  async consistency() {
    const { treeHead: own, heads } = this.proven;
    let newest = own.head;
    for (const item of this.bundle.anchored) {
      const other = await openTreeHead(item.treeHead, own.signedBy);
      if (other.signedBy.length !== own.signedBy.length) {
        const text = "an anchored tree head is not signed by the log's own keys";
        throw new ProofError("BadSignature", text);
      }
      if (heads.length && other.head.size <= heads.at(-1).head.size) {
        throw malformed("anchored tree heads must stand in growing order of size");
      }
      // Two heads that both extend a third may still be a fork: compare with the newest.
      const isNewer = other.head.size > newest.size;
      const old = isNewer ? newest : other.head;
      newest = isNewer ? other.head : newest;
      verifyConsistency(old.size, old.root, newest.size, newest.root, item.path);
      heads.push(other);
    }
    if (!heads.length) return notAsked(6, "no other tree head in this file");
    const sizes = heads.map(({ head }) => grouped(head.size)).join(", ");
    return passed(6, `one append-only history with the heads of size ${sizes}`);
  }

  /** Step 7: a tree head of this history is the one the chain was found to hold. */
  anchor() {
    const { trust, bundle } = this;
    const signed = [this.proven.treeHead, ...this.proven.heads];
    const heads = new Map(signed.map(({ head }) => [head.size, head]));
    const { shown, why } = bundle.chain.length
      ? openEvidence(bundle.chain, trust.chain)
      : { shown: [], why: null };
    const onChain = [];
    for (const said of [...(trust.onChain ?? []), ...shown]) {
      const head = heads.get(said.treeSize);
      if (head && hex(head.root) !== hex(said.root)) {
        const size = grouped(said.treeSize);
        throw inconsistent(`the chain holds another root at size ${size}: a forked history`, {
          expected: hex(said.root),
          actual: hex(head.root),
          next: "keep this file as evidence and ask the operator to explain",
        });
      }
      if (head) onChain.push(said);
    }
    const last = bundle.entries.at(-1).index; // a smaller tree says nothing about this entry
    const covering = onChain.filter(({ treeSize }) => treeSize > last);
    if (covering.length) {
      const isBefore = (a, b) => a.treeSize < b.treeSize || (a.treeSize === b.treeSize && a.where < b.where);
      const first = covering.reduce((a, b) => (isBefore(b, a) ? b : a));
      return passed(7, `the head of size ${grouped(first.treeSize)} is in ${first.where}`);
    }
    const isAsked = trust.onChain !== null || trust.chain !== null;
    const text = isAsked ? "no tree head on the chain covers all entries" : "no chain was asked";
    const next = "ask for a bundle made after the next anchor";
    const missing = why ?? new ProofError("NotAnchored", text, { next });
    if ((isAsked || trust.needAnchor) && !trust.acceptUnanchored) throw missing;
    return notAsked(7, missing.message);
  }

  /** Step 8: no byte changed on the way, not even one that no signature covers. */
  file() {
    if (!this.bundle.digestMatches) {
      const text = "the file's own digest does not fit: it was damaged or edited on the way";
      throw malformed(text, { next: "fetch the file again" });
    }
    return passed(8, "the file is as it was written");
  }
}

/** Read an entry's commitments; the only place where an entry is looked into. */
function commitmentsOf(index, entry) {
  const record = parseJson(entry);
  const fields = record instanceof Map ? record.get("c") : null;
  const isNothing = !fields || fields.length === 0; // null, false, 0, "", an empty list
  const wrong = () => malformed(`entry ${grouped(index)} has unreadable commitments`);
  if (!isNothing && !(fields instanceof Map)) throw wrong();
  const commitments = new Map();
  for (const [name, value] of isNothing ? [] : fields) {
    // as Python reads hex: white space may stand between bytes
    if (!/^(?:[ \t-\r]*[0-9a-fA-F]{2})*[ \t-\r]*$/.test(value) || typeof value !== "string") {
      throw wrong();
    }
    commitments.set(name, fromHex(value.replace(/[ \t-\r]/g, "")));
  }
  return commitments;
}

/** The check that decides against the bundle: the gravest, and of those the first. */
export function decisive({ checks }) {
  const order = ["failed", "unreadable", "not_shown"];
  return order.map((state) => checks.find((x) => x.state === state)).find(Boolean) ?? null;
}

/** VERIFIED, FAILED, INCONCLUSIVE or UNREADABLE. */
export function verdictOf(examination) {
  return VERDICTS[decisive(examination)?.state] ?? "VERIFIED";
}

/** Whether the content is unchanged, whoever signed it: passed, failed or unreadable. */
export function integrityOf({ checks }) {
  const states = checks.filter((check) => check.step !== 3).map((check) => check.state);
  return ["failed", "unreadable"].find((state) => states.includes(state)) ?? "passed";
}

/** Return `rlhf-audit/verify-result/v1`; numbers of JSON, not BigInts. */
export function toReport(examination) {
  const { signer, checks, proven } = examination;
  const head = proven?.treeHead.head;
  const verdict = verdictOf(examination);
  return {
    schema: "rlhf-audit/verify-result/v1",
    verdict: verdict.toLowerCase(),
    exit_code: EXIT_CODES[verdict],
    integrity: integrityOf(examination),
    signer,
    checks: checks.map(({ step, state, text, finding }) => {
      const check = { step, id: STEPS[step - 1], state, text };
      if (!finding) return check;
      const { name: reason, expected, actual } = finding;
      return { ...check, reason, expected, actual };
    }),
    tree_head: head ? { origin: head.origin, size: head.size, root: hex(head.root) } : null,
    entries: proven ? proven.entries.map(({ index }) => Number(index)) : [],
    limits: LIMITS,
    next: decisive(examination)?.finding?.next ?? "",
  };
}

/** Write a report as JSON; a size stays exact, which a number of JavaScript is not. */
export function reportText(report) {
  const size = report.tree_head?.size;
  const marked = { ...report, tree_head: size === undefined ? null : { ...report.tree_head, size: 0 } };
  const text = JSON.stringify(marked, null, 2);
  return text.replace(/^ {4}"size": 0/m, () => `    "size": ${size}`);
}

const UNCHANGED = { passed: "yes", failed: "NO", unreadable: "cannot be read" };
const WHO = {
  pinned: "the keys you pinned",
  partly_pinned: "not all of the keys you pinned",
  not_pinned: "unknown, you pinned no key",
  contradicted: "NOT the keys you pinned",
  not_shown: "not shown",
};

/** Answer both questions, in the words of `rlhf-audit verify`: what, unchanged, by whom. */
export function answers(examination) {
  const check = decisive(examination);
  const [unchanged, byWhom] = [UNCHANGED[integrityOf(examination)], WHO[examination.signer]];
  const headline = check
    ? `at ${STEPS[check.step - 1]}: ${check.text}`
    : `unchanged since it was signed; signer: ${byWhom}`;
  return { headline, unchanged, byWhom };
}

/** Return the number of the block that a bundle's evidence is of; null if it has none. */
export function evidenceBlock(data) {
  try {
    const { chain } = parseBundle(data);
    return chain.length ? readBlock(parseEvidence(chain).header).number : null;
  } catch (error) {
    if (error instanceof ProofError) return null; // which the verifier will report
    throw error;
  }
}

/** Say what a verdict took on trust: the block, if the file's evidence counted. */
export function onTrust({ checks }, chain, number) {
  const isAnchored = checks.some(({ step, state }) => step === 7 && state === "passed");
  return (isAnchored ? chain.blocks : [])
    .filter((x) => x.chainId === chain.chainId && x.number === number)
    .map((x) => `block ${grouped(x.number)} of chain ${x.chainId} has hash 0x${hex(x.hash)}: ${x.by}`);
}
