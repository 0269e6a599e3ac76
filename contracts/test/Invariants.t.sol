// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITreeHeadAnchor} from "../ITreeHeadAnchor.sol";
import {TreeHeadAnchor} from "../TreeHeadAnchor.sol";
import {Tree} from "./Tree.sol";
import {vm} from "./Vm.sol";

/// @dev What Forge calls at random: publishers who grow their logs by every way there is, and
/// people who try to do more. It keeps its own record of what must have been accepted, and after
/// each call looks at all heads and at each storage slot that was written.
contract Crowd {
    TreeHeadAnchor public immutable anchors = new TreeHeadAnchor();

    uint256 public constant PUBLISHERS = 3;
    uint256 public constant LOGS = 3;
    uint64 private constant _LARGEST = 64;

    /// @dev Sizes accepted so far, oldest first; the roots follow from them.
    mapping(uint256 who => mapping(uint256 which => uint64[])) private _accepted;

    uint256 public refusals;

    function publisher(uint256 who) public pure returns (address) {
        return vm.addr(1 + who % PUBLISHERS);
    }

    /// @dev All publishers use the same log ids, so that only their addresses keep them apart.
    function logId(uint256 which) public pure returns (bytes32) {
        return bytes32(which % LOGS);
    }

    function accepted(uint256 who, uint256 which) public view returns (uint64[] memory) {
        return _accepted[who % PUBLISHERS][which % LOGS];
    }

    function rootOf(uint256 who, uint256 which, uint64 size) public pure returns (bytes32) {
        return Tree.root(_seed(who, which), 0, size);
    }

    function proofOf(uint256 who, uint256 which, uint64 m, uint64 n)
        public
        pure
        returns (bytes32[] memory)
    {
        return m == 0 ? new bytes32[](0) : Tree.consistency(_seed(who, which), m, n);
    }

    // --- what publishers do ------------------------------------------------------------------

    function grow(uint256 who, uint256 which, uint64 by) external {
        ITreeHeadAnchor.Update memory next = _next(who, which, by);
        if (next.treeSize == 0) return;
        vm.record();
        vm.prank(publisher(who));
        anchors.anchor(next.logId, next.treeSize, next.root, next.proof);
        _accept(who, which, next.treeSize);
        _end(who, 2);
    }

    function growAll(uint256 who, uint64 by) external {
        ITreeHeadAnchor.Update[] memory updates = new ITreeHeadAnchor.Update[](LOGS);
        for (uint256 which = 0; which < LOGS; ++which) {
            updates[which] = _next(who, which, by);
            if (updates[which].treeSize == 0) return;
        }
        vm.record();
        vm.prank(publisher(who));
        anchors.anchorMany(updates);
        for (uint256 which = 0; which < LOGS; ++which) {
            _accept(who, which, updates[which].treeSize);
        }
        _end(who, 2 * LOGS);
    }

    function growSigned(uint256 who, uint256 which, uint64 by, address payer) external {
        ITreeHeadAnchor.Update memory next = _next(who, which, by);
        if (next.treeSize == 0) return;
        bytes memory signature = _sign(who, next);
        vm.record();
        vm.prank(payer);
        anchors.anchorFor(
            publisher(who),
            next.logId,
            next.treeSize,
            next.root,
            next.proof,
            type(uint256).max,
            signature
        );
        _accept(who, which, next.treeSize);
        _end(who, 2);
    }

    // --- what must not work ------------------------------------------------------------------

    /// @dev The publisher, or a thief of the key, offers another history of the same log.
    function fork(uint256 who, uint256 which, uint64 by, uint256 seed) external {
        ITreeHeadAnchor.Update memory next = _next(who, which, by);
        uint64 size = _size(who, which);
        if (next.treeSize == 0 || size == 0 || seed == _seed(who, which)) return;
        next.root = Tree.root(seed, 0, next.treeSize);
        if (seed % 2 == 0) next.proof = Tree.consistency(seed, size, next.treeSize);
        _refused(publisher(who), next);
    }

    function shrink(uint256 who, uint256 which, uint64 given, bytes32 root) external {
        uint64 size = _size(who, which);
        if (size == 0) return;
        given = given % (size + 1); // the same size too
        _refused(
            publisher(who), ITreeHeadAnchor.Update(logId(which), given, root, new bytes32[](0))
        );
    }

    /// @dev A good head in the same batch must go down with a bad one.
    function growAndShrink(uint256 who, uint256 which, uint64 by) external {
        ITreeHeadAnchor.Update[] memory updates = new ITreeHeadAnchor.Update[](2);
        updates[0] = _next(who, which, by);
        if (updates[0].treeSize == 0) return;
        updates[1] = updates[0];
        vm.prank(publisher(who));
        try anchors.anchorMany(updates) {
            assert(false);
        } catch {
            ++refusals;
        }
        _unchanged(); // what the first one wrote was undone
    }

    /// @dev A stranger signs for a publisher.
    function signAsAnother(uint256 who, uint256 which, uint64 by, uint256 other) external {
        ITreeHeadAnchor.Update memory next = _next(who, which, by);
        if (next.treeSize == 0 || publisher(other) == publisher(who)) return;
        bytes memory signature = _sign(other, next);
        address victim = publisher(who);
        vm.record();
        try anchors.anchorFor(
            victim, next.logId, next.treeSize, next.root, next.proof, type(uint256).max, signature
        ) {
            assert(false);
        } catch {
            ++refusals;
        }
        _end(who, 0);
    }

    /// @dev A stranger uses a publisher's log id: it becomes a log of the stranger's own.
    function intrude(uint160 stranger, uint256 which, uint64 size, bytes32 root) external {
        address sender = address(stranger);
        for (uint256 who = 0; who < PUBLISHERS; ++who) {
            if (sender == publisher(who)) return;
        }
        if (size <= anchors.head(sender, logId(which)).treeSize) return;
        vm.prank(sender);
        try anchors.anchor(logId(which), size, root, new bytes32[](0)) {} catch {}
        _unchanged();
    }

    function elapse(uint32 moment) external {
        vm.warp(block.timestamp + moment % 1000);
        vm.roll(block.number + moment % 100);
    }

    // --- what is watched ---------------------------------------------------------------------

    function _refused(address sender, ITreeHeadAnchor.Update memory next) private {
        vm.record();
        vm.prank(sender);
        try anchors.anchor(next.logId, next.treeSize, next.root, next.proof) {
            assert(false);
        } catch {
            ++refusals;
        }
        _unchanged();
        (, bytes32[] memory writes) = vm.accesses(address(anchors));
        assert(writes.length == 0);
    }

    /// @dev All heads are those of the record, and only `count` of the publisher's words were
    /// written: the two of each log that grew.
    function _end(uint256 who, uint256 count) private {
        (, bytes32[] memory writes) = vm.accesses(address(anchors));
        assert(writes.length == count);
        for (uint256 i = 0; i < writes.length; ++i) {
            assert(_isWordOf(uint256(writes[i]), publisher(who)));
        }
        _unchanged();
    }

    function _isWordOf(uint256 slot, address owner) private pure returns (bool) {
        bytes32 inner = keccak256(abi.encode(owner, uint256(0)));
        for (uint256 which = 0; which < LOGS; ++which) {
            uint256 first = uint256(keccak256(abi.encode(logId(which), inner)));
            if (slot == first || slot == first + 1) return true;
        }
        return false;
    }

    function _unchanged() private view {
        for (uint256 who = 0; who < PUBLISHERS; ++who) {
            for (uint256 which = 0; which < LOGS; ++which) {
                ITreeHeadAnchor.Head memory head = anchors.head(publisher(who), logId(which));
                assert(head.treeSize == _size(who, which));
                assert(head.sequence == _accepted[who][which].length);
            }
        }
    }

    function _accept(uint256 who, uint256 which, uint64 size) private {
        assert(size > _size(who, which));
        _accepted[who % PUBLISHERS][which % LOGS].push(size);
    }

    function _size(uint256 who, uint256 which) private view returns (uint64) {
        uint64[] storage sizes = _accepted[who % PUBLISHERS][which % LOGS];
        return sizes.length == 0 ? 0 : sizes[sizes.length - 1];
    }

    /// @dev Size 0 if the log is as large as the oracle can be asked for.
    function _next(uint256 who, uint256 which, uint64 by)
        private
        view
        returns (ITreeHeadAnchor.Update memory next)
    {
        uint64 m = _size(who, which);
        uint64 n = m + 1 + by % 12;
        if (n > _LARGEST) return next;
        next = ITreeHeadAnchor.Update(
            logId(which), n, rootOf(who, which, n), proofOf(who, which, m, n)
        );
    }

    function _seed(uint256 who, uint256 which) private pure returns (uint256) {
        return uint256(keccak256(abi.encode(who % PUBLISHERS, which % LOGS)));
    }

    function _sign(uint256 who, ITreeHeadAnchor.Update memory next)
        private
        view
        returns (bytes memory)
    {
        bytes32 message = keccak256(
            abi.encode(
                keccak256("TreeHead(bytes32 logId,uint64 treeSize,bytes32 root,uint256 deadline)"),
                next.logId,
                next.treeSize,
                next.root,
                type(uint256).max
            )
        );
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", anchors.domainSeparator(), message));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(1 + who % PUBLISHERS, digest);
        return abi.encodePacked(r, s, v);
    }
}

/// @dev Whatever the crowd does and in whatever order, these hold after each call.
contract InvariantTest {
    Crowd private _crowd;

    function setUp() public {
        vm.warp(1_800_000_000);
        vm.roll(1_000);
        _crowd = new Crowd();
    }

    /// @dev Where Forge looks for whom to call.
    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_crowd);
    }

    /// @dev The head is the last one accepted, of the publisher's own history, counted right.
    function invariant_headsAreTheLastAccepted() public view {
        for (uint256 who = 0; who < _crowd.PUBLISHERS(); ++who) {
            for (uint256 which = 0; which < _crowd.LOGS(); ++which) {
                uint64[] memory sizes = _crowd.accepted(who, which);
                ITreeHeadAnchor.Head memory head = _head(who, which);
                assert(head.sequence == sizes.length);
                if (sizes.length == 0) {
                    assert(head.treeSize == 0 && head.root == 0 && head.timestamp == 0);
                    continue;
                }
                assert(head.treeSize == sizes[sizes.length - 1]);
                assert(head.root == _crowd.rootOf(who, which, head.treeSize));
                assert(head.timestamp >= 1_800_000_000 && head.timestamp <= block.timestamp);
                assert(head.blockNumber >= 1_000 && head.blockNumber <= block.number);
            }
        }
    }

    /// @dev One history: each head ever accepted is proved by the present one, and sizes grew.
    function afterInvariant() public view {
        for (uint256 who = 0; who < _crowd.PUBLISHERS(); ++who) {
            for (uint256 which = 0; which < _crowd.LOGS(); ++which) {
                uint64[] memory sizes = _crowd.accepted(who, which);
                ITreeHeadAnchor.Head memory head = _head(who, which);
                for (uint256 i = 0; i < sizes.length; ++i) {
                    assert(i == 0 || sizes[i] > sizes[i - 1]);
                    assert(_isProved(who, which, sizes[i], head));
                }
            }
        }
    }

    function _isProved(uint256 who, uint256 which, uint64 m, ITreeHeadAnchor.Head memory head)
        private
        view
        returns (bool)
    {
        return _crowd.anchors()
            .verifyConsistency(
                m,
                head.treeSize,
                _crowd.rootOf(who, which, m),
                head.root,
                _crowd.proofOf(who, which, m, head.treeSize)
            );
    }

    function _head(uint256 who, uint256 which) private view returns (ITreeHeadAnchor.Head memory) {
        return _crowd.anchors().head(_crowd.publisher(who), _crowd.logId(which));
    }
}
