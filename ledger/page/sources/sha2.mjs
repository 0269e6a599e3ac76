// SHA-256, HMAC-SHA256 and SHA-512 (FIPS 180-4, RFC 2104). The browser has them too, but answers
// only later, and not at all on a page that came over plain http.
import { concat } from "./bytes.mjs";

const primes = [];
for (let n = 2; primes.length < 80; n++) if (primes.every((p) => n % p)) primes.push(n);

/** First `bits` bits behind the point of the n-th root of a number. */
function rootBits(number, n, bits) {
  const wanted = BigInt(number) << BigInt(bits * n);
  let [low, high] = [0n, 1n << BigInt(bits + 5)];
  while (high - low > 1n) {
    const middle = (low + high) >> 1n;
    if (middle ** BigInt(n) <= wanted) low = middle;
    else high = middle;
  }
  return BigInt.asUintN(bits, low);
}

const K512 = primes.map((prime) => rootBits(prime, 3, 64));
const H512 = primes.slice(0, 8).map((prime) => rootBits(prime, 2, 64));
const K256 = Int32Array.from(K512.slice(0, 64), (k) => Number(k >> 32n));
const H256 = Int32Array.from(H512, (h) => Number(h >> 32n));

/** Append 0x80, zeros, and the length in bits, to a whole number of blocks. */
function padded(data, blockBytes) {
  const length = Math.ceil((data.length + 1 + blockBytes / 8) / blockBytes) * blockBytes;
  const whole = new Uint8Array(length);
  whole.set(data);
  whole[data.length] = 0x80;
  new DataView(whole.buffer).setBigUint64(length - 8, BigInt(data.length) * 8n);
  return new DataView(whole.buffer);
}

/** Hash bytes, 32 bytes. */
export function sha256(data) {
  const view = padded(data, 64);
  const w = new Int32Array(64);
  const state = H256.slice();
  for (let block = 0; block < view.byteLength; block += 64) {
    for (let i = 0; i < 16; i++) w[i] = view.getInt32(block + 4 * i);
    for (let i = 16; i < 64; i++) {
      const [x, y] = [w[i - 15], w[i - 2]];
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K256[i] + w[i]) | 0;
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g; g = f; f = e; e = (d + t1) | 0;
      d = c; c = b; b = a; a = (t1 + t2) | 0;
    }
    [a, b, c, d, e, f, g, h].forEach((x, i) => (state[i] += x));
  }
  const out = new DataView(new ArrayBuffer(32));
  state.forEach((x, i) => out.setInt32(4 * i, x));
  return new Uint8Array(out.buffer);
}

/** HMAC-SHA256 under a key of at most 64 bytes, 32 bytes. */
export function hmacSha256(key, message) {
  const pad = (mark) => Uint8Array.from({ length: 64 }, (_, i) => (key[i] ?? 0) ^ mark);
  return sha256(concat(pad(0x5c), sha256(concat(pad(0x36), message))));
}

/** Hash bytes, 64 bytes; for short messages, as it counts with BigInts. */
export function sha512(data) {
  const view = padded(data, 128);
  const cut = (x) => BigInt.asUintN(64, x);
  const turn = (x, n) => (x >> n) | cut(x << (64n - n));
  let state = H512;
  for (let block = 0; block < view.byteLength; block += 128) {
    const w = Array.from({ length: 16 }, (_, i) => view.getBigUint64(block + 8 * i));
    for (let i = 16; i < 80; i++) {
      const [x, y] = [w[i - 15], w[i - 2]];
      const s0 = turn(x, 1n) ^ turn(x, 8n) ^ (x >> 7n);
      const s1 = turn(y, 19n) ^ turn(y, 61n) ^ (y >> 6n);
      w.push(cut(w[i - 16] + s0 + w[i - 7] + s1));
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 80; i++) {
      const s1 = turn(e, 14n) ^ turn(e, 18n) ^ turn(e, 41n);
      const s0 = turn(a, 28n) ^ turn(a, 34n) ^ turn(a, 39n);
      const t1 = h + s1 + ((e & f) ^ (cut(~e) & g)) + K512[i] + w[i];
      const t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      [h, g, f, e, d, c, b, a] = [g, f, e, cut(d + t1), c, b, a, cut(t1 + t2)];
    }
    state = [a, b, c, d, e, f, g, h].map((x, i) => cut(x + state[i]));
  }
  const out = new DataView(new ArrayBuffer(64));
  state.forEach((x, i) => out.setBigUint64(8 * i, x));
  return new Uint8Array(out.buffer);
}
