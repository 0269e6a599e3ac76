// The errors of a proof, named after the finding, as in `ledger/proof/errors.py`.

/**
 * A proof does not show what it claims to show.
 *
 * `name` is one of MalformedBundle, BadSignature, NotIncluded, Inconsistent, NotAnchored and
 * PolicyUnmet; `expected`, `actual` and `next` are words or hex, or empty.
 */
export class ProofError extends Error {
  constructor(name, message, { expected = "", actual = "", next = "" } = {}) {
    super(message);
    Object.assign(this, { name, expected, actual, next });
  }
}

/** Bytes do not parse, a length is wrong, or the version is unknown. */
export const malformed = (message, more) => new ProofError("MalformedBundle", message, more);

/** Two tree heads, a tree head and the chain, or a value and its commitment contradict. */
export const inconsistent = (message, more) => new ProofError("Inconsistent", message, more);
