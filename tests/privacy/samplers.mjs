// The samplers, written from the descriptions in bits.py and draw.py alone. Nothing is shared with the package.
import { createHash } from "node:crypto";

export const WORD = 1n << 64n;
export const sha256 = (...parts) => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
};
export const u64 = (number) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(number);
  return bytes;
};

function* stream(seed) {
  for (let i = 0n; ; i += 1n) {
    const block = sha256("dp-sha256-ctr/1", seed, u64(i));
    for (let at = 0; at < 32; at += 8) yield block.readBigUInt64BE(at);
  }
}
export const source = (hex) => {
  const words = stream(Buffer.from(hex, "hex"));
  return () => words.next().value;
};
export const rational = (text) => {
  const [p, q = "1"] = text.split("/");
  return [BigInt(p), BigInt(q)];
};
const root = (n) => {
  let low = 0n, high = n + 1n; // low * low <= n < high * high
  while (high - low > 1n) {
    const middle = (low + high) / 2n;
    if (middle * middle <= n) low = middle;
    else high = middle;
  }
  return low;
};

export function below(word, n) {
  if (n === 1n) return 0n;
  for (;;) {
    const u = word();
    if (u < WORD - (WORD % n)) return u % n;
  }
}
export function bernoulli(word, p, q) {
  for (;;) {
    const d = (WORD * p) / q, r = (WORD * p) % q, u = word();
    if (u !== d) return u < d;
    if (r === 0n) return false;
    p = r;
  }
}
function exponentialOfOne(word, a, b) {
  if (a === 0n) return true;
  let k = a < b ? 1n : 2n;
  while (bernoulli(word, a, b * k)) k += 1n;
  return k % 2n === 1n;
}
export function exponential(word, a, b) {
  for (; a > b; a -= b) if (!exponentialOfOne(word, 1n, 1n)) return false;
  return exponentialOfOne(word, a, b);
}
export function laplace(word, t, s) {
  for (;;) {
    const u = below(word, t);
    if (!exponential(word, u, t)) continue;
    let v = 0n;
    while (exponential(word, 1n, 1n)) v += 1n;
    const y = (u + t * v) / s;
    const minus = bernoulli(word, 1n, 2n);
    if (minus && y === 0n) continue;
    return minus ? -y : y;
  }
}
export function gaussian(word, p, q) {
  const t = root(p / q) + 1n;
  for (;;) {
    const y = laplace(word, t, 1n);
    const size = y < 0n ? -y : y;
    if (exponential(word, (size * q * t - p) ** 2n, 2n * p * q * t * t)) return y;
  }
}
export function binomial(word, coins) {
  const ones = (n) => BigInt(n.toString(2).replaceAll("0", "").length);
  let heads = 0n;
  for (let left = coins; left > 0n; left -= 64n) heads += ones(left >= 64n ? word() : word() >> (64n - left));
  return heads - coins / 2n;
}
export function response(word, value, levels, threshold) {
  if (word() < threshold) return value;
  const other = below(word, levels - 1n);
  return other < value ? other : other + 1n;
}
// floor(2^64 e^x / (e^x + k - 1)) by the power series of e^x in fixed point, both ways rounded
export function threshold([p, q], levels) {
  const one = 1n << 640n;
  let low = 0n, high = 0n, a = one, b = one;
  for (let n = 1n; n < 4000n && b > 1n; n += 1n) {
    low += a;
    high += b;
    a = (a * p) / (q * n);
    b = (b * p) / (q * n) + 1n;
  }
  high += one >> 300n; // far more than what the series leaves out
  const [from, to] = [low, high].map((y) => (WORD * y) / (y + one * (levels - 1n)));
  if (from !== to) throw new Error("more digits are needed");
  return from;
}
