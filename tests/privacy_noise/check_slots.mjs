// Checks every vector of noise slots from the text of FORMAT.md alone: `node check_slots.mjs FILE`.
// Nothing is shared with the package. Prints how many agreed; ends with 1 at the first that does not.
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import {
  below, bernoulli, binomial, gaussian, laplace, rational, response, sha256, source, threshold, u64,
} from "../privacy/samplers.mjs";

class Refused extends Error {
  constructor(name) {
    super(name);
    this.name = name;
  }
}
const refuse = (name) => {
  throw new Refused(name);
};
const need = (condition, name) => condition || refuse(name);
const isWhole = (x) => typeof x === "number" && Number.isInteger(x);
const bytes = (text, size, name) => {
  need(typeof text === "string" && /^([0-9a-f]{2})*$/.test(text) && text.length === 2 * size, name);
  return Buffer.from(text, "hex");
};

// --- slots ---------------------------------------------------------------------------
const leaf = (slot, seed) => sha256(Buffer.from([0]), "noise-slot", u64(BigInt(slot)), seed);
const node = (left, right) => sha256(Buffer.from([1]), left, right);
const split = (size) => 2 ** (32 - Math.clz32(size - 1) - 1);
const root = (leaves) =>
  leaves.length === 1
    ? leaves[0]
    : node(root(leaves.slice(0, split(leaves.length))), root(leaves.slice(split(leaves.length))));
const fromPath = (hash, index, size, path) => {
  if (size === 1) return need(path.length === 0, "WrongSlotOpening") && hash;
  need(path.length > 0, "WrongSlotOpening");
  const half = split(size), sibling = path.at(-1), rest = path.slice(0, -1);
  return index < half
    ? node(fromPath(hash, index, half, rest), sibling)
    : node(sibling, fromPath(hash, index - half, size - half, rest));
};

function readOpening(text) {
  const wrong = "WrongSlotOpening";
  need(Buffer.byteLength(text) <= 2048, wrong);
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    refuse(wrong);
  }
  need(found && typeof found === "object" && Array.isArray(found.path) && found.path.length <= 20, wrong);
  const { path, seed, slot } = found;
  need(isWhole(slot) && slot >= 0 && slot < 2 ** 20, wrong);
  need(JSON.stringify({ path, seed, slot }) === text, wrong);
  return { slot, seed: bytes(seed, 32, wrong), path: path.map((hash) => bytes(hash, 32, wrong)) };
}
function checkOpening({ slot, seed, path }, rootHex, count) {
  need(slot < count, "WrongSlotOpening");
  need(fromPath(leaf(slot, seed), slot, count, path).toString("hex") === rootHex, "WrongSlotOpening");
}
const stream = ({ slot, seed }, coin) =>
  source(sha256(seed, bytes(coin, 32, "NoiseProtocolError"), u64(BigInt(slot))).toString("hex"));
const hex = (word) => word.toString(16).padStart(16, "0");

// --- mechanisms: every number follows from the parameters --------------------------------
const FIXED = 1n << 512n;
const ceil = (p, q) => -(-p / q) + (p > 0n && p % q ? 1n : 0n);
function exponential([p, q]) {
  let sum = 0n, term = FIXED;
  for (let n = 1n; term > 0n; n += 1n) {
    sum += term;
    term = (term * p) / (q * n);
  }
  return sum;
}
const gcd = (a, b) => (b ? gcd(b, a % b) : a < 0n ? -a : a);
function number(text) {
  const wrong = "TamperedParameters";
  need(typeof text === "string" && text.length < 2600 && /^-?[0-9]+(\/[0-9]+)?$/.test(text), wrong);
  const [p, q] = rational(text);
  need(q > 0n && gcd(p, q) === 1n && (q === 1n ? `${p}` : `${p}/${q}`) === text, wrong);
  return [p, q];
}
const whole = (x, least = 1) => need(isWhole(x) && x >= least, "TamperedParameters") && BigInt(x);
function epsilonOf(text) {
  const [p, q] = number(text);
  need(p * 10n ** 12n >= q && p <= 1000n * q, "TamperedParameters");
  return [p, q];
}
const units = ([p, q], perOne) => String(ceil(p * perOne, q));
function responseCost(epsilon) {
  const e = exponential(epsilon), [p, q] = epsilon;
  const rho = ceil(p * (e - FIXED) * (1n << 40n), q * (e + FIXED));
  return { epsilon_units: units(epsilon, 10n ** 12n), rho_units: String(rho), delta_units: "0" };
}
function binomialDelta(epsilon, coins, sensitivity) {
  const choose = [1n];
  for (let k = 1n; k <= coins; k += 1n) choose.push((choose.at(-1) * (coins - k + 1n)) / k);
  const e = exponential(epsilon);
  const over = choose.map((here, k) => here * FIXED - e * (choose[k - Number(sensitivity)] ?? 0n));
  const total = over.reduce((sum, x) => (x > 0n ? sum + x : sum), 0n);
  return ceil(total * 10n ** 18n, FIXED << coins);
}
const MECHANISMS = {
  randomised_response({ epsilon, levels }) {
    const e = epsilonOf(epsilon), k = whole(levels, 2);
    return [{ epsilon, levels, threshold: String(threshold(e, k)) }, responseCost(e)];
  },
  rounded_response({ epsilon, bounds }) {
    const e = epsilonOf(epsilon);
    need(Array.isArray(bounds) && bounds.length === 2, "TamperedParameters");
    const [[a, b], [c, d]] = bounds.map(number);
    need(a * d < c * b, "TamperedParameters");
    return [{ epsilon, threshold: String(threshold(e, 2n)), bounds }, responseCost(e)];
  },
  geometric({ epsilon, sensitivity_l1 }) {
    const [p, q] = epsilonOf(epsilon), s = whole(sensitivity_l1), g = gcd(s * q, p);
    const scale = p / g === 1n ? `${(s * q) / g}` : `${(s * q) / g}/${p / g}`;
    const cost = { epsilon_units: units([p, q], 10n ** 12n), rho_units: units([p * p, 2n * q * q], 1n << 40n) };
    return [{ epsilon, sensitivity_l1, scale }, { ...cost, delta_units: "0" }];
  },
  discrete_gaussian({ variance, sensitivity_l2_squared }) {
    const [p, q] = number(variance), s = whole(sensitivity_l2_squared);
    need(p > 0n && p <= q << 126n, "TamperedParameters");
    const cost = { epsilon_units: null, rho_units: units([s * q, 2n * p], 1n << 40n), delta_units: "0" };
    return [{ variance, sensitivity_l2_squared }, cost];
  },
  binomial({ coins, epsilon, delta, sensitivity }) {
    const e = epsilonOf(epsilon), d = number(delta), n = whole(coins, 2), s = whole(sensitivity);
    need(n % 2n === 0n && d[0] >= 0n && d[0] < d[1], "TamperedParameters");
    const delta_units = units(d, 10n ** 18n);
    need(binomialDelta(e, n, s) <= BigInt(delta_units), "TamperedParameters");
    const cost = { epsilon_units: units(e, 10n ** 12n), rho_units: null, delta_units };
    return [{ coins, epsilon, delta, sensitivity }, cost];
  },
};
const sorted = (x) =>
  x && typeof x === "object" && !Array.isArray(x)
    ? Object.fromEntries(Object.keys(x).sort().map((key) => [key, sorted(x[key])]))
    : x;
function checkMechanism(fields) {
  const wrong = "TamperedParameters", { name, code_digest } = fields;
  need(Object.hasOwn(MECHANISMS, name) && /^[0-9a-f]{64}$/.test(code_digest), wrong);
  const [parameters, cost] = MECHANISMS[name](fields.parameters);
  const ours = {
    name, parameters, ...cost, unit: "annotator", relation: "replace", drbg: "dp-sha256-ctr/1", code_digest,
  };
  need(JSON.stringify(sorted(ours)) === JSON.stringify(sorted(fields)), wrong);
}

// --- drawing again -------------------------------------------------------------------
function ratio(x) {
  need(typeof x === "number" && Number.isFinite(x), "ReleaseDiffers");
  let q = 1n;
  for (; !Number.isInteger(x); x *= 2) q *= 2n;
  return [BigInt(x), q];
}
function redraw({ name, parameters }, raw, word) {
  const level = (x) => need(isWhole(x), "ReleaseDiffers") && BigInt(x);
  const cells = (draw) => {
    need(Array.isArray(raw) && raw.length > 0, "ReleaseDiffers");
    return raw.map(level).map((cell) => Number(cell + draw()));
  };
  switch (name) {
    case "randomised_response": {
      const k = BigInt(parameters.levels), value = level(raw);
      need(value >= 0n && value < k, "ReleaseDiffers");
      return Number(response(word, value, k, BigInt(parameters.threshold)));
    }
    case "rounded_response": {
      const [x, y] = ratio(raw), [[a, b], [c, d]] = parameters.bounds.map(rational);
      const above = (x * b - a * y) * d, size = (c * b - a * d) * y; // (raw - low) / (high - low)
      const part = above < 0n ? 0n : above > size ? size : above;
      return Number(response(word, BigInt(bernoulli(word, part, size)), 2n, BigInt(parameters.threshold)));
    }
    case "geometric":
      return cells(() => laplace(word, ...rational(parameters.scale)));
    case "discrete_gaussian":
      return cells(() => gaussian(word, ...rational(parameters.variance)));
    default:
      return Number(level(raw) + binomial(word, BigInt(parameters.coins)));
  }
}

// --- vectors -------------------------------------------------------------------------
const CHECK = {
  tree({ secret, count }) {
    const seed = (slot) => createHmac("sha256", Buffer.from(secret, "hex")).update(u64(BigInt(slot))).digest();
    return { root: root(Array.from({ length: count }, (_, slot) => leaf(slot, seed(slot)))).toString("hex") };
  },
  opening({ opening, root: rootHex, count, coin }) {
    const found = readOpening(opening);
    checkOpening(found, rootHex, count);
    const word = stream(found, coin);
    return { words: Array.from({ length: 5 }, () => hex(word())) };
  },
  coin({ committed, anchored_size, coin_index, anchored_at, coin_at }) {
    need(committed.length > 0 && (anchored_at === null) === (coin_at === null), "InvalidParameter");
    need(committed.every((index) => index >= 0 && index < anchored_size), "EarlyCoin");
    need(coin_index >= anchored_size && (coin_at === null || coin_at > anchored_at), "EarlyCoin");
    return {};
  },
  slots({ used, count, burnt }) {
    let next = 0;
    const pass = () => {
      while (burnt.includes(next)) next += 1;
    };
    pass();
    for (const slot of used) {
      need(slot >= next && !burnt.includes(slot), "SlotReused");
      need(slot === next && slot < count, "SlotSkipped");
      next += 1;
      pass();
    }
    return { next };
  },
  release({ mechanism, root: rootHex, count, slot, coin, released, raw, opening }) {
    const found = readOpening(opening);
    checkMechanism(mechanism);
    need(found.slot === slot, "WrongSlotOpening");
    checkOpening(found, rootHex, count);
    const ours = redraw(mechanism, raw, stream(found, coin));
    need(JSON.stringify(ours) === JSON.stringify(released), "ReleaseDiffers");
    return {};
  },
  sample({ seed, root: head, events, openings }) {
    need(openings >= 1 && openings <= events, "InvalidParameter");
    const parts = [seed, head].map((text) => bytes(text, 32, "InvalidParameter"));
    const word = source(sha256("dp-audit-sample/1", ...parts).toString("hex"));
    const chosen = new Set();
    for (let last = events - openings; last < events; last += 1) {
      const event = Number(below(word, BigInt(last + 1)));
      chosen.add(chosen.has(event) ? last : event);
    }
    return { chosen: [...chosen].sort((a, b) => a - b) };
  },
};

let agreed = 0;
for (const { about, kind, input, ...said } of JSON.parse(readFileSync(process.argv[2], "utf8"))) {
  let found;
  try {
    found = { expect: "ok", ...CHECK[kind](input) };
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    found = { expect: error.name };
  }
  if (JSON.stringify(sorted(found)) !== JSON.stringify(sorted(said))) {
    console.error(`${about}: ${JSON.stringify(found)}, not ${JSON.stringify(said)}`);
    process.exit(1);
  }
  agreed += 1;
}
console.log(agreed);
