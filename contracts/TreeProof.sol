// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title RFC 6962 Merkle proofs over SHA-256
/// @notice The shape of a proof follows from the sizes alone; nothing structural is read from the
/// prover. For sizes below 2^64 both functions take at most 64 steps, whatever they are given.
/// @dev Requires SHA-256 at address 2; on a chain without it a call there succeeds and writes
/// nothing, so a contract that uses this library must check that once (see `TreeHeadAnchor`).
///
/// Each node is hashed in a 96-byte buffer: a word that ends in the prefix 0x01, the left child,
/// the right child. Hashing starts at byte 31 of it, so the children stay word-aligned, and the
/// result goes straight to the place of a child for the next step.
library TreeProof {
    /// @notice Whether the tree (n, rootN) extends the tree (m, rootM), RFC 9162 section 2.1.4.2.
    /// @dev The walk starts at the last whole subtree of the old tree: the old root itself if m is
    /// a power of two, otherwise the proof's first node. Siblings to its right are new and touch
    /// the new root only; siblings to its left belong to both. The first sibling is always a right
    /// one, because m < n and the start is the largest subtree that ends at m. The paths thus part
    /// at once, and no marker for "still the same" is needed. (A zero node as that marker would be
    /// unsound: an attacker chooses the first node.)
    /// @param m Old size; 0 gives false.
    /// @param n New size; equal sizes need equal roots and an empty proof.
    /// @param rootM Old root.
    /// @param rootN New root.
    /// @param proof Consistency proof.
    /// @return fits True only if the proof has the right length and leads to both roots.
    function isConsistent(
        uint256 m,
        uint256 n,
        bytes32 rootM,
        bytes32 rootN,
        bytes32[] calldata proof
    ) internal view returns (bool fits) {
        if (m == n) return m != 0 && proof.length == 0 && rootM == rootN;
        if (m == 0 || m > n) return false;
        assembly ("memory-safe") {
            let next := proof.offset
            // two buffers, for the new path and for the old one; both nodes rest as right child
            let prefixN := mload(0x40)
            let leftN := add(prefixN, 0x20)
            let rightN := add(prefixN, 0x40)
            let prefixM := add(prefixN, 0x60)
            let leftM := add(prefixN, 0x80)
            let rightM := add(prefixN, 0xa0)
            mstore(prefixN, 1)
            mstore(prefixM, 1)
            prefixN := add(prefixN, 31)
            prefixM := add(prefixM, 31)

            let whole := and(m, sub(0, m)) // size of the old tree's last whole subtree
            let start := rootM
            if xor(m, whole) {
                start := calldataload(next)
                next := add(next, 0x20)
            }
            mstore(rightN, start)
            mstore(rightM, start)

            let ok := 1
            let path := div(sub(m, 1), whole) // a one-bit: the sibling at that level is a left one
            // up to where the paths from m - 1 and n - 1 meet: one sibling on each level
            for { let apart := div(xor(sub(m, 1), sub(n, 1)), whole) } apart {
                apart := shr(1, apart)
                path := shr(1, path)
                next := add(next, 0x20)
            } {
                switch and(path, 1)
                case 0 {
                    mstore(leftN, mload(rightN))
                    mstore(rightN, calldataload(next))
                }
                default {
                    let sibling := calldataload(next)
                    mstore(leftM, sibling)
                    mstore(leftN, sibling)
                    ok := and(ok, staticcall(gas(), 2, prefixM, 65, rightM, 32))
                }
                ok := and(ok, staticcall(gas(), 2, prefixN, 65, rightN, 32))
            }
            // above, along the right edge: one left sibling for each one-bit that remains
            for {} path { path := and(path, sub(path, 1)) } {
                let sibling := calldataload(next)
                mstore(leftM, sibling)
                mstore(leftN, sibling)
                ok := and(ok, staticcall(gas(), 2, prefixM, 65, rightM, 32))
                ok := and(ok, staticcall(gas(), 2, prefixN, 65, rightN, 32))
                next := add(next, 0x20)
            }
            // the length is checked last because the loops count it anyway
            ok := and(ok, eq(next, add(proof.offset, shl(5, proof.length))))
            fits := and(ok, and(eq(mload(rightM), rootM), eq(mload(rightN), rootN)))
        }
    }

    /// @notice Whether a leaf is in the tree (n, root), RFC 9162 section 2.1.3.2.
    /// @param leafHash SHA-256(0x00 || entry).
    /// @param index Position from 0; false unless below n.
    /// @param n Size of the tree.
    /// @param root Its root.
    /// @param proof Inclusion path, leaf to root.
    /// @return fits True only if the path has the right length and leads to the root.
    function isIncluded(
        bytes32 leafHash,
        uint256 index,
        uint256 n,
        bytes32 root,
        bytes32[] calldata proof
    ) internal view returns (bool fits) {
        if (index >= n) return false;
        assembly ("memory-safe") {
            let next := proof.offset
            let prefix := mload(0x40)
            let left := add(prefix, 0x20)
            let right := add(prefix, 0x40)
            mstore(prefix, 1)
            prefix := add(prefix, 31)
            mstore(right, leafHash)

            let ok := 1
            let path := index
            // up to where the paths from index and n - 1 meet: one sibling on each level
            for { let apart := xor(index, sub(n, 1)) } apart {
                apart := shr(1, apart)
                path := shr(1, path)
                next := add(next, 0x20)
            } {
                switch and(path, 1)
                case 0 {
                    mstore(left, mload(right))
                    mstore(right, calldataload(next))
                }
                default { mstore(left, calldataload(next)) }
                ok := and(ok, staticcall(gas(), 2, prefix, 65, right, 32))
            }
            // above, along the right edge: one left sibling for each one-bit that remains
            for {} path { path := and(path, sub(path, 1)) } {
                mstore(left, calldataload(next))
                ok := and(ok, staticcall(gas(), 2, prefix, 65, right, 32))
                next := add(next, 0x20)
            }
            ok := and(ok, eq(next, add(proof.offset, shl(5, proof.length))))
            fits := and(ok, eq(mload(right), root))
        }
    }
}
