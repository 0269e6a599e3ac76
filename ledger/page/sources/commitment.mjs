// Salted commitments of sealed fields; FORMAT.md, 3.2, and `ledger/proof/commitment.py`.
import { concat, equal, hex, latin1, quoted, utf8 } from "./bytes.mjs";
import { inconsistent, malformed } from "./errors.mjs";
import { hmacSha256 } from "./sha2.mjs";

const SALT_BYTES = 32; // exactly: HMAC pads shorter keys with zeros
const DOMAIN = latin1("rlhf-audit/commitment/v1\0");

/** Return the commitment to an opening: `path` (a field's name), `salt`, `value`; 32 bytes. */
function commit({ path, salt, value }) {
  const name = utf8(path);
  if (salt.length !== SALT_BYTES || name.length > 0xffff) {
    throw malformed("a salt must be 32 bytes, and a field's name at most 65,535");
  }
  return hmacSha256(salt, concat(DOMAIN, [name.length >> 8, name.length & 255], name, value));
}

/** Return the value that `opening` proves was committed, or throw Inconsistent. */
export function verifyOpening(commitment, opening) {
  const actual = commit(opening);
  if (!equal(actual, commitment)) {
    const found = { expected: hex(commitment), actual: hex(actual) };
    const what = `the opened value of ${quoted(opening.path)}`;
    throw inconsistent(`${what} is not the one the entry committed to`, found);
  }
  return opening.value;
}
