// Bytes and their spellings: UTF-8, hex, base64; and numbers and texts as people are shown them.
import { malformed } from "./errors.mjs";

export const utf8 = (text) => new TextEncoder().encode(text);

export function latin1(text) {
  const data = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) data[at] = text.charCodeAt(at);
  return data;
}

export const hex = (data) => Array.from(data, (x) => x.toString(16).padStart(2, "0")).join("");

export const fromHex = (text) => Uint8Array.from(text.match(/../g) ?? [], (x) => parseInt(x, 16));

export const equal = (a, b) => a.length === b.length && a.every((x, i) => x === b[i]);

export const concat = (...parts) => joined(parts);

/** Put parts behind each other; there may be more of them than a function takes arguments. */
export function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Return a number below 2^64 as 8 bytes, big-endian. */
export const u64 = (number) => fromHex(number.toString(16).padStart(16, "0"));

/** Read bytes as a number, big-endian. */
export const toNumber = (data) => (data.length ? BigInt("0x" + hex(data)) : 0n);

/** Encode as padded standard base64. */
export function encodeBase64(data) {
  let text = "";
  for (let at = 0; at < data.length; at += 8192) {
    text += String.fromCharCode(...data.subarray(at, at + 8192));
  }
  return btoa(text);
}

/** Decode padded standard base64 in its one canonical spelling, else MalformedBundle. */
export function decodeBase64(text, what) {
  let end = text.length; // of what stands before the padding
  while (end && text[end - 1] === "=") end--;
  const [rest, padding] = [end % 4, text.length - end];
  const isSurplus = end > 0 && rest === 0 && padding > 0; // Python reads over it
  const isPadded = rest === 0 ? padding === 0 : rest > 1 && padding === 4 - rest;
  if (/[^A-Za-z0-9+/]/.test(text.slice(0, end)) || !(isPadded || isSurplus)) {
    throw malformed(`${what} is not base64`);
  }
  const data = isSurplus ? new Uint8Array() : latin1(atob(text));
  if (encodeBase64(data) !== text) {
    throw malformed(`${what} is not base64 in its canonical spelling`);
  }
  return data;
}

/** Write a whole number with a comma between groups of three digits. */
export const grouped = (number) => number.toString().replace(/\B(?=(?:\d{3})+$)/g, ",");

const PLAIN = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/** Quote a text as Python's `repr` does, so that both verifiers use the same words. */
export function quoted(text) {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const sign = (x) => {
    if (x === mark) return "\\" + x;
    if (x in PLAIN) return PLAIN[x];
    if (x === " " || !/[\p{C}\p{Z}]/u.test(x)) return x;
    const code = x.codePointAt(0).toString(16);
    if (code.length <= 2) return "\\x" + code.padStart(2, "0");
    return code.length <= 4 ? "\\u" + code.padStart(4, "0") : "\\U" + code.padStart(8, "0");
  };
  return mark + Array.from(text, sign).join("") + mark;
}
