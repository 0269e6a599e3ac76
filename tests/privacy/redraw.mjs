// Derives every vector again from the descriptions in bits.py and draw.py: `node redraw.mjs FILE`.
// Nothing is shared with the package. Prints how many agreed; ends with 1 at the first that does not.
import { readFileSync } from "node:fs";
import {
  below, bernoulli, binomial, exponential, gaussian, laplace, rational, response, sha256, source, threshold, u64,
} from "./samplers.mjs";

const DRAW = {
  below: (word, n) => below(word, BigInt(n)),
  bernoulli: (word, p, q) => BigInt(bernoulli(word, BigInt(p), BigInt(q))),
  bernoulli_exp: (word, p, q) => BigInt(exponential(word, BigInt(p), BigInt(q))),
  discrete_laplace: (word, scale) => laplace(word, ...rational(scale)),
  discrete_gaussian: (word, variance) => gaussian(word, ...rational(variance)),
  centred_binomial: (word, coins) => binomial(word, BigInt(coins)),
  randomised_response: (word, epsilon, levels, value) =>
    response(word, BigInt(value), BigInt(levels), threshold(rational(epsilon), BigInt(levels))),
  rounded_response: (word, epsilon, position) =>
    response(word, BigInt(bernoulli(word, ...rational(position))), 2n, threshold(rational(epsilon), 2n)),
};

const vectors = JSON.parse(readFileSync(process.argv[2], "utf8"));
let agreed = 0;
const same = (what, found, expected) => {
  if (found !== expected) {
    console.error(`${what}: ${found}, not ${expected}`);
    process.exit(1);
  }
  agreed += 1;
};
const hex = (number) => number.toString(16).padStart(16, "0");
for (const { seed, words } of vectors.words) {
  const word = source(seed);
  for (const expected of words) same(`words of ${seed}`, hex(word()), expected);
}
for (const { secret, coin, slot, seed } of vectors.slots) {
  const parts = [Buffer.from(secret, "hex"), Buffer.from(coin, "hex"), u64(BigInt(slot))];
  same(`slot ${slot}`, sha256(...parts).toString("hex"), seed);
}
for (const { epsilon, levels, threshold: expected } of vectors.thresholds)
  same(`threshold ${epsilon}, ${levels}`, hex(threshold(rational(epsilon), BigInt(levels))), expected);
for (const { sampler, parameters, seed, draws, next_word } of vectors.draws) {
  const word = source(seed);
  for (const expected of draws.split(" "))
    same(`${sampler} ${parameters}`, String(DRAW[sampler](word, ...parameters)), expected);
  same(`${sampler} ${parameters}: words taken`, hex(word()), next_word);
}
console.log(agreed);
