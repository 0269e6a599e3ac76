// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

// What else one could anchor with, each taking the very call data of `TreeHeadAnchor.anchor`, so
// that only the contract differs. Written for the benchmark; nothing here is deployed anywhere.

/// @dev Keeps the newest root and checks nothing.
contract OverwrittenRoot {
    mapping(address => mapping(bytes32 => bytes32)) private _roots;

    function anchor(bytes32 logId, uint64, bytes32 root, bytes32[] calldata) external {
        _roots[msg.sender][logId] = root;
    }
}

/// @dev Leaves an event and keeps nothing: no contract and no storage proof can ask for it.
contract EventOnly {
    event Anchored(address indexed publisher, bytes32 indexed logId, uint64 treeSize, bytes32 root);

    function anchor(bytes32 logId, uint64 treeSize, bytes32 root, bytes32[] calldata) external {
        emit Anchored(msg.sender, logId, treeSize, root);
    }
}

struct Head {
    bytes32 root;
    uint64 treeSize;
    uint64 timestamp;
    uint64 blockNumber;
    uint64 sequence;
}

/// @dev The same two words and event as ours; that the tree grew is believed, not checked.
contract UncheckedHead {
    mapping(address => mapping(bytes32 => Head)) internal _heads;

    event TreeHeadAnchored(
        address indexed publisher,
        bytes32 indexed logId,
        uint64 indexed sequence,
        uint64 treeSize,
        bytes32 root
    );

    function anchor(bytes32 logId, uint64 treeSize, bytes32 root, bytes32[] calldata proof)
        external
    {
        Head storage head = _heads[msg.sender][logId];
        require(treeSize > head.treeSize);
        if (head.treeSize != 0) require(_extends(head, treeSize, root, proof));
        uint64 sequence = head.sequence + 1;
        _heads[msg.sender][logId] =
            Head(root, treeSize, uint64(block.timestamp), uint64(block.number), sequence);
        emit TreeHeadAnchored(msg.sender, logId, sequence, treeSize, root);
    }

    function _extends(Head storage, uint64, bytes32, bytes32[] calldata)
        internal
        view
        virtual
        returns (bool)
    {
        return true;
    }
}

/// @dev RFC 9162 section 2.1.4.2 as it reads, without assembly.
contract PlainProof is UncheckedHead {
    function _extends(Head storage head, uint64 n, bytes32 root, bytes32[] calldata proof)
        internal
        view
        override
        returns (bool)
    {
        uint256 fn = head.treeSize - 1;
        uint256 sn = n - 1;
        bool isWhole = head.treeSize & fn == 0;
        while (fn & 1 == 1) (fn, sn) = (fn >> 1, sn >> 1);
        uint256 next = isWhole ? 0 : 1;
        bytes32 fr = isWhole ? head.root : proof[0];
        bytes32 sr = fr;
        for (; next < proof.length; ++next) {
            if (sn == 0) return false;
            bytes32 node = proof[next];
            if (fn & 1 == 1 || fn == sn) {
                fr = sha256(abi.encodePacked(hex"01", node, fr));
                sr = sha256(abi.encodePacked(hex"01", node, sr));
                while (fn & 1 == 0 && fn != 0) (fn, sn) = (fn >> 1, sn >> 1);
            } else {
                sr = sha256(abi.encodePacked(hex"01", sr, node));
            }
            (fn, sn) = (fn >> 1, sn >> 1);
        }
        return fr == head.root && sr == root && sn == 0;
    }
}
