// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

// What every recursion over a tree in these tests is made of, RFC 6962 section 2.1.

/// @dev The node over two others.
function parent(bytes32 left, bytes32 right) pure returns (bytes32) {
    return sha256(abi.encodePacked(uint8(1), left, right));
}

/// @dev The largest power of two below n.
function split(uint256 n) pure returns (uint256 k) {
    k = 1;
    while (2 * k < n) k *= 2;
}

/// @dev A copy of the list with one item more.
function append(bytes32[] memory list, bytes32 item) pure returns (bytes32[] memory longer) {
    longer = new bytes32[](list.length + 1);
    for (uint256 i = 0; i < list.length; ++i) {
        longer[i] = list[i];
    }
    longer[list.length] = item;
}
