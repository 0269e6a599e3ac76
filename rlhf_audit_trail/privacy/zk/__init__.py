"""Verifiable counts: a count with fair coins, proven without opening anything but the sum.

After Biswas and Cormode (CCS 2023). Each annotator's bit and each private coin stands in a
Pedersen commitment with a proof that it is 0 or 1; a public coin flips the private ones; then
only the sum is opened. A verifier learns that it is the sum of what was committed, with
binomial noise that the operator could not choose, and nothing else.

`group` holds points and scalars, `bit_proof` commits to one bit and proves it, `count` does so
for all and opens the sum, `published` is its bytes. Needs the extra `[zk]` (coincurve).
"""
