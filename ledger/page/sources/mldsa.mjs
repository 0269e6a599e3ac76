// ML-DSA-44 verification (FIPS 204, algorithm 3), pure, with an empty context.
// Polynomials have 256 coefficients modulo Q, as numbers; products stay below 2^53.
import { concat, equal } from "./bytes.mjs";
import { shake128, shake256 } from "./keccak.mjs";

const Q = 8380417;
const [ROWS, COLUMNS] = [4, 4]; // k and l
const DROPPED_BITS = 13; // d
const ONES = 39; // tau: coefficients of the challenge that are 1 or -1
const GAMMA1 = 2 ** 17;
const GAMMA2 = (Q - 1) / 88;
const BETA = 78;
const HINTS_MAX = 80; // omega
const HIGH_VALUES = (Q - 1) / (2 * GAMMA2); // 44 values that high bits can have
const [PUBLIC_BYTES, SIGNATURE_BYTES, CHALLENGE_BYTES] = [1312, 2420, 32];

/** Bring a number below 2^52 near zero, modulo Q; much faster than the remainder of fractions. */
const near = (x) => x - Math.round(x / Q) * Q;

/** Powers of 1753 in the order in which the transform needs them; appendix B. */
const ZETAS = (() => {
  const powers = [1];
  for (let i = 1; i < 256; i++) powers.push((powers[i - 1] * 1753) % Q);
  const reversed = (i) => parseInt(i.toString(2).padStart(8, "0").split("").reverse().join(""), 2);
  return powers.map((_, i) => powers[reversed(i)]);
})();

/** Number-theoretic transform in place; algorithm 41. */
function transform(w) {
  let m = 0;
  for (let width = 128; width >= 1; width >>= 1) {
    for (let start = 0; start < 256; start += 2 * width) {
      const zeta = ZETAS[++m];
      for (let j = start; j < start + width; j++) {
        const t = near(zeta * w[j + width]);
        w[j + width] = near(w[j] - t);
        w[j] = near(w[j] + t);
      }
    }
  }
  return w;
}

/** Its inverse, in place; algorithm 42. */
function transformBack(w) {
  let m = 256;
  for (let width = 1; width < 256; width <<= 1) {
    for (let start = 0; start < 256; start += 2 * width) {
      const zeta = -ZETAS[--m];
      for (let j = start; j < start + width; j++) {
        const t = w[j];
        w[j] = near(t + w[j + width]);
        w[j + width] = near(zeta * near(t - w[j + width]));
      }
    }
  }
  return w.map((x) => {
    const y = near(x * 8347681); // 1/256
    return y < 0 ? y + Q : y;
  });
}

/** Read 256 numbers of `bits` bits each, the lowest bit first; algorithm 17. */
function unpack(data, bits) {
  const numbers = new Array(256);
  let [held, count, at] = [0, 0, 0];
  for (let i = 0; i < 256; i++) {
    for (; count < bits; count += 8) held |= data[at++] << count;
    numbers[i] = held & ((1 << bits) - 1);
    held >>>= bits;
    count -= bits;
  }
  return numbers;
}

/** One polynomial of the public matrix, already transformed; algorithm 30. */
function matrixPart(seed, row, column) {
  const source = shake128(concat(seed, [column, row]));
  const coefficients = [];
  for (;;) {
    const block = source.block();
    for (let i = 0; i < block.length; i += 3) {
      const x = block[i] | (block[i + 1] << 8) | ((block[i + 2] & 0x7f) << 16);
      if (x < Q) coefficients.push(x);
      if (coefficients.length === 256) return coefficients;
    }
  }
}

/** The challenge that 32 bytes stand for: 39 coefficients of 1 or -1; algorithm 29. */
function challengeOf(digest) {
  const source = shake256(digest);
  let [block, at] = [source.block(), 8];
  const signs = block.slice(0, 8);
  const c = new Array(256).fill(0);
  for (let i = 256 - ONES; i < 256; i++) {
    let j;
    do {
      if (at === block.length) [block, at] = [source.block(), 0];
      j = block[at++];
    } while (j > i);
    const n = i + ONES - 256;
    c[i] = c[j];
    c[j] = (signs[n >> 3] >> (n & 7)) & 1 ? -1 : 1;
  }
  return c;
}

/** Read the hints, one set of places for each row; null if misspelt; algorithm 21. */
function readHints(data) {
  const hints = [];
  let at = 0;
  for (let row = 0; row < ROWS; row++) {
    const end = data[HINTS_MAX + row];
    if (end < at || end > HINTS_MAX) return null;
    const places = data.subarray(at, end);
    if (places.some((x, i) => i > 0 && places[i - 1] >= x)) return null;
    hints.push(new Set(places));
    at = end;
  }
  return data.subarray(at, HINTS_MAX).some((x) => x !== 0) ? null : hints;
}

/** High bits of r, corrected by a hint; algorithms 36 and 40. */
function highBits(r, hint) {
  let low = r % (2 * GAMMA2);
  if (low > GAMMA2) low -= 2 * GAMMA2;
  let high = (r - low) / (2 * GAMMA2);
  if (high === HIGH_VALUES) [high, low] = [0, low - 1];
  if (!hint) return high;
  return (high + (low > 0 ? 1 : HIGH_VALUES - 1)) % HIGH_VALUES;
}

/** Pack four numbers below 64 into three bytes; algorithm 28 with 6 bits. */
function packHigh(numbers) {
  const data = new Uint8Array(192);
  for (let i = 0, at = 0; i < 256; i += 4) {
    const [a, b, c, d] = numbers.slice(i, i + 4);
    const word = a | (b << 6) | (c << 12) | (d << 18);
    for (let shift = 0; shift < 24; shift += 8) data[at++] = word >> shift;
  }
  return data;
}

const digest64 = (...parts) => shake256(concat(...parts)).block().slice(0, 64);

const range = (count) => [...new Array(count).keys()];

const part = (data, from, bits, i) => unpack(data.subarray(from + 32 * bits * i), bits);

/** What follows from a public key alone, kept for the next signature by the same. */
let expanded = { key: null };

function expand(key) {
  if (expanded.key === key) return expanded;
  const matrix = range(ROWS).map((row) =>
    range(COLUMNS).map((column) => matrixPart(key.subarray(0, 32), row, column)),
  );
  const t = range(ROWS).map((row) =>
    transform(part(key, 32, 10, row).map((x) => near(x * 2 ** DROPPED_BITS))),
  );
  expanded = { key, matrix, t, digest: digest64(key) };
  return expanded;
}

/** Whether the holder of `publicKey` (1,312 bytes) signed `message`; algorithms 3 and 8. */
export function mldsaFits(publicKey, message, signature) {
  if (publicKey.length !== PUBLIC_BYTES || signature.length !== SIGNATURE_BYTES) return false;
  const challengeDigest = signature.subarray(0, CHALLENGE_BYTES);
  const z = range(COLUMNS).map((i) => part(signature, 32, 18, i).map((x) => GAMMA1 - x));
  const hints = readHints(signature.subarray(SIGNATURE_BYTES - HINTS_MAX - ROWS));
  const isShort = z.every((poly) => poly.every((x) => Math.abs(x) < GAMMA1 - BETA));
  if (hints === null || !isShort) return false;
  const { matrix, t, digest } = expand(publicKey);
  const mu = digest64(digest, [0, 0], message);
  const challenge = transform(challengeOf(challengeDigest));
  z.forEach(transform);
  const high = range(ROWS).map((row) => {
    const sum = t[row].map((x, i) => {
      let s = -near(challenge[i] * x);
      for (let column = 0; column < COLUMNS; column++) s += near(matrix[row][column][i] * z[column][i]);
      return near(s);
    });
    return packHigh(transformBack(sum).map((x, i) => highBits(x, hints[row].has(i))));
  });
  const again = shake256(concat(mu, ...high)).block();
  return equal(again.subarray(0, CHALLENGE_BYTES), challengeDigest);
}
