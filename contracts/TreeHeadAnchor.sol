// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITreeHeadAnchor} from "./ITreeHeadAnchor.sol";
import {TreeProof} from "./TreeProof.sol";

/// @title Append-only anchors for RFC 6962 logs
/// @notice See `ITreeHeadAnchor` for what each function promises.
/// @dev No owner, proxy, reset, immutable or dependency: the runtime code is the same on every
/// chain, and readers check its hash. An anchor after the first writes no new storage slot, so the
/// cost stays flat; old tree heads are proved by consistency with the present one, or by event.
contract TreeHeadAnchor is ITreeHeadAnchor {
    /// @dev Slot 0. The layout is a public interface: proofs of storage are checked against it.
    /// s = keccak256(logId || keccak256(pad32(publisher) || 0)) holds the root; s + 1 holds, from
    /// the low end, 64 bits each of treeSize, timestamp, blockNumber and sequence.
    /// Written by sstore in `_anchor`, which slither does not follow; tests read each word back.
    // slither-disable-next-line uninitialized-state
    mapping(address publisher => mapping(bytes32 logId => Head)) private _heads;

    bytes32 private constant _DOMAIN_TYPE = keccak256(
        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    );
    bytes32 private constant _TREE_HEAD_TYPE =
        keccak256("TreeHead(bytes32 logId,uint64 treeSize,bytes32 root,uint256 deadline)");

    /// @dev Half the order of secp256k1. Each signature has a twin with s above it (EIP-2).
    uint256 private constant _HALF_ORDER =
        0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;

    /// @dev Answer, and selector, of `isValidSignature(bytes32,bytes)` (ERC-1271).
    bytes4 private constant _ERC1271_VALID = 0x1626ba7e;

    /// @dev `TreeProof` relies on SHA-256 at address 2. On a chain without it nothing is deployed.
    constructor() {
        assert(sha256("") == 0xe3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855);
    }

    /// @inheritdoc ITreeHeadAnchor
    function anchor(bytes32 logId, uint64 treeSize, bytes32 root, bytes32[] calldata proof)
        external
    {
        _anchor(msg.sender, logId, treeSize, root, proof);
    }

    /// @inheritdoc ITreeHeadAnchor
    function anchorMany(Update[] calldata updates) external {
        for (uint256 i = 0; i < updates.length; ++i) {
            Update calldata update = updates[i];
            _anchor(msg.sender, update.logId, update.treeSize, update.root, update.proof);
        }
    }

    /// @inheritdoc ITreeHeadAnchor
    function anchorFor(
        address publisher,
        bytes32 logId,
        uint64 treeSize,
        bytes32 root,
        bytes32[] calldata proof,
        uint256 deadline,
        bytes calldata signature
    ) external {
        // A proposer can stretch time by seconds; the signer signed this tree head all the same.
        // slither-disable-next-line timestamp
        if (block.timestamp > deadline) revert SignatureExpired(deadline);
        bytes32 structHash = keccak256(abi.encode(_TREE_HEAD_TYPE, logId, treeSize, root, deadline));
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", domainSeparator(), structHash));
        if (!_signed(publisher, digest, signature)) revert InvalidSignature();
        _anchor(publisher, logId, treeSize, root, proof);
    }

    /// @inheritdoc ITreeHeadAnchor
    function head(address publisher, bytes32 logId) external view returns (Head memory) {
        return _heads[publisher][logId];
    }

    /// @inheritdoc ITreeHeadAnchor
    function verifyConsistency(
        uint64 m,
        uint64 n,
        bytes32 rootM,
        bytes32 rootN,
        bytes32[] calldata proof
    ) external view returns (bool) {
        return TreeProof.isConsistent(m, n, rootM, rootN, proof);
    }

    /// @inheritdoc ITreeHeadAnchor
    function verifyInclusion(
        bytes32 leafHash,
        uint64 index,
        uint64 n,
        bytes32 root,
        bytes32[] calldata proof
    ) external view returns (bool) {
        return TreeProof.isIncluded(leafHash, index, n, root, proof);
    }

    /// @inheritdoc ITreeHeadAnchor
    /// @dev Computed on each call, since an immutable would change the code hash per chain and a
    /// chain that splits must not share signatures.
    function domainSeparator() public view returns (bytes32) {
        return keccak256(
            abi.encode(
                _DOMAIN_TYPE, keccak256("TreeHeadAnchor"), keccak256("1"), block.chainid, this
            )
        );
    }

    /// @dev The only place that writes. The second word is read and written as one.
    function _anchor(
        address publisher,
        bytes32 logId,
        uint64 treeSize,
        bytes32 root,
        bytes32[] calldata proof
    ) private {
        Head storage stored = _heads[publisher][logId];
        uint256 word;
        assembly ("memory-safe") {
            word := sload(add(stored.slot, 1))
        }
        uint64 anchored = uint64(word & type(uint64).max);
        if (treeSize <= anchored) revert StaleTreeSize(anchored, treeSize);
        if (anchored == 0) {
            if (proof.length != 0) revert InconsistentTree(0, treeSize);
        } else if (!TreeProof.isConsistent(anchored, treeSize, stored.root, root, proof)) {
            revert InconsistentTree(anchored, treeSize);
        }
        uint64 sequence;
        assembly ("memory-safe") {
            sequence := add(shr(192, word), 1)
            word := or(
                treeSize,
                or(shl(64, timestamp()), or(shl(128, number()), shl(192, sequence)))
            )
            sstore(stored.slot, root)
            sstore(add(stored.slot, 1), word)
        }
        emit TreeHeadAnchored(publisher, logId, sequence, treeSize, root);
    }

    /// @dev ERC-1271 for a publisher with code, secp256k1 for one without. The call to a foreign
    /// contract is static and comes before anything is read, so it cannot interfere.
    function _signed(address publisher, bytes32 digest, bytes calldata signature)
        private
        view
        returns (bool)
    {
        if (publisher.code.length != 0) {
            (bool success, bytes memory answer) =
                publisher.staticcall(abi.encodeWithSelector(_ERC1271_VALID, digest, signature));
            return success && answer.length >= 32 && bytes32(answer) == bytes32(_ERC1271_VALID);
        }
        if (signature.length != 65) return false;
        bytes32 s = bytes32(signature[32:64]);
        if (uint256(s) > _HALF_ORDER) return false;
        address signer = ecrecover(digest, uint8(signature[64]), bytes32(signature[:32]), s);
        return signer != address(0) && signer == publisher;
    }
}
