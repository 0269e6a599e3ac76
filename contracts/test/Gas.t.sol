// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITreeHeadAnchor} from "../ITreeHeadAnchor.sol";
import {TreeHeadAnchor} from "../TreeHeadAnchor.sol";
import {Made} from "./Made.sol";
import {vm} from "./Vm.sol";

/// @dev Gas of one fixed call of each kind, whole transactions, kept in `snapshots/GasTest.json`
/// to the unit: a change there is a change of the compiled code. Beside it stand ceilings, which
/// may never be raised. Means over a sample are the business of `python -m benchmarks gas`.
contract GasTest {
    TreeHeadAnchor private _anchors;

    uint64 private constant _K = 3_840; // 15 * 256
    uint64 private constant _M = 999_936; // 3,906 * 256
    uint64 private constant _G = 999_999_744; // 3,906,249 * 256
    uint256 private constant _MANY = 50;

    function setUp() public {
        _anchors = new TreeHeadAnchor();
        vm.warp(1_800_000_000);
        vm.roll(1_000);
    }

    /// forge-config: default.isolate = true
    function test_first() public {
        (bytes32 root,) = Made.roots(1, _M, _M + 1);
        _anchors.anchor(bytes32("log"), _M, root, new bytes32[](0));
        assert(vm.snapshotGasLastCall("first anchor of a log") <= 70_200);
    }

    /// forge-config: default.isolate = true
    function test_next() public {
        assert(_next(_K, "next anchor at 3,840 leaves, 256 more") <= 42_200);
        assert(_next(_M, "next anchor at 999,936 leaves, 256 more") <= 48_000);
        assert(_next(_G, "next anchor at 999,999,744 leaves, 256 more") <= 56_000);
    }

    /// forge-config: default.isolate = true
    function test_many() public {
        ITreeHeadAnchor.Update[] memory updates = new ITreeHeadAnchor.Update[](_MANY);
        for (uint256 i = 0; i < _MANY; ++i) {
            (bytes32 old, bytes32 root) = Made.roots(i, _M, _M + 256);
            _anchors.anchor(bytes32(i), _M, old, new bytes32[](0));
            updates[i] =
                ITreeHeadAnchor.Update(bytes32(i), _M + 256, root, Made.proof(i, _M, _M + 256));
        }
        _anchors.anchorMany(updates);
        uint256 gas = vm.snapshotGasLastCall("anchorMany, 50 logs at 999,936 leaves, 256 more");
        assert(gas <= _MANY * 29_000);
    }

    /// forge-config: default.isolate = true
    function test_refused() public {
        (bytes32 old, bytes32 root) = Made.roots(1, _M, _M + 256);
        bytes32[] memory proof = Made.proof(1, _M, _M + 256);
        _anchors.anchor(bytes32("log"), _M, old, new bytes32[](0));
        try _anchors.anchor(bytes32("log"), _M, root, proof) {
            assert(false);
        } catch {}
        assert(vm.snapshotGasLastCall("refused, stale") <= 40_000);
        proof[0] ^= bytes32(uint256(1));
        try _anchors.anchor(bytes32("log"), _M + 256, root, proof) {
            assert(false);
        } catch {}
        assert(vm.snapshotGasLastCall("refused, wrong proof") <= 45_000);
    }

    function _next(uint64 m, string memory name) private returns (uint256) {
        (bytes32 old, bytes32 root) = Made.roots(m, m, m + 256);
        bytes32[] memory proof = Made.proof(m, m, m + 256);
        _anchors.anchor(bytes32(uint256(m)), m, old, new bytes32[](0));
        _anchors.anchor(bytes32(uint256(m)), m + 256, root, proof);
        return vm.snapshotGasLastCall(name);
    }
}
