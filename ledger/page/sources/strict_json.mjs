// JSON without duplicate keys, NaN, bad UTF-8 or deep nesting: what any two readers read alike.
// Objects become Maps, so that no key has a meaning of its own; integers become BigInts, so that
// none is rounded; fractions become numbers.
import { malformed } from "./errors.mjs";

const DEPTH_MAX = 64;
const TOKENS_MAX = 4_000_000; // texts and brackets
const ENTRY_BYTES_MAX = 65_535;
const DIGITS_MAX = 4_300; // of an integer: reading longer ones would take time without bound
const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/y;
const ENDING = /["\\\u0000-\u001f]/g;
const ESCAPE = /["\\/bfnrt]|u[0-9a-fA-F]{4}/y;
const SPACE = /[ \t\n\r]*/y;
const NO_JSON = "not JSON as RFC 8259 has it";
const ESCAPES = { b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };

/** Parse the bytes of one JSON value, else MalformedBundle. */
export function parseJson(data) {
  checkDepth(data);
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    throw malformed(NO_JSON);
  }
  const reader = new Reader(text);
  reader.take(SPACE);
  const value = reader.value();
  reader.take(SPACE);
  if (reader.at !== reader.text.length) throw malformed("JSON with something after it");
  return value;
}

/** Refuse JSON nested so deep that parsing it could end the program, or in too many pieces. */
function checkDepth(data) {
  const isBracket = (x) => x === 0x5b || x === 0x7b;
  if (data.length <= ENTRY_BYTES_MAX) {
    if (data.reduce((count, x) => count + isBracket(x), 0) <= DEPTH_MAX) return;
  }
  let depth = 0;
  let tokens = 0;
  for (let at = 0; at < data.length; at++) {
    const x = data[at];
    if (isBracket(x)) depth++;
    else if (x === 0x5d || x === 0x7d) depth--;
    else if (x === 0x22) {
      for (at++; at < data.length && data[at] !== 0x22; at++) if (data[at] === 0x5c) at++;
    } else continue;
    if (depth < 0 || depth > DEPTH_MAX || tokens++ >= TOKENS_MAX) {
      throw malformed(`JSON nested deeper than ${DEPTH_MAX} levels, or too long`);
    }
  }
}

class Reader {
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  /** Read what a pattern finds here, and move behind it; null if it finds nothing. */
  take(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found) this.at = pattern.lastIndex;
    return found;
  }

  /** Move behind `word` if it stands here. */
  skip(word) {
    const found = this.text.startsWith(word, this.at);
    if (found) this.at += word.length;
    return found;
  }

  /** Move behind white space, and behind `word` if it then stands here. */
  skipSpaced(word) {
    this.take(SPACE);
    return this.skip(word);
  }

  value() {
    if (this.skip("{")) return this.object();
    if (this.skip("[")) return this.list();
    if (this.skip('"')) return this.string();
    if (this.skip("true")) return true;
    if (this.skip("false")) return false;
    if (this.skip("null")) return null;
    for (const name of ["NaN", "Infinity", "-Infinity"]) {
      if (this.skip(name)) throw malformed(`${name} is not JSON`);
    }
    const [number, fraction, exponent] = this.take(NUMBER) ?? [""];
    const digits = number.length - number.startsWith("-");
    const isWhole = fraction === undefined && exponent === undefined;
    if (!digits || (isWhole && digits > DIGITS_MAX)) throw malformed(NO_JSON);
    return isWhole ? BigInt(number) : Number(number);
  }

  object() {
    const pairs = [];
    if (!this.skipSpaced("}")) {
      do {
        if (!this.skipSpaced('"')) throw malformed(NO_JSON);
        const key = this.string();
        if (!this.skipSpaced(":")) throw malformed(NO_JSON);
        this.take(SPACE);
        pairs.push([key, this.value()]);
      } while (this.skipSpaced(","));
      if (!this.skip("}")) throw malformed(NO_JSON);
    }
    const record = new Map(pairs);
    if (record.size !== pairs.length) throw malformed("a JSON object has the same key twice");
    return record;
  }

  list() {
    const items = [];
    if (this.skipSpaced("]")) return items;
    do {
      this.take(SPACE);
      items.push(this.value());
    } while (this.skipSpaced(","));
    if (!this.skip("]")) throw malformed(NO_JSON);
    return items;
  }

  string() {
    const begin = this.at;
    let isPlain = true;
    // sign by sign a pattern for the whole would need memory for each, and time for their square
    while (!this.skip('"')) {
      ENDING.lastIndex = this.at;
      const found = ENDING.exec(this.text);
      this.at = found?.index ?? this.at;
      if (found?.[0] === '"') continue;
      isPlain = false;
      if (!this.skip("\\") || !this.take(ESCAPE)) throw malformed(NO_JSON);
    }
    const raw = this.text.slice(begin, this.at - 1);
    if (isPlain) return raw;
    return raw.replace(/\\(u(....)|.)/g, (_, sign, code) =>
      code ? String.fromCharCode(parseInt(code, 16)) : (ESCAPES[sign] ?? sign),
    );
  }
}
