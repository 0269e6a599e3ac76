// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {append, parent, split} from "./Parts.sol";

/// @title RFC 6962 written down word for word: the slow oracle of the tests
/// @dev Shares no code and no method with `TreeProof`: it builds trees and proofs by the recursive
/// definitions of section 2.1, where the contract walks a path by the bits of two sizes.
library Tree {
    /// @notice MTH, section 2.1, over made-up leaves `begin <= i < end`.
    function root(uint256 seed, uint256 begin, uint256 end) internal pure returns (bytes32) {
        if (end - begin == 1) return sha256(abi.encodePacked(hex"00", seed, begin));
        uint256 middle = begin + split(end - begin);
        return sha256(abi.encodePacked(hex"01", root(seed, begin, middle), root(seed, middle, end)));
    }

    /// @notice PROOF, section 2.1.2: from the first m leaves to the first n, `0 < m <= n`.
    function consistency(uint256 seed, uint256 m, uint256 n)
        internal
        pure
        returns (bytes32[] memory)
    {
        return _subproof(seed, m, 0, n, true);
    }

    /// @notice PATH, section 2.1.1: of leaf `index` in the first n.
    function path(uint256 seed, uint256 index, uint256 n) internal pure returns (bytes32[] memory) {
        return _path(seed, index, 0, n);
    }

    /// @notice The made-up leaves themselves, the first n.
    function leaves(uint256 seed, uint256 n) internal pure returns (bytes32[] memory found) {
        found = new bytes32[](n);
        for (uint256 i = 0; i < n; ++i) {
            found[i] = root(seed, i, i + 1);
        }
    }

    /// @notice MTH over given leaf hashes.
    function rootOf(bytes32[] memory given) internal pure returns (bytes32) {
        return _rootOf(given, 0, given.length);
    }

    /// @notice PROOF over given leaf hashes, from the first m to all of them, `0 < m < length`.
    function consistencyOf(bytes32[] memory given, uint256 m)
        internal
        pure
        returns (bytes32[] memory)
    {
        return _subproofOf(given, m, 0, given.length, true);
    }

    /// @notice A tree of n leaves that extends the first m made-up ones by subtrees that nobody
    /// has the leaves of, and the proof of it: `0 < m < n < 2^64`.
    function grownInto(uint256 seed, uint256 m, uint256 n)
        internal
        pure
        returns (bytes32 newRoot, bytes32[] memory proof)
    {
        return _grown(seed, m, 0, n, true);
    }

    /// @dev Root over [begin, end), and SUBPROOF there; m lies within or at the end.
    function _grown(uint256 seed, uint256 m, uint256 begin, uint256 end, bool whole)
        private
        pure
        returns (bytes32 node, bytes32[] memory proof)
    {
        if (m == end) {
            node = root(seed, begin, end);
            proof = whole ? new bytes32[](0) : append(new bytes32[](0), node);
            return (node, proof);
        }
        uint256 middle = begin + split(end - begin);
        if (m <= middle) {
            bytes32 invented = keccak256(abi.encode(seed, middle, end));
            (node, proof) = _grown(seed, m, begin, middle, whole);
            return (parent(node, invented), append(proof, invented));
        }
        bytes32 left = root(seed, begin, middle);
        (node, proof) = _grown(seed, m, middle, end, false);
        return (parent(left, node), append(proof, left));
    }

    function _rootOf(bytes32[] memory given, uint256 begin, uint256 end)
        private
        pure
        returns (bytes32)
    {
        if (end - begin == 1) return given[begin];
        uint256 middle = begin + split(end - begin);
        return parent(_rootOf(given, begin, middle), _rootOf(given, middle, end));
    }

    /// @dev Here m counts from 0, not from `begin`.
    function _subproofOf(bytes32[] memory given, uint256 m, uint256 begin, uint256 end, bool whole)
        private
        pure
        returns (bytes32[] memory)
    {
        if (m == end) {
            bytes32[] memory none = new bytes32[](0);
            return whole ? none : append(none, _rootOf(given, begin, end));
        }
        uint256 middle = begin + split(end - begin);
        if (m <= middle) {
            return append(_subproofOf(given, m, begin, middle, whole), _rootOf(given, middle, end));
        }
        return append(_subproofOf(given, m, middle, end, false), _rootOf(given, begin, middle));
    }

    function _subproof(uint256 seed, uint256 m, uint256 begin, uint256 end, bool whole)
        private
        pure
        returns (bytes32[] memory)
    {
        if (begin + m == end) {
            return whole ? new bytes32[](0) : append(new bytes32[](0), root(seed, begin, end));
        }
        uint256 k = split(end - begin);
        uint256 middle = begin + k;
        if (m <= k) {
            return append(_subproof(seed, m, begin, middle, whole), root(seed, middle, end));
        }
        return append(_subproof(seed, m - k, middle, end, false), root(seed, begin, middle));
    }

    function _path(uint256 seed, uint256 index, uint256 begin, uint256 end)
        private
        pure
        returns (bytes32[] memory)
    {
        if (end - begin == 1) return new bytes32[](0);
        uint256 middle = begin + split(end - begin);
        if (begin + index < middle) {
            return append(_path(seed, index, begin, middle), root(seed, middle, end));
        }
        return append(_path(seed, begin + index - middle, middle, end), root(seed, begin, middle));
    }
}
