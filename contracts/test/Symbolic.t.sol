// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITreeHeadAnchor} from "../ITreeHeadAnchor.sol";
import {TreeHeadAnchor} from "../TreeHeadAnchor.sol";
import {vm} from "./Vm.sol";

/// @dev What these checks use of halmos, and where it keeps it.
interface Svm {
    function enableSymbolicStorage(address target) external;
    function createCalldata(string calldata contractName) external returns (bytes memory);
}

Svm constant svm = Svm(0xF3993A62377BCd56AE39D773740A5390411E8BC9);

/// @dev Run by halmos, not by Forge: `check_` functions hold for every argument and from every
/// state the contract could be in, as far as loops are unrolled (`make contracts-audit`).
contract SymbolicTest {
    TreeHeadAnchor private constant _ANCHORS = TreeHeadAnchor(address(0x7ea));

    /// @dev Without the constructor, since halmos does not know the hash of nothing.
    function setUp() public {
        vm.etch(address(_ANCHORS), type(TreeHeadAnchor).runtimeCode);
        svm.enableSymbolicStorage(address(_ANCHORS));
    }

    /// @dev One call of any function, by anyone, with anything: no size shrinks, no root changes
    /// without growth, and each growth is counted once.
    function check_sizesOnlyGrow(address caller, address publisher, bytes32 logId) public {
        ITreeHeadAnchor.Head memory before = _ANCHORS.head(publisher, logId);
        vm.assume(before.sequence < type(uint64).max);
        bytes memory data = svm.createCalldata("TreeHeadAnchor");
        vm.prank(caller);
        (bool success,) = address(_ANCHORS).call(data);
        ITreeHeadAnchor.Head memory later = _ANCHORS.head(publisher, logId);
        assert(later.treeSize >= before.treeSize);
        if (!success || later.treeSize == before.treeSize) {
            assert(later.root == before.root && later.sequence == before.sequence);
            assert(later.timestamp == before.timestamp && later.blockNumber == before.blockNumber);
        } else {
            assert(later.sequence > before.sequence);
        }
    }

    /// @dev Whatever a sender anchors without a signature, logs of others stay as they are.
    function check_othersAreNotTouched(address caller, address publisher, bytes32 logId) public {
        vm.assume(caller != publisher);
        ITreeHeadAnchor.Head memory before = _ANCHORS.head(publisher, logId);
        bytes memory data = svm.createCalldata("TreeHeadAnchor");
        vm.assume(bytes4(data) != ITreeHeadAnchor.anchorFor.selector);
        vm.prank(caller);
        (bool success,) = address(_ANCHORS).call(data);
        success; // refused or not
        _same(before, _ANCHORS.head(publisher, logId));
    }

    /// @dev Anchoring one log leaves the publisher's other logs as they are.
    function check_logsAreApart(
        bytes32 logId,
        bytes32 other,
        uint64 treeSize,
        bytes32 root,
        bytes32[] calldata proof
    ) public {
        vm.assume(logId != other);
        ITreeHeadAnchor.Head memory before = _ANCHORS.head(address(this), other);
        try _ANCHORS.anchor(logId, treeSize, root, proof) {} catch {}
        _same(before, _ANCHORS.head(address(this), other));
    }

    /// @dev What was accepted is what is kept.
    function check_acceptedIsKept(
        bytes32 logId,
        uint64 treeSize,
        bytes32 root,
        bytes32[] calldata proof
    ) public {
        uint64 anchored = _ANCHORS.head(address(this), logId).treeSize;
        try _ANCHORS.anchor(logId, treeSize, root, proof) {
            ITreeHeadAnchor.Head memory head = _ANCHORS.head(address(this), logId);
            assert(treeSize > anchored);
            assert(head.treeSize == treeSize && head.root == root);
            assert(head.timestamp == uint64(block.timestamp));
            assert(head.blockNumber == uint64(block.number));
            assert(anchored != 0 || proof.length == 0);
        } catch {}
    }

    function _same(ITreeHeadAnchor.Head memory a, ITreeHeadAnchor.Head memory b) private pure {
        assert(a.root == b.root && a.treeSize == b.treeSize && a.sequence == b.sequence);
        assert(a.timestamp == b.timestamp && a.blockNumber == b.blockNumber);
    }
}
