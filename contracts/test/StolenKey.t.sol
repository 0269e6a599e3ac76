// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITreeHeadAnchor} from "../ITreeHeadAnchor.sol";
import {TreeHeadAnchor} from "../TreeHeadAnchor.sol";
import {Tree} from "./Tree.sol";
import {vm} from "./Vm.sol";

/// @dev Somebody has the publisher's key. Each sentence of the README's section about it is a
/// test here; what the thief does and what the publisher does come from the same account.
contract StolenKeyTest {
    TreeHeadAnchor private _anchors;

    uint256 private constant _KEY = 0x5707e4;
    uint256 private constant _OTHER_KEY = 0x5afe;
    bytes32 private constant _LOG = keccak256("log");
    uint64 private constant _LARGEST = 60;
    uint64 private constant _TOP = type(uint64).max;

    function setUp() public {
        _anchors = new TreeHeadAnchor();
    }

    // --- cannot --------------------------------------------------------------------------------

    function testFuzz_cannotRemove(uint256 seed, uint64 m, uint64 fewer, bytes32 root) public {
        m = _anchored(seed, m);
        fewer = fewer % (m + 1); // as many, with another root, too
        _refused(
            _steal(fewer, root, new bytes32[](0)),
            abi.encodeWithSelector(ITreeHeadAnchor.StaleTreeSize.selector, m, fewer)
        );
        _still(seed, m);
    }

    /// @dev One leaf is another, and all proofs are made for that tree.
    function testFuzz_cannotChange(uint256 seed, uint64 m, uint64 more, uint64 place) public {
        m = _anchored(seed, m);
        uint64 n = m + 1 + more % 30;
        bytes32[] memory leaves = Tree.leaves(seed, n);
        leaves[place % m] = ~leaves[place % m];
        _cannotPutInPlace(seed, m, leaves);
    }

    function testFuzz_cannotReorder(uint256 seed, uint64 m, uint64 more, uint64 a, uint64 b)
        public
    {
        m = _anchored(seed, m);
        uint64 n = m + 1 + more % 30;
        (a, b) = (a % m, b % n); // the second may come from after the anchor
        if (a == b) return;
        bytes32[] memory leaves = Tree.leaves(seed, n);
        (leaves[a], leaves[b]) = (leaves[b], leaves[a]);
        _cannotPutInPlace(seed, m, leaves);
    }

    function testFuzz_cannotTouchAnothersLog(uint256 seed, uint64 n) public {
        n = 1 + n % _LARGEST;
        bytes32 root = Tree.root(seed, 0, n);
        bytes memory signature = new bytes(65);
        vm.prank(vm.addr(_KEY));
        try _anchors.anchorFor(
            vm.addr(_OTHER_KEY), _LOG, n, root, new bytes32[](0), _TOP, signature
        ) {
            assert(false);
        } catch (bytes memory reason) {
            assert(bytes4(reason) == ITreeHeadAnchor.InvalidSignature.selector);
        }
        assert(_anchors.head(vm.addr(_OTHER_KEY), _LOG).treeSize == 0);
    }

    // --- can -----------------------------------------------------------------------------------

    /// @dev Any size, with leaves that nobody has: the contract checks growth, not authorship.
    function testFuzz_canAppendInventedLeaves(uint256 seed, uint64 m, uint64 n) public {
        m = _anchored(seed, m);
        n = m + 1 + n % (_TOP - m);
        (bytes32 root, bytes32[] memory proof) = Tree.grownInto(seed, m, n);
        _accepted(_steal(n, root, proof));
        assert(_anchors.head(vm.addr(_KEY), _LOG).treeSize == n);
        // and even then what was anchored before stays proved
        assert(_anchors.verifyConsistency(m, n, Tree.root(seed, 0, m), root, proof));
    }

    function testFuzz_canBlockTheLogForEver(uint256 seed, uint64 m, uint64 n) public {
        m = _anchored(seed, m);
        n = m + 1 + n % _LARGEST;
        (bytes32 root, bytes32[] memory proof) = Tree.grownInto(seed, m, _TOP);
        _accepted(_steal(_TOP, root, proof));
        // the publisher's next tree head, which would have been accepted
        _refused(
            _steal(n, Tree.root(seed, 0, n), Tree.consistency(seed, m, n)),
            abi.encodeWithSelector(ITreeHeadAnchor.StaleTreeSize.selector, _TOP, n)
        );
        _refused(
            _steal(_TOP, root, new bytes32[](0)),
            abi.encodeWithSelector(ITreeHeadAnchor.StaleTreeSize.selector, _TOP, _TOP)
        );
    }

    // --- the way out ---------------------------------------------------------------------------

    /// @dev A new address anchors the same log from where it is, and has nothing to ask anybody.
    function testFuzz_aNewPublisherGoesOn(uint256 seed, uint64 m, uint64 n) public {
        testFuzz_canBlockTheLogForEver(seed, m, n);
        m = 1 + m % _LARGEST;
        n = m + 1 + n % _LARGEST;
        address fresh = vm.addr(_OTHER_KEY);
        (bytes32 old, bytes32 root) = (Tree.root(seed, 0, m), Tree.root(seed, 0, n));
        bytes32[] memory proof = Tree.consistency(seed, m, n);
        vm.prank(fresh);
        _anchors.anchor(_LOG, m, old, new bytes32[](0));
        vm.prank(fresh);
        _anchors.anchor(_LOG, n, root, proof);
        assert(_anchors.head(fresh, _LOG).treeSize == n);
        assert(_anchors.head(vm.addr(_KEY), _LOG).treeSize == _TOP);
    }

    /// @dev Why a reader must pin the publisher: under a new one, another past is a first anchor.
    function testFuzz_aNewPublisherCanTellAnotherPast(uint256 seed, uint64 m, bytes32 root) public {
        m = _anchored(seed, m);
        vm.prank(vm.addr(_OTHER_KEY));
        _anchors.anchor(_LOG, m, root, new bytes32[](0));
        _still(seed, m);
    }

    // --- helpers -------------------------------------------------------------------------------

    function _anchored(uint256 seed, uint64 m) private returns (uint64) {
        m = 1 + m % _LARGEST;
        _accepted(_steal(m, Tree.root(seed, 0, m), new bytes32[](0)));
        return m;
    }

    /// @dev With every proof the changed tree and the true one have to offer.
    function _cannotPutInPlace(uint256 seed, uint64 m, bytes32[] memory leaves) private {
        uint64 n = uint64(leaves.length);
        bytes32 root = Tree.rootOf(leaves);
        bytes memory refusal =
            abi.encodeWithSelector(ITreeHeadAnchor.InconsistentTree.selector, m, n);
        _refused(_steal(n, root, Tree.consistencyOf(leaves, m)), refusal);
        _refused(_steal(n, root, Tree.consistency(seed, m, n)), refusal);
        _refused(_steal(n, root, new bytes32[](0)), refusal);
        _still(seed, m);
    }

    function _still(uint256 seed, uint64 m) private view {
        ITreeHeadAnchor.Head memory head = _anchors.head(vm.addr(_KEY), _LOG);
        assert(head.treeSize == m && head.root == Tree.root(seed, 0, m) && head.sequence == 1);
    }

    function _steal(uint64 n, bytes32 root, bytes32[] memory proof)
        private
        returns (bytes memory answer)
    {
        bytes memory data = abi.encodeCall(ITreeHeadAnchor.anchor, (_LOG, n, root, proof));
        vm.prank(vm.addr(_KEY));
        (, answer) = address(_anchors).call(data);
    }

    function _accepted(bytes memory answer) private pure {
        assert(answer.length == 0);
    }

    function _refused(bytes memory answer, bytes memory refusal) private pure {
        assert(keccak256(answer) == keccak256(refusal));
    }
}
