// What is computed once before anything else: published values, so that a browser's defect shows.
// It also has the browser translate the slow functions, so that the first bundle waits less.
import { fromHex, hex } from "./bytes.mjs";
import { ed25519Fits } from "./ed25519.mjs";
import { keccak256 } from "./keccak.mjs";
import { mldsaFits } from "./mldsa.mjs";
import { sha256 } from "./sha2.mjs";

const EMPTY = new Uint8Array();
const ROUNDS = 4;
// RFC 8032, section 7.1, test 2
const KEY = fromHex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
const SIGNATURE = fromHex(
  "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da" +
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
);

/** Whether this browser computes rightly. */
export function computesRightly() {
  const fits = (message) => ed25519Fits(KEY, Uint8Array.of(message), SIGNATURE);
  const begins = (digest, first) => hex(digest).startsWith(first);
  return fits(0x72) && !fits(0x73) && begins(sha256(EMPTY), "e3b0c442") && begins(keccak256(EMPTY), "c5d24601");
}

/** Compute signatures for nothing, a few at a time while the user is busy elsewhere. */
export function warmUp(round = 0) {
  const noise = new Uint8Array(2420).fill(0x55, 0, 2336); // well-formed, and fits nothing
  const key = new Uint8Array(1312).fill(round);
  if (mldsaFits(key, EMPTY, noise) || !computesRightly()) throw new Error("computes wrongly");
  if (round < ROUNDS) setTimeout(warmUp, 20, round + 1);
}
