// Ed25519 verification (RFC 8032, section 5.1.7), without the factor 8, as OpenSSL does it.
// Libraries differ in a few corners (points of small order, coordinates not reduced). So that one
// file has one verdict everywhere, the browser's own Ed25519 is not asked.
import { concat, equal, toNumber } from "./bytes.mjs";
import { sha512 } from "./sha2.mjs";

const P = 2n ** 255n - 19n;
const ORDER = 2n ** 252n + 27742317777372353535851937790883648493n;
const mod = (x, m = P) => ((x %= m) < 0n ? x + m : x);

function power(base, exponent) {
  let result = 1n;
  for (const bit of exponent.toString(2)) {
    result = (result * result) % P;
    if (bit === "1") result = (result * base) % P;
  }
  return result;
}

const D = mod(-121665n * power(121666n, P - 2n));
const ROOT_OF_MINUS_1 = power(2n, (P - 1n) / 4n);
const NEUTRAL = [0n, 1n, 1n, 0n]; // X, Y, Z, T with x = X/Z, y = Y/Z, xy = T/Z

function fromNumber(number) {
  return Uint8Array.from({ length: 32 }, (_, i) => Number((number >> BigInt(8 * i)) & 255n));
}

const littleEndian = (data) => toNumber(data.slice().reverse());

const BASE = decode(fromNumber(mod(4n * power(5n, P - 2n))));

/** Add two points; section 5.1.4, complete: it doubles, too. */
function add([x1, y1, z1, t1], [x2, y2, z2, t2]) {
  const a = ((y1 - x1) * (y2 - x2)) % P;
  const b = ((y1 + x1) * (y2 + x2)) % P;
  const c = (2n * t1 * ((D * t2) % P)) % P;
  const d = (2n * z1 * z2) % P;
  const [e, f, g, h] = [b - a, d - c, d + c, b + a];
  return [(e * f) % P, (g * h) % P, (f * g) % P, (e * h) % P];
}

function double([x, y, z]) {
  const [a, b] = [(x * x) % P, (y * y) % P];
  const [h, g] = [a + b, a - b];
  const e = h - (x + y) ** 2n;
  const f = 2n * z * z + g;
  const [e1, f1] = [e % P, f % P];
  return [(e1 * f1) % P, (g * h) % P, (f1 * g) % P, (e1 * h) % P];
}

/** Read a point; null if there is none. Neither y >= p nor -0 is refused: OpenSSL reads them. */
function decode(data) {
  const number = littleEndian(data);
  const y = mod(BigInt.asUintN(255, number));
  const [u, v] = [mod(y * y - 1n), mod(D * y * y + 1n)]; // x² = u/v
  let x = mod(u * v ** 3n * power(mod(u * v ** 7n), (P - 5n) / 8n));
  if (mod(v * x * x - u)) x = (x * ROOT_OF_MINUS_1) % P;
  if (mod(v * x * x - u)) return null;
  if ((x & 1n) !== number >> 255n) x = mod(-x);
  return [x, y, 1n, (x * y) % P];
}

function encode([x, y, z]) {
  const inverse = power(mod(z), P - 2n);
  const isOdd = mod(x * inverse) & 1n;
  return fromNumber(mod(y * inverse) | (isOdd << 255n));
}

/** Whether the holder of `publicKey` (32 bytes) signed `message`; both strictly as they stand. */
export function ed25519Fits(publicKey, message, signature) {
  if (publicKey.length !== 32 || signature.length !== 64) return false;
  const [r, s] = [signature.subarray(0, 32), littleEndian(signature.subarray(32))];
  const point = decode(publicKey);
  if (point === null || s >= ORDER) return false;
  const k = littleEndian(sha512(concat(r, publicKey, message))) % ORDER;
  const [x, y, z, t] = point;
  const minus = [-x, y, z, -t];
  // s·B - k·A, both at once: one doubling a bit, and one of three points to add
  const both = add(BASE, minus);
  const [bitsOfS, bitsOfK] = [s, k].map((x) => x.toString(2).padStart(253, "0"));
  let sum = NEUTRAL;
  for (let i = 0; i < 253; i++) {
    sum = double(sum);
    if (bitsOfS[i] === "1") sum = add(sum, bitsOfK[i] === "1" ? both : BASE);
    else if (bitsOfK[i] === "1") sum = add(sum, minus);
  }
  return equal(encode(sum), r);
}
