// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {append, parent, split} from "./Parts.sol";

/// @title Trees too large to build, with proofs that are right all the same
/// @dev A consistency proof shows a few nodes of a tree, and nothing below them. Those nodes are
/// made up here, and the two roots hashed together from them by the recursion of RFC 6962
/// section 2.1.2. All need `1 <= m < n`.
library Made {
    /// @notice The roots over the first m and the first n leaves.
    function roots(uint256 seed, uint256 m, uint256 n) internal pure returns (bytes32, bytes32) {
        return _roots(seed, m, 0, n);
    }

    /// @notice The proof between them.
    function proof(uint256 seed, uint256 m, uint256 n) internal pure returns (bytes32[] memory) {
        return _subproof(seed, m, 0, n, true);
    }

    function _roots(uint256 seed, uint256 m, uint256 begin, uint256 end)
        private
        pure
        returns (bytes32 old, bytes32 root)
    {
        if (m == end) return (_node(seed, begin, end), _node(seed, begin, end));
        uint256 middle = begin + split(end - begin);
        if (m <= middle) {
            (old, root) = _roots(seed, m, begin, middle);
            return (old, parent(root, _node(seed, middle, end)));
        }
        bytes32 left = _node(seed, begin, middle);
        (old, root) = _roots(seed, m, middle, end);
        return (parent(left, old), parent(left, root));
    }

    /// @dev `m` counts leaves from 0, not from `begin`.
    function _subproof(uint256 seed, uint256 m, uint256 begin, uint256 end, bool whole)
        private
        pure
        returns (bytes32[] memory)
    {
        if (m == end) {
            bytes32[] memory none = new bytes32[](0);
            return whole ? none : append(none, _node(seed, begin, end));
        }
        uint256 middle = begin + split(end - begin);
        if (m <= middle) {
            return append(_subproof(seed, m, begin, middle, whole), _node(seed, middle, end));
        }
        return append(_subproof(seed, m, middle, end, false), _node(seed, begin, middle));
    }

    /// @dev Of the subtree over leaves [begin, end); it does not straddle m.
    function _node(uint256 seed, uint256 begin, uint256 end) private pure returns (bytes32) {
        return keccak256(abi.encode(seed, begin, end));
    }
}
