// C2SP signed notes and verifier keys, as in `ledger/proof/note.py` and section 5 of FORMAT.md.
import { concat, decodeBase64, encodeBase64, hex, utf8 } from "./bytes.mjs";
import { malformed } from "./errors.mjs";
import { sha256 } from "./sha2.mjs";

const NOTE_BYTES_MAX = 512 * 1024;
const SIGNATURES_MAX = 100;
const NAME_BYTES_MAX = 255;
const KEY_ID_BYTES = 4;
const LINE = /^— ([^ +\n]+) ([A-Za-z0-9+/=]+)$/u;
const NOT_IN_NOTE = /[\u0000-\u0009\u000b-\u001f\p{Cs}]/u;
// No space, no sign that moves a cursor, is not seen, or turns others round.
const NOT_IN_NAME =
  /[\s+\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\p{Cs}]/u;

/** Type bytes of C2SP's registry, with the name and key length of each. */
export const ALGORITHMS = { 1: ["ED25519", 32], 6: ["ML_DSA_44", 1312] };
export const ED25519 = 1;

/** Refuse what is no name of a key or log, in which one must see all. */
export function checkName(name) {
  if (!name || NOT_IN_NAME.test(name) || utf8(name).length > NAME_BYTES_MAX) {
    throw malformed("a name must be 1 to 255 bytes without space, plus or control sign");
  }
}

/** A public key with the name it signs under: `name`, `type`, `material` (32 or 1,312 bytes). */
export class VerifierKey {
  /** Read a vkey, name+id+key; only the first two plus signs separate, base64 has its own. */
  constructor(text) {
    const [, name, id, encoded] = /^([^+]*)\+?([^+]*)\+?(.*)$/s.exec(text);
    const material = decodeBase64(encoded, "a vkey's key");
    const [algorithm, length] = ALGORITHMS[material[0]] ?? [];
    if (!algorithm) throw malformed("a vkey must read name+id+key, of a known algorithm");
    checkName(name);
    if (material.length !== length + 1) {
      throw malformed(`a public key of ${name} has the wrong length`);
    }
    Object.assign(this, { name, algorithm, type: material[0], material: material.subarray(1) });
    this.keyId = hex(sha256(concat(utf8(`${name}\n`), material)).subarray(0, KEY_ID_BYTES));
    if (this.keyId !== id) {
      throw malformed("a vkey carries another key's id", { expected: this.keyId });
    }
    this.vkey = text;
  }

  /** Name and id, which find a key; no protection against forgery. */
  get label() {
    return `${this.name}+${this.keyId}`;
  }
}

/** Return the keys without those that stand before. */
export const distinct = (keys) => [...new Map(keys.map((key) => [key.vkey, key])).values()];

/** Read a signed note: `text`, and `signatures` of `name`, `keyId` (hex) and `blob` each. */
export function parseNote(data) {
  if (utf8(data).length > NOTE_BYTES_MAX) {
    throw malformed(`a signed note is longer than ${NOTE_BYTES_MAX.toLocaleString("en")} bytes`);
  }
  if (NOT_IN_NOTE.test(data)) throw malformed("a signed note holds a control character");
  const at = data.lastIndexOf("\n\n"); // the last empty line separates
  const tail = data.slice(at + 2);
  if (at < 0 || !tail.endsWith("\n")) {
    throw malformed("a signed note must be text, an empty line, and signature lines");
  }
  const lines = tail.slice(0, -1).split("\n");
  if (lines.length > SIGNATURES_MAX) {
    throw malformed(`a signed note has more than ${SIGNATURES_MAX} signatures`);
  }
  return { text: data.slice(0, at + 1), signatures: lines.map(parseLine) };
}

function parseLine(line) {
  const found = LINE.exec(line);
  if (!found) throw malformed("a signature line must read: dash, name, base64");
  const [, name, encoded] = found;
  const data = decodeBase64(encoded, "a signature");
  if (data.length <= KEY_ID_BYTES) throw malformed("a signature line holds no signature");
  checkName(name);
  return { name, keyId: hex(data.subarray(0, KEY_ID_BYTES)), blob: data.subarray(KEY_ID_BYTES) };
}

/** Write a note as it is stored and served. */
export function noteText({ text, signatures }) {
  const data = ({ keyId, blob }) => encodeBase64(concat(keyId.match(/../g).map((x) => +`0x${x}`), blob));
  return `${text}\n${signatures.map((line) => `— ${line.name} ${data(line)}\n`).join("")}`;
}
