// The page: takes a bundle and what its user trusts, and shows the verdict. Whatever comes from a
// file is put on the page as text, never as markup.
import { BUNDLE_BYTES_MAX } from "./bundle.mjs";
import { grouped, hex, utf8 } from "./bytes.mjs";
import { ProofError } from "./errors.mjs";
import { asFragment, fromFragment } from "./link.mjs";
import { VerifierKey, distinct } from "./note.mjs";
import { computesRightly, warmUp } from "./self_test.mjs";
import { sha256 } from "./sha2.mjs";
import { parseJson } from "./strict_json.mjs";
import { anchorTrust, chainTrust, readBlocks, readTrust } from "./trust.mjs";
import {
  NO_TRUST, STEPS, answers, decisive, evidenceBlock, examineBundle, onTrust, reportText, toReport,
  verdictOf,
} from "./verify.mjs";

const KEY_FILE_BYTES_MAX = 256 * 1024;
const ENTRIES_SHOWN_MAX = 25;
const VALUE_BYTES_SHOWN_MAX = 65_535; // an entry is never longer
const LINK_BYTES_MAX = 16 * 1024; // of a bundle for which a link is offered
const MARKS = { passed: "✓", failed: "✕", unreadable: "!", not_shown: "?", not_asked: "–" };
const CANNOT_TELL = "whether values were true when logged, or whether something was never logged";
const NO_EVIDENCE = "the file brings no chain evidence, so that a trusted block shows nothing";
/** Where on this page an option of the command line is found. */
const ON_THIS_PAGE = {
  "--key": "On this page: paste it into “The keys you pin”, and verify again.",
  "--trusted-block-hash": "On this page: enter it below “Trusted blocks”, and verify again.",
};

const find = (id) => document.getElementById(id);
const typed = (id) => find(id).value.trim();

/** Make an element; `properties` are attributes, children are elements or texts. */
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The bundle chosen last: its bytes, and where they came from. */
let chosen = null;

function choose(data, from) {
  chosen = { data, from };
  find("chosen").textContent = `${from}: ${grouped(data.length)} bytes`;
}

async function readFile(file, bytesMax) {
  return new Uint8Array(await file.slice(0, bytesMax + 1).arrayBuffer());
}

/** Take a bundle from pasted text: the bundle itself, or a link whose fragment holds it. */
async function takeText(text, from) {
  const [, fragment] = /^\S*#([\w-]+)$/.exec(text.trim()) ?? [];
  choose(fragment ? await fromFragment(fragment) : utf8(text), from);
}

async function takeFragment() {
  if (location.hash.length < 2) return;
  await guarded(async () => {
    choose(await fromFragment(location.hash.slice(1)), "From the link");
    await verify();
  });
}

/** Read from the form what the user trusts; throws InvalidTrust. */
function readForm() {
  const policy = readTrust(find("keys").value);
  const blocks = readBlocks(find("blocks").value);
  const [chainId, publisher] = [typed("chain-id") || `${blocks[0]?.chainId ?? ""}`, typed("publisher")];
  const names = ["chain-id", "publisher", "contract", "log-id"];
  const isTyped = names.some(typed);
  const refuse = (text, next = "") => {
    throw new ProofError("InvalidTrust", text, { next });
  };
  if (isTyped && policy.anchor) refuse("the chain stands in the trust policy", "leave its fields empty");
  if (isTyped && !(/^[0-9]{1,16}$/.test(chainId) && publisher)) {
    refuse("chain id and publisher belong together");
  }
  const anchor = isTyped
    ? anchorTrust({
        chainId: BigInt(chainId),
        contract: typed("contract") || undefined,
        publisher,
        logId: typed("log-id") || null,
      })
    : policy.anchor;
  const keys = distinct(policy.keys);
  const chain = chainTrust(anchor, keys, blocks);
  const [acceptUnpinned, acceptUnanchored] = ["accept-unpinned", "accept-unanchored"].map((id) => find(id).checked);
  return { ...NO_TRUST, keys, chain, needAnchor: anchor !== null, acceptUnpinned, acceptUnanchored };
}

async function verify() {
  if (!chosen) {
    find("file").focus();
    throw new ProofError("InvalidTrust", "there is no bundle yet: choose a file, or paste its text");
  }
  const trust = readForm();
  find("status").textContent = "Verifying …";
  await new Promise((resolve) => setTimeout(resolve)); // let the page show that
  const began = performance.now();
  const found = await examineBundle(chosen.data, trust);
  const took = performance.now() - began;
  show(found, trust, took);
}

/** Run what the user asked for; say on the page what kept it from being done. */
async function guarded(run) {
  find("problem").textContent = "";
  try {
    await run();
  } catch (error) {
    find("result").hidden = true;
    find("status").textContent = "";
    const isExpected = error instanceof ProofError;
    const next = isExpected && error.next ? `. Next: ${error.next}` : "";
    find("problem").textContent = isExpected
      ? `${error.message}${next}`
      : `This page failed, and shows nothing: ${error.name}`;
    if (!isExpected) throw error;
  }
}

function show(found, trust, tookMs) {
  const { headline, unchanged, byWhom } = answers(found);
  const [verdict, check] = [verdictOf(found), decisive(found)];
  const state = check?.state ?? "passed";
  const next = check?.finding?.next ?? "";
  const number = evidenceBlock(chosen.data);
  const isInVain = number === null && trust.chain?.blocks.length;
  const taken = trust.chain ? onTrust(found, trust.chain, number) : [];
  const result = find("result");
  result.dataset.state = state;
  result.dataset.ms = tookMs.toFixed(2);
  result.replaceChildren(
    make("h2", { id: "verdict", class: "verdict", tabindex: "-1" }, mark(state), verdict),
    make("p", { class: "headline" }, sentence(headline)),
    make("dl", { class: "answers" },
      make("div", {}, make("dt", {}, "Unchanged?"), make("dd", {}, unchanged)),
      make("div", {}, make("dt", {}, "By whom?"), make("dd", {}, byWhom))),
    ...nextSteps(next),
    make("h2", {}, "The steps"),
    make("ol", { class: "checks" }, ...found.checks.map(checkItem), isInVain ? inVain() : null),
    ...taken.map((text) => make("p", {}, `On trust: ${text}. A header does not name its chain.`)),
    make("h2", {}, "What this cannot tell you"),
    make("p", {}, sentence(`${CANNOT_TELL}.`)),
    ...entryParts(found.proven, verdict),
    provenance(trust.keys),
    make("div", { class: "actions" }, ...actions(found, taken)),
  );
  result.hidden = false;
  find("status").textContent = `${verdict}. Unchanged: ${unchanged}. By whom: ${byWhom}.`;
  document.title = `${verdict} – Verify a bundle`;
  find("verdict").focus();
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A state's sign: its shape tells as much as its colour, and its word stands beside it. */
const mark = (state) => make("span", { class: "mark", "aria-hidden": "true" }, MARKS[state]);

function nextSteps(next) {
  if (!next) return [];
  const option = Object.keys(ON_THIS_PAGE).find((name) => next.includes(name));
  const here = option ? make("p", { class: "hint" }, ON_THIS_PAGE[option]) : "";
  return [make("p", {}, make("strong", {}, "Next: "), next), here];
}

function checkItem({ step, state, text, finding }) {
  return stepItem(state, `${step} ${STEPS[step - 1].replace("_", " ")}`, text, finding);
}

const inVain = () => stepItem("not_shown", "chain", NO_EVIDENCE, null);

function stepItem(state, name, text, finding) {
  const word = state === "failed" ? "FAILED" : state.replace("_", " ");
  const body = make("p", {}, text);
  if (finding?.expected) {
    const lines = [`expected ${finding.expected}`, `found ${finding.actual || "nothing"}`];
    body.append(...lines.map((line) => make("span", { class: "mono" }, make("br", {}), line)));
  }
  const label = make("span", { class: "state" }, word, make("span", { class: "name" }, name));
  return make("li", { "data-state": state }, mark(state), label, body);
}

/** The entries that were shown to stand in the tree, and their opened values. */
function entryParts(proven, verdict) {
  if (!proven?.entries.length) return [];
  const warning = "So says the file; what that is worth, the verdict above says.";
  const parts = proven.entries.slice(0, ENTRIES_SHOWN_MAX).flatMap(({ index, entry }) => {
    const opened = [...proven.opened.values()].filter((item) => item.index === index);
    return [
      make("p", {}, `Entry ${grouped(index)}, ${grouped(entry.length)} bytes`),
      make("pre", {}, readable(entry)),
      ...opened.flatMap(({ path, value }) => [
        make("p", {}, "Opened: ", make("code", {}, visible(path))),
        make("pre", {}, readable(value)),
      ]),
    ];
  });
  const rest = proven.entries.length - ENTRIES_SHOWN_MAX;
  if (rest > 0) parts.push(make("p", { class: "hint" }, `and ${grouped(rest)} more, named in the report.`));
  return [
    make("h2", {}, "What the entries say"),
    verdict === "VERIFIED" ? null : make("p", { class: "hint" }, warning),
    ...parts,
  ].filter(Boolean);
}

/** Show bytes as people read them: JSON with a line for each field, if it is JSON. */
function readable(data) {
  const isLong = data.length > VALUE_BYTES_SHOWN_MAX;
  const text = new TextDecoder().decode(data.subarray(0, VALUE_BYTES_SHOWN_MAX));
  try {
    parseJson(data);
    return visible(isLong ? `${text} …` : indented(text));
  } catch (error) {
    if (!(error instanceof ProofError)) throw error;
    return visible(text);
  }
}

/** Lay out JSON, each number and text as it is written: nothing is rounded, or written anew. */
function indented(text) {
  let depth = 0;
  const line = (change) => `\n${"  ".repeat((depth += change))}`;
  return text.replace(/"(?:[^"\\]|\\.)*"|\{\s*\}|\[\s*\]|\s+|[[\]{},:]/g, (token) => {
    if (/^[[{]$/.test(token)) return token + line(1);
    if (/^[\]}]$/.test(token)) return line(-1) + token;
    if (token === ",") return token + line(0);
    return token === ":" ? ": " : token.trim();
  });
}

/** Write out signs that are not seen, or that turn others round. */
const visible = (text) =>
  text.replace(/[^\n\P{C}]|[\u2028\u2029]/gu, (x) => `\\u{${x.codePointAt(0).toString(16)}}`);

/** What was verified, when, and under which keys: for the printed page. */
function provenance(keys) {
  const digest = hex(sha256(chosen.data));
  const when = new Date().toISOString().replace(/\.\d+/, "");
  const pinned = keys.length ? `; pinned: ${keys.map((key) => key.label).join(", ")}` : "";
  const text = `${visible(chosen.from)}, SHA-256 ${digest}, verified ${when}${pinned}.`;
  return make("p", { class: "hint" }, text);
}

function actions(found, taken) {
  const report = reportText({ ...toReport(found), ...(taken.length ? { on_trust: taken } : {}) });
  const url = URL.createObjectURL(new Blob([`${report}\n`], { type: "application/json" }));
  const save = make("a", { class: "button", href: url, download: "verify-result.json" }, "Save the report");
  const print = make("button", { type: "button", class: "button" }, "Print");
  print.addEventListener("click", () => window.print());
  const link = make("span", {});
  if (found.proven && chosen.data.length <= LINK_BYTES_MAX) {
    asFragment(chosen.data).then((fragment) => {
      const text = `Link that holds this bundle (${grouped(fragment.length)} signs)`;
      link.append(make("a", { href: `#${fragment}` }, text));
    }, () => {}); // a browser without CompressionStream offers no link
  }
  return [save, print, link];
}

function listen() {
  const { documentElement: root } = document;
  find("form").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(async () => {
      if (find("pasted").value.trim()) await takeText(find("pasted").value, "Pasted text");
      await verify();
    });
  });
  const takeFile = (file) =>
    guarded(async () => {
      choose(await readFile(file, BUNDLE_BYTES_MAX), file.name);
      find("pasted").value = "";
      await verify();
    });
  find("file").addEventListener("change", ({ target }) => target.files[0] && takeFile(target.files[0]));
  find("key-file").addEventListener("change", ({ target }) =>
    guarded(async () => {
      const data = await readFile(target.files[0], KEY_FILE_BYTES_MAX);
      if (data.length > KEY_FILE_BYTES_MAX) {
        throw new ProofError("InvalidTrust", "this file is too large to be a key file");
      }
      find("keys").value = new TextDecoder().decode(data);
    }));
  for (const name of ["dragenter", "dragover"]) {
    root.addEventListener(name, (event) => {
      event.preventDefault();
      root.classList.add("dragging");
    });
  }
  root.addEventListener("dragleave", () => root.classList.remove("dragging"));
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    root.classList.remove("dragging");
    const [file] = event.dataTransfer.files;
    if (file) takeFile(file);
  });
  document.addEventListener("paste", (event) => {
    if (event.target.closest("textarea, input")) return;
    guarded(async () => {
      await takeText(event.clipboardData.getData("text"), "Pasted text");
      await verify();
    });
  });
  window.addEventListener("hashchange", takeFragment);
}

function start() {
  if (!computesRightly()) throw new Error("this browser computes wrongly");
  if (location.host) {
    const text = `This copy of the page came from ${location.host}. If that is the party you check, its answer proves less: use a copy from elsewhere, such as the one that rlhf-audit-trail installs.`;
    find("origin").textContent = text;
    find("origin").hidden = false;
  }
  listen();
  // for programs: the same kernel, without the form
  globalThis.rlhfAudit = Object.freeze({ NO_TRUST, VerifierKey, answers, examineBundle, reportText, toReport });
  takeFragment();
  setTimeout(warmUp, 50);
}

start();
