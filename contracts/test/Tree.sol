// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title RFC 6962 written down word for word: the slow oracle of the tests
/// @dev Shares no code and no method with `TreeProof`: it builds trees and proofs by the recursive
/// definitions of section 2.1, where the contract walks a path by the bits of two sizes.
library Tree {
    /// @notice MTH, section 2.1, over made-up leaves `begin <= i < end`.
    function root(uint256 seed, uint256 begin, uint256 end) internal pure returns (bytes32) {
        if (end - begin == 1) return sha256(abi.encodePacked(hex"00", seed, begin));
        uint256 middle = begin + _split(end - begin);
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

    function _subproof(uint256 seed, uint256 m, uint256 begin, uint256 end, bool whole)
        private
        pure
        returns (bytes32[] memory)
    {
        if (begin + m == end) {
            return whole ? new bytes32[](0) : _append(new bytes32[](0), root(seed, begin, end));
        }
        uint256 k = _split(end - begin);
        uint256 middle = begin + k;
        if (m <= k) {
            return _append(_subproof(seed, m, begin, middle, whole), root(seed, middle, end));
        }
        return _append(_subproof(seed, m - k, middle, end, false), root(seed, begin, middle));
    }

    function _path(uint256 seed, uint256 index, uint256 begin, uint256 end)
        private
        pure
        returns (bytes32[] memory)
    {
        if (end - begin == 1) return new bytes32[](0);
        uint256 middle = begin + _split(end - begin);
        if (begin + index < middle) {
            return _append(_path(seed, index, begin, middle), root(seed, middle, end));
        }
        return _append(_path(seed, begin + index - middle, middle, end), root(seed, begin, middle));
    }

    /// @dev The largest power of two below n.
    function _split(uint256 n) private pure returns (uint256 k) {
        k = 1;
        while (2 * k < n) k *= 2;
    }

    function _append(bytes32[] memory list, bytes32 item)
        private
        pure
        returns (bytes32[] memory longer)
    {
        longer = new bytes32[](list.length + 1);
        for (uint256 i = 0; i < list.length; ++i) {
            longer[i] = list[i];
        }
        longer[list.length] = item;
    }
}
