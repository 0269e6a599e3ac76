// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITreeHeadAnchor} from "../ITreeHeadAnchor.sol";
import {TreeHeadAnchor} from "../TreeHeadAnchor.sol";
import {Made} from "./Made.sol";
import {vm} from "./Vm.sol";
import {append, parent, split} from "./Parts.sol";

/// @dev The contract, the Python tree and RFC 6962 agree: on every proof of every size up to 130
/// by one hash that all of them compute (`tests/vectors/accumulated.json`), and on proofs between
/// sizes up to 2^64 - 1, of trees too large to build.
contract DifferentialTest {
    TreeHeadAnchor private _anchors;

    string private constant _VECTOR = "../tests/vectors/accumulated.json";

    function setUp() public {
        _anchors = new TreeHeadAnchor();
    }

    /// @dev Builds all roots and proofs here, by the definitions of section 2.1, has the contract
    /// accept each proof, and must come to the hash that the Python kernel comes to.
    function test_everyProofUpTo130() public view {
        string memory vector = vm.readFile(_VECTOR);
        uint256 largest = vm.parseJsonUint(vector, ".input.largest_size");
        bytes32 folded = 0;
        for (uint256 size = 1; size <= largest; ++size) {
            folded = this.foldSize(folded, size); // a call of its own: its memory is given back
        }
        assert(folded == vm.parseJsonBytes32(vector, ".sha256"));
    }

    function foldSize(bytes32 folded, uint256 size) external view returns (bytes32) {
        bytes32[] memory known = new bytes32[]((size + 1) * (size + 1));
        bytes32 root = _root(known, size, 0, size);
        folded = _fold(folded, abi.encodePacked(root));
        uint64 n = uint64(size);
        for (uint64 index = 0; index < n; ++index) {
            bytes32[] memory path = _path(known, size, index, 0, size);
            bytes32 leaf = _root(known, size, index, index + 1);
            assert(_anchors.verifyInclusion(leaf, index, n, root, path));
            folded = _fold(folded, abi.encodePacked(path));
        }
        for (uint64 m = 1; m <= n; ++m) {
            bytes32[] memory proof = _subproof(known, size, m, 0, size, true);
            bytes32 old = _root(known, size, 0, m);
            assert(_anchors.verifyConsistency(m, n, old, root, proof));
            folded = _fold(folded, abi.encodePacked(proof));
        }
        return folded;
    }

    /// @dev Between any two sizes: subtrees that end before, at or after m are made up, and the
    /// two roots are hashed together from them by the recursion of section 2.1.2.
    function testFuzz_anySizes(uint256 seed, uint64 m, uint64 n, uint8 bits, uint256 bit) public {
        (m, n) = _sizes(m, n, bits);
        bytes32[] memory proof = Made.proof(seed, m, n);
        (bytes32 old, bytes32 root) = Made.roots(seed, m, n);
        assert(_anchors.verifyConsistency(m, n, old, root, proof));

        bytes32 logId = bytes32(seed);
        _anchors.anchor(logId, m, old, new bytes32[](0));
        bit = bit % (256 * proof.length);
        proof[bit / 256] ^= bytes32(1 << (bit % 256));
        assert(!_anchors.verifyConsistency(m, n, old, root, proof));
        try _anchors.anchor(logId, n, root, proof) {
            assert(false);
        } catch (bytes memory reason) {
            assert(bytes4(reason) == ITreeHeadAnchor.InconsistentTree.selector);
        }
        proof[bit / 256] ^= bytes32(1 << (bit % 256));
        _anchors.anchor(logId, n, root, proof);
        assert(_anchors.head(address(this), logId).root == root);
    }

    // --- trees that are built: section 2.1 over leaves of one byte, each range hashed once ---

    function _root(bytes32[] memory known, uint256 width, uint256 begin, uint256 end)
        private
        pure
        returns (bytes32 found)
    {
        uint256 place = begin * (width + 1) + end;
        found = known[place];
        if (found != 0) return found;
        if (end - begin == 1) {
            found = sha256(abi.encodePacked(uint8(0), uint8(begin)));
        } else {
            uint256 middle = begin + split(end - begin);
            found = parent(_root(known, width, begin, middle), _root(known, width, middle, end));
        }
        known[place] = found;
    }

    function _path(bytes32[] memory known, uint256 width, uint256 index, uint256 begin, uint256 end)
        private
        pure
        returns (bytes32[] memory)
    {
        if (end - begin == 1) return new bytes32[](0);
        uint256 middle = begin + split(end - begin);
        if (index < middle) {
            return
                append(_path(known, width, index, begin, middle), _root(known, width, middle, end));
        }
        return append(_path(known, width, index, middle, end), _root(known, width, begin, middle));
    }

    /// @dev `m` counts leaves from 0, here as in the others: m < end, unless whole.
    function _subproof(
        bytes32[] memory known,
        uint256 width,
        uint256 m,
        uint256 begin,
        uint256 end,
        bool whole
    ) private pure returns (bytes32[] memory) {
        if (m == end) {
            bytes32[] memory none = new bytes32[](0);
            return whole ? none : append(none, _root(known, width, begin, end));
        }
        uint256 middle = begin + split(end - begin);
        if (m <= middle) {
            return append(
                _subproof(known, width, m, begin, middle, whole), _root(known, width, middle, end)
            );
        }
        return
            append(
                _subproof(known, width, m, middle, end, false), _root(known, width, begin, middle)
            );
    }

    // --- both ------------------------------------------------------------------------------------

    /// @dev 1 <= m < n; three in four pairs stay below 2^40, as real logs do.
    function _sizes(uint64 m, uint64 n, uint8 bits) private pure returns (uint64, uint64) {
        uint64 largest = bits < 192 ? uint64(1) << (1 + bits % 40) : type(uint64).max;
        m = 1 + m % (largest - 1);
        return (m, m + 1 + n % (largest - m));
    }

    function _fold(bytes32 folded, bytes memory item) private pure returns (bytes32) {
        return sha256(abi.encodePacked(folded, uint32(item.length), item));
    }
}
