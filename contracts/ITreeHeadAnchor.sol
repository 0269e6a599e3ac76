// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Tree heads of append-only logs, each accepted only as an extension of the last
/// @notice A publisher anchors the (size, root) of an RFC 6962 Merkle tree. The contract accepts
/// a new tree head only with a consistency proof (RFC 9162 section 2.1.4) from the one it holds,
/// so an anchored history can grow and can never be rewritten. There is no owner and no reset.
/// @dev The contract checks growth, not authorship: it cannot know whether the leaves are true,
/// and whoever holds the publisher's key can append invented ones. Readers take chain id,
/// contract, publisher and log id from their own trust policy, never from the party under check.
interface ITreeHeadAnchor {
    /// @notice The newest anchored tree head of one log; all zeros means never anchored.
    /// @param root RFC 6962 root hash over the first `treeSize` leaves.
    /// @param treeSize Count of leaves; at least 1 once anchored.
    /// @param timestamp Time of the anchoring block, Unix seconds: the head is not younger.
    /// @param blockNumber Number of the anchoring block.
    /// @param sequence Count of anchors of this log so far: 1 for the first.
    struct Head {
        bytes32 root;
        uint64 treeSize;
        uint64 timestamp;
        uint64 blockNumber;
        uint64 sequence;
    }

    /// @notice One tree head to anchor; the fields are the arguments of `anchor`.
    struct Update {
        bytes32 logId;
        uint64 treeSize;
        bytes32 root;
        bytes32[] proof;
    }

    /// @notice A tree head was anchored.
    /// @param publisher The account whose log it is.
    /// @param logId The log.
    /// @param sequence Count of anchors of this log so far: 1 for the first.
    /// @param treeSize Count of leaves.
    /// @param root RFC 6962 root hash over these leaves.
    event TreeHeadAnchored(
        address indexed publisher,
        bytes32 indexed logId,
        uint64 indexed sequence,
        uint64 treeSize,
        bytes32 root
    );

    /// @notice The tree is not larger than the anchored one; size 0 is never larger.
    /// @param anchored Size of the anchored tree, 0 if there is none.
    /// @param given Size offered.
    error StaleTreeSize(uint64 anchored, uint64 given);

    /// @notice The proof does not show that the tree extends the anchored one, or a first anchor
    /// came with a proof.
    /// @param anchored Size of the anchored tree, 0 if there is none.
    /// @param given Size offered.
    error InconsistentTree(uint64 anchored, uint64 given);

    /// @notice The publisher did not sign this tree head for this contract on this chain.
    error InvalidSignature();

    /// @notice The signature was valid until a moment that has passed.
    /// @param deadline That moment, Unix seconds.
    error SignatureExpired(uint256 deadline);

    /// @notice Anchor a tree head of the sender's log.
    /// @param logId SHA-256(origin || 0x0A || 0x01 || Ed25519 public key), for the log's first key.
    /// @param treeSize Count of leaves; must exceed the anchored size.
    /// @param root RFC 6962 root hash over these leaves.
    /// @param proof Consistency proof from the anchored tree head, of exactly the length that the
    /// two sizes demand (RFC 9162 section 2.1.4); empty for the first anchor.
    function anchor(bytes32 logId, uint64 treeSize, bytes32 root, bytes32[] calldata proof) external;

    /// @notice Anchor tree heads of several of the sender's logs: all of them, or none.
    /// @dev Errors do not name the member. One log may appear twice, in growing order.
    /// @param updates The tree heads.
    function anchorMany(Update[] calldata updates) external;

    /// @notice Anchor a tree head that `publisher` signed; anyone may pay for it.
    /// @dev Growth is the nonce: a signature cannot be used twice, and a front runner only anchors
    /// the very same tree head. A publisher without code signs with 65 bytes (r, s, v), low s; one
    /// with code answers by ERC-1271.
    /// @param publisher The account whose log it is.
    /// @param logId As in `anchor`.
    /// @param treeSize As in `anchor`.
    /// @param root As in `anchor`.
    /// @param proof As in `anchor`; not signed, since only one proof fits.
    /// @param deadline Last moment at which the signature may be used, Unix seconds.
    /// @param signature Over EIP-712 `TreeHead(logId, treeSize, root, deadline)`.
    function anchorFor(
        address publisher,
        bytes32 logId,
        uint64 treeSize,
        bytes32 root,
        bytes32[] calldata proof,
        uint256 deadline,
        bytes calldata signature
    ) external;

    /// @notice The newest anchored tree head; all zeros if there is none.
    /// @param publisher The account whose log it is.
    /// @param logId The log.
    /// @return The tree head.
    function head(address publisher, bytes32 logId) external view returns (Head memory);

    /// @notice Whether the tree (n, rootN) extends the tree (m, rootM), RFC 9162 section 2.1.4.2.
    /// @param m Old size; 0 proves nothing and gives false.
    /// @param n New size; equal sizes need equal roots and an empty proof.
    /// @param rootM Old root.
    /// @param rootN New root.
    /// @param proof Consistency proof of exactly the length that the sizes demand.
    /// @return True only if the proof fits.
    function verifyConsistency(
        uint64 m,
        uint64 n,
        bytes32 rootM,
        bytes32 rootN,
        bytes32[] calldata proof
    ) external view returns (bool);

    /// @notice Whether a leaf is in the tree (n, root), RFC 9162 section 2.1.3.2.
    /// @dev A path alone binds no position: take n and root from one anchored or signed tree head.
    /// @param leafHash SHA-256(0x00 || entry).
    /// @param index Position from 0; false unless below n.
    /// @param n Size of the tree.
    /// @param root Its root.
    /// @param proof Inclusion path, leaf to root, of exactly the length that index and n demand.
    /// @return True only if the path fits.
    function verifyInclusion(
        bytes32 leafHash,
        uint64 index,
        uint64 n,
        bytes32 root,
        bytes32[] calldata proof
    ) external view returns (bool);

    /// @notice The EIP-712 domain separator of this contract on this chain.
    /// @return keccak256 over name `TreeHeadAnchor`, version `1`, chain id and address.
    function domainSeparator() external view returns (bytes32);
}
