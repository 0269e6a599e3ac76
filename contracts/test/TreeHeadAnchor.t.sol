// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITreeHeadAnchor} from "../ITreeHeadAnchor.sol";
import {TreeHeadAnchor} from "../TreeHeadAnchor.sol";
import {Tree} from "./Tree.sol";
import {vm, Vm} from "./Vm.sol";

/// @dev A contract wallet that accepts one digest.
contract Wallet {
    bytes32 public accepted;

    function accept(bytes32 digest) external {
        accepted = digest;
    }

    function isValidSignature(bytes32 digest, bytes calldata) external view returns (bytes4) {
        return digest == accepted ? bytes4(0x1626ba7e) : bytes4(0xffffffff);
    }
}

/// @dev A contract that fails, with the word of consent as its error.
contract Refuser {
    function isValidSignature(bytes32, bytes calldata) external pure {
        bytes32 word = bytes32(bytes4(0x1626ba7e));
        assembly ("memory-safe") {
            mstore(0, word)
            revert(0, 32)
        }
    }
}

contract TreeHeadAnchorTest {
    TreeHeadAnchor private _anchors;

    bytes32 private constant _LOG = keccak256("log");
    uint256 private constant _LARGEST = 70; // sizes of trees built by the oracle

    uint256 private constant _ORDER =
        0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;

    function setUp() public {
        _anchors = new TreeHeadAnchor();
        vm.warp(1_800_000_000);
        vm.roll(1_000);
    }

    // --- growth ------------------------------------------------------------------------------

    function testFuzz_honestGrowthIsAccepted(uint256 seed, uint64 m, uint64 n, uint64 o) public {
        (m, n) = _sizes(m, n);
        o = n + 1 + o % 20;
        _anchor(seed, m);
        _expect(_submit(_LOG, n, Tree.root(seed, 0, n), Tree.consistency(seed, m, n)));
        _expect(_submit(_LOG, o, Tree.root(seed, 0, o), Tree.consistency(seed, n, o)));
        ITreeHeadAnchor.Head memory head = _anchors.head(address(this), _LOG);
        assert(head.root == Tree.root(seed, 0, o));
        assert(head.treeSize == o && head.sequence == 3);
        assert(head.timestamp == 1_800_000_000 && head.blockNumber == 1_000);
    }

    function testFuzz_smallerAndEqualSizesAreStale(uint256 seed, uint64 m, uint64 given) public {
        m = 1 + m % uint64(_LARGEST);
        given = given % (m + 1); // 0 and m too
        bytes32 other = keccak256(abi.encode(seed));
        _anchor(seed, m);
        _refuse(
            _submit(_LOG, given, other, new bytes32[](0)),
            abi.encodeWithSelector(ITreeHeadAnchor.StaleTreeSize.selector, m, given)
        );
    }

    function testFuzz_forkIsRefused(uint256 seed, uint64 m, uint64 n) public {
        (m, n) = _sizes(m, n);
        uint256 other = uint256(keccak256(abi.encode(seed)));
        _anchor(seed, m);
        bytes32 root = Tree.root(other, 0, n);
        _inconsistent(m, n, _submit(_LOG, n, root, Tree.consistency(other, m, n)));
        _inconsistent(m, n, _submit(_LOG, n, root, Tree.consistency(seed, m, n)));
    }

    function testFuzz_mutatedProofIsRefused(uint256 seed, uint64 m, uint64 n, uint256 bit) public {
        (m, n) = _sizes(m, n);
        bytes32[] memory proof = Tree.consistency(seed, m, n);
        bit = bit % (proof.length * 256);
        proof[bit / 256] ^= bytes32(uint256(1) << (bit % 256));
        _anchor(seed, m);
        _inconsistent(m, n, _submit(_LOG, n, Tree.root(seed, 0, n), proof));
    }

    function testFuzz_zeroedNodeIsRefused(uint256 seed, uint64 m, uint64 n, uint256 place) public {
        (m, n) = _sizes(m, n);
        bytes32[] memory proof = Tree.consistency(seed, m, n);
        proof[place % proof.length] = 0;
        _anchor(seed, m);
        _inconsistent(m, n, _submit(_LOG, n, Tree.root(seed, 0, n), proof));
    }

    function testFuzz_otherLengthIsRefused(uint256 seed, uint64 m, uint64 n, bytes32 more) public {
        (m, n) = _sizes(m, n);
        bytes32[] memory proof = Tree.consistency(seed, m, n);
        bytes32[] memory longer = new bytes32[](proof.length + 1);
        bytes32[] memory shorter = new bytes32[](proof.length - 1);
        for (uint256 i = 0; i < proof.length; ++i) {
            longer[i] = proof[i];
            if (i < shorter.length) shorter[i] = proof[i];
        }
        longer[proof.length] = more;
        bytes32 root = Tree.root(seed, 0, n);
        _anchor(seed, m);
        _inconsistent(m, n, _submit(_LOG, n, root, longer));
        _inconsistent(m, n, _submit(_LOG, n, root, shorter));
        _inconsistent(m, n, _submit(_LOG, n, root, new bytes32[](0)));
    }

    function testFuzz_otherSizeIsRefused(uint256 seed, uint64 m, uint64 n, uint64 claimed) public {
        (m, n) = _sizes(m, n);
        // the same nodes may fit a size of equal shape, so compare with the oracle's own root
        claimed = m + 1 + claimed % uint64(_LARGEST);
        if (claimed == n) return;
        bytes32[] memory proof = Tree.consistency(seed, m, n);
        bytes32 root = Tree.root(seed, 0, claimed);
        _anchor(seed, m);
        _inconsistent(m, claimed, _submit(_LOG, claimed, root, proof));
    }

    function testFuzz_firstAnchorTakesAnyRootAndNoProof(bytes32 root, uint64 n, bytes32 node)
        public
    {
        if (n == 0) n = 1;
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = node;
        _inconsistent(0, n, _submit(_LOG, n, root, proof));
        _expect(_submit(_LOG, n, root, new bytes32[](0)));
    }

    function test_largestSizes() public {
        // only the length matters here: 2^64 - 2 to 2^64 - 1 leaves, and the last size of all
        uint64 top = type(uint64).max;
        _expect(_submit(_LOG, top - 1, 0, new bytes32[](0)));
        _inconsistent(top - 1, top, _submit(_LOG, top, 0, new bytes32[](64)));
        _expect(_submit(keccak256("other"), top, 0, new bytes32[](0)));
    }

    // --- isolation and storage -----------------------------------------------------------------

    function testFuzz_publishersAndLogsAreApart(address publisher, bytes32 logId, uint64 n) public {
        if (n == 0) n = 1;
        if (publisher == address(this)) return;
        _anchor(1, 5);
        vm.prank(publisher);
        _anchors.anchor(_LOG, n, keccak256("x"), new bytes32[](0));
        assert(_anchors.head(address(this), _LOG).treeSize == 5);
        assert(_anchors.head(publisher, _LOG).treeSize == n);
        if (logId != _LOG) assert(_anchors.head(address(this), logId).treeSize == 0);
    }

    function testFuzz_storageLayout(address publisher, bytes32 logId, uint64 n, bytes32 root)
        public
    {
        if (n == 0) n = 1;
        vm.prank(publisher);
        _anchors.anchor(logId, n, root, new bytes32[](0));
        bytes32 inner = keccak256(abi.encode(publisher, uint256(0)));
        uint256 slot = uint256(keccak256(abi.encode(logId, inner)));
        uint256 word = uint256(n) | (1_800_000_000 << 64) | (1_000 << 128) | (1 << 192);
        assert(vm.load(address(_anchors), bytes32(slot)) == root);
        assert(vm.load(address(_anchors), bytes32(slot + 1)) == bytes32(word));
    }

    function testFuzz_laterAnchorsWriteNoNewSlot(uint256 seed, uint64 m, uint64 n) public {
        (m, n) = _sizes(m, n);
        _anchor(seed, m);
        bytes32[] memory proof = Tree.consistency(seed, m, n);
        bytes32 root = Tree.root(seed, 0, n);
        vm.record();
        _expect(_submit(_LOG, n, root, proof));
        (, bytes32[] memory writes) = vm.accesses(address(_anchors));
        uint256 slot =
            uint256(keccak256(abi.encode(_LOG, keccak256(abi.encode(address(this), uint256(0))))));
        assert(writes.length == 2);
        for (uint256 i = 0; i < writes.length; ++i) {
            assert(uint256(writes[i]) == slot || uint256(writes[i]) == slot + 1);
        }
    }

    function test_event() public {
        bytes32 root = Tree.root(1, 0, 5);
        vm.recordLogs();
        _expect(_submit(_LOG, 5, root, new bytes32[](0)));
        Vm.Log[] memory logs = vm.getRecordedLogs();
        assert(logs.length == 1 && logs[0].topics.length == 4);
        assert(
            logs[0].topics[0]
                == keccak256("TreeHeadAnchored(address,bytes32,uint64,uint64,bytes32)")
        );
        assert(logs[0].topics[1] == bytes32(uint256(uint160(address(this)))));
        assert(logs[0].topics[2] == _LOG);
        assert(logs[0].topics[3] == bytes32(uint256(1)));
        assert(keccak256(logs[0].data) == keccak256(abi.encode(uint64(5), root)));
    }

    // --- batches -------------------------------------------------------------------------------

    function testFuzz_batchIsAllOrNothing(uint256 seed, uint64 m, uint64 n, bool stale) public {
        (m, n) = _sizes(m, n);
        ITreeHeadAnchor.Update[] memory updates = new ITreeHeadAnchor.Update[](3);
        updates[0] = ITreeHeadAnchor.Update(_LOG, m, Tree.root(seed, 0, m), new bytes32[](0));
        updates[1] =
            ITreeHeadAnchor.Update(_LOG, n, Tree.root(seed, 0, n), Tree.consistency(seed, m, n));
        updates[2] = ITreeHeadAnchor.Update(
            stale ? _LOG : keccak256("other"), stale ? n : 1, bytes32(seed), new bytes32[](0)
        );
        try _anchors.anchorMany(updates) {
            assert(!stale);
            assert(_anchors.head(address(this), _LOG).treeSize == n);
            assert(_anchors.head(address(this), keccak256("other")).treeSize == 1);
        } catch (bytes memory reason) {
            assert(stale && bytes4(reason) == ITreeHeadAnchor.StaleTreeSize.selector);
            assert(_anchors.head(address(this), _LOG).treeSize == 0);
        }
    }

    // --- proofs as views -------------------------------------------------------------------------

    function testFuzz_inclusion(uint256 seed, uint64 index, uint64 n, uint256 bit) public view {
        n = 1 + n % uint64(_LARGEST);
        index = index % n;
        bytes32 leaf = Tree.root(seed, index, index + 1);
        bytes32 root = Tree.root(seed, 0, n);
        bytes32[] memory path = Tree.path(seed, index, n);
        assert(_anchors.verifyInclusion(leaf, index, n, root, path));
        assert(!_anchors.verifyInclusion(leaf, n, n, root, path));
        assert(!_anchors.verifyInclusion(leaf ^ bytes32(uint256(1)), index, n, root, path));
        assert(!_anchors.verifyInclusion(leaf, index, n, root, new bytes32[](path.length + 1)));
        if (path.length > 0) {
            bit = bit % (path.length * 256);
            path[bit / 256] ^= bytes32(uint256(1) << (bit % 256));
            assert(!_anchors.verifyInclusion(leaf, index, n, root, path));
            assert(!_anchors.verifyInclusion(leaf, index, n, root, new bytes32[](0)));
        }
    }

    function test_indexBeyondTheTreeIsNotIncluded() public view {
        // leaf 1 of two leaves has the path that index 1 of a single leaf would have
        bytes32 leaf = Tree.root(1, 1, 2);
        bytes32[] memory path = Tree.path(1, 1, 2);
        assert(_anchors.verifyInclusion(leaf, 1, 2, Tree.root(1, 0, 2), path));
        assert(!_anchors.verifyInclusion(leaf, 1, 1, Tree.root(1, 0, 2), path));
        assert(!_anchors.verifyInclusion(leaf, 0, 0, leaf, new bytes32[](0)));
    }

    function testFuzz_consistencyEdges(uint64 m, uint64 n, bytes32 a, bytes32 b) public view {
        bytes32[] memory none = new bytes32[](0);
        assert(!_anchors.verifyConsistency(0, n, a, b, none));
        assert(!_anchors.verifyConsistency(0, n, a, a, none));
        if (m != 0) {
            assert(_anchors.verifyConsistency(m, m, a, a, none));
            assert(!_anchors.verifyConsistency(m, m, a, a, new bytes32[](1)));
            assert(a == b || !_anchors.verifyConsistency(m, m, a, b, none));
        }
        if (m > n) assert(!_anchors.verifyConsistency(m, n, a, a, none));
    }

    // --- signed by the publisher -------------------------------------------------------------------

    function testFuzz_signedAnchor(uint256 key, uint64 n, bytes32 root, address relayer) public {
        key = 1 + key % (_ORDER - 1);
        if (n == 0) n = 1;
        address publisher = vm.addr(key);
        if (publisher.code.length != 0) return;
        uint256 deadline = block.timestamp;
        bytes memory signature = _sign(key, _digest(n, root, deadline));
        vm.prank(relayer);
        _anchors.anchorFor(publisher, _LOG, n, root, new bytes32[](0), deadline, signature);
        assert(_anchors.head(publisher, _LOG).treeSize == n);
        assert(relayer == publisher || _anchors.head(relayer, _LOG).treeSize == 0);
        // once more is stale: growth is the nonce
        _refuse(
            _submitFor(publisher, n, root, deadline, signature),
            abi.encodeWithSelector(ITreeHeadAnchor.StaleTreeSize.selector, n, n)
        );
    }

    function testFuzz_wrongSignatureIsRefused(uint256 key, uint256 bit, address other) public {
        key = 1 + key % (_ORDER - 1);
        address publisher = vm.addr(key);
        uint256 deadline = block.timestamp;
        bytes32 root = keccak256("root");
        bytes memory signature = _sign(key, _digest(7, root, deadline));
        bytes memory refusal = abi.encodeWithSelector(ITreeHeadAnchor.InvalidSignature.selector);
        if (other != publisher && other.code.length == 0) {
            _refuse(_submitFor(other, 7, root, deadline, signature), refusal);
        }
        _refuse(_submitFor(publisher, 8, root, deadline, signature), refusal);
        _refuse(_submitFor(publisher, 7, root, deadline + 1, signature), refusal);
        _refuse(
            _submitFor(publisher, 7, root, deadline, abi.encodePacked(signature, hex"00")), refusal
        );
        _refuse(_submitFor(publisher, 7, root, deadline, _twin(signature)), refusal);
        bit = bit % (65 * 8);
        signature[bit / 8] ^= bytes1(uint8(1 << (bit % 8)));
        _refuse(_submitFor(publisher, 7, root, deadline, signature), refusal);
    }

    function test_nobodysSignatureIsNotTheZeroAddress() public {
        bytes memory none = new bytes(65);
        _refuse(
            _submitFor(address(0), 7, keccak256("root"), block.timestamp, none),
            abi.encodeWithSelector(ITreeHeadAnchor.InvalidSignature.selector)
        );
    }

    function test_lateSignatureIsRefused() public {
        uint256 deadline = block.timestamp - 1;
        bytes memory signature = _sign(9, _digest(7, keccak256("root"), deadline));
        _refuse(
            _submitFor(vm.addr(9), 7, keccak256("root"), deadline, signature),
            abi.encodeWithSelector(ITreeHeadAnchor.SignatureExpired.selector, deadline)
        );
    }

    function test_signatureIsForOneChain() public {
        bytes memory signature = _sign(9, _digest(7, keccak256("root"), block.timestamp));
        vm.chainId(block.chainid + 1);
        _refuse(
            _submitFor(vm.addr(9), 7, keccak256("root"), block.timestamp, signature),
            abi.encodeWithSelector(ITreeHeadAnchor.InvalidSignature.selector)
        );
    }

    function test_contractWalletAnswersByItself() public {
        Wallet wallet = new Wallet();
        bytes32 root = keccak256("root");
        bytes memory signature = hex"1234";
        _refuse(
            _submitFor(address(wallet), 7, root, block.timestamp, signature),
            abi.encodeWithSelector(ITreeHeadAnchor.InvalidSignature.selector)
        );
        wallet.accept(_digest(7, root, block.timestamp));
        _expect(_submitFor(address(wallet), 7, root, block.timestamp, signature));
        assert(_anchors.head(address(wallet), _LOG).treeSize == 7);
        // code without an answer is not consent, nor is a failure that looks like one
        address refuser = address(new Refuser());
        _refuse(
            _submitFor(refuser, 7, root, block.timestamp, signature),
            abi.encodeWithSelector(ITreeHeadAnchor.InvalidSignature.selector)
        );
        _refuse(
            _submitFor(address(_anchors), 7, root, block.timestamp, signature),
            abi.encodeWithSelector(ITreeHeadAnchor.InvalidSignature.selector)
        );
    }

    // --- helpers -----------------------------------------------------------------------------------

    /// @dev 1 <= m < n <= _LARGEST
    function _sizes(uint64 m, uint64 n) private pure returns (uint64, uint64) {
        m = 1 + m % uint64(_LARGEST - 1);
        return (m, m + 1 + n % (uint64(_LARGEST) - m));
    }

    function _anchor(uint256 seed, uint64 n) private {
        _anchors.anchor(_LOG, n, Tree.root(seed, 0, n), new bytes32[](0));
    }

    /// @dev Calls are made low-level and their answers looked at; a cheat code that waits for the
    /// next call to fail would catch the SHA-256 of an argument.
    function _submit(bytes32 logId, uint64 n, bytes32 root, bytes32[] memory proof)
        private
        returns (bytes memory)
    {
        return _call(abi.encodeCall(ITreeHeadAnchor.anchor, (logId, n, root, proof)));
    }

    function _submitFor(
        address publisher,
        uint64 n,
        bytes32 root,
        uint256 deadline,
        bytes memory signature
    ) private returns (bytes memory) {
        return _call(
            abi.encodeCall(
                ITreeHeadAnchor.anchorFor,
                (publisher, _LOG, n, root, new bytes32[](0), deadline, signature)
            )
        );
    }

    /// @dev Empty if the call succeeded, the error otherwise.
    function _call(bytes memory data) private returns (bytes memory) {
        (bool success, bytes memory answer) = address(_anchors).call(data);
        assert(!success || answer.length == 0);
        return answer;
    }

    function _expect(bytes memory answer) private pure {
        assert(answer.length == 0);
    }

    function _refuse(bytes memory answer, bytes memory refusal) private pure {
        assert(keccak256(answer) == keccak256(refusal));
    }

    function _inconsistent(uint64 m, uint64 n, bytes memory answer) private pure {
        _refuse(answer, abi.encodeWithSelector(ITreeHeadAnchor.InconsistentTree.selector, m, n));
    }

    /// @dev EIP-712, written out apart from the contract's own code.
    function _digest(uint64 n, bytes32 root, uint256 deadline) private view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256(
                    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
                ),
                keccak256("TreeHeadAnchor"),
                keccak256("1"),
                block.chainid,
                address(_anchors)
            )
        );
        assert(domain == _anchors.domainSeparator());
        bytes32 typeHash =
            keccak256("TreeHead(bytes32 logId,uint64 treeSize,bytes32 root,uint256 deadline)");
        bytes32 message = keccak256(abi.encode(typeHash, _LOG, n, root, deadline));
        return keccak256(abi.encodePacked(hex"1901", domain, message));
    }

    function _sign(uint256 key, bytes32 digest) private pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// @dev The other valid signature of the same digest, with s above half the order.
    function _twin(bytes memory signature) private pure returns (bytes memory) {
        bytes32 r;
        uint256 s;
        assembly ("memory-safe") {
            r := mload(add(signature, 32))
            s := mload(add(signature, 64))
        }
        uint8 v = uint8(signature[64]) == 27 ? 28 : 27;
        return abi.encodePacked(r, _ORDER - s, v);
    }
}
