"""What `anvil.toml` may say, its defaults, and where the Anvil binary is found."""

from __future__ import annotations

import operator
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.errors import AnvilFailed, AnvilNotFound, AnvilVersion
from rlhf_audit_trail.ledger.settings import SettingsError, read_tables

__all__ = [
    "AnvilConfig",
    "BinarySettings",
    "NodeSettings",
    "StateSettings",
    "find_anvil",
    "read_anvil_config",
]


# Without these options Anvil mines each transaction at once, and forgets no state.
_LEFT_OUT: Final = ("block_time", "prune_history")


@dataclass(frozen=True)
class NodeSettings:
    """Table `[anvil]`: Anvil's own options, with underscores."""

    host: str = "127.0.0.1"
    port: int = 8545
    chain_id: int = 31337
    hardfork: str = "osaka"
    accounts: int = 10
    balance: int = 10_000
    timestamp: int = 1_767_225_600
    gas_limit: int = 30_000_000
    enable_tx_gas_limit: bool = True
    slots_in_an_epoch: int = 1
    block_time: int = 0
    preserve_historical_states: bool = True
    prune_history: int = 0

    def arguments(self) -> list[str]:
        """Return them as Anvil's command line takes them."""
        arguments = []
        for name, value in vars(self).items():
            flag = "--" + name.replace("_", "-")
            if name in _LEFT_OUT and value == 0:
                continue
            if isinstance(value, bool):
                arguments += [flag] if value else []
            else:
                arguments += [flag, str(value)]
        return arguments


@dataclass(frozen=True)
class StateSettings:
    """Table `[state]`: what survives a restart."""

    path: str = "build/anvil"
    snapshot: bool = True
    keep: int = 2


@dataclass(frozen=True)
class BinarySettings:
    """Table `[binary]`: where to look for Anvil, and which versions will do."""

    search: str = "env,path,node_modules"
    version: str = ">=1.7,<2"


@dataclass(frozen=True)
class AnvilConfig:
    """The whole of `anvil.toml`."""

    anvil: NodeSettings = field(default_factory=NodeSettings)
    state: StateSettings = field(default_factory=StateSettings)
    binary: BinarySettings = field(default_factory=BinarySettings)


def read_anvil_config(path: Path) -> AnvilConfig:
    """Read an `anvil.toml`; what it leaves out takes its default.

    Raises:
        UnknownSetting: a table or key that nothing reads.
        SettingsError: unreadable, or a value of the wrong type or out of range.
    """
    tables: Mapping[str, type[Any]] = {
        "anvil": NodeSettings,
        "state": StateSettings,
        "binary": BinarySettings,
    }
    config = AnvilConfig(**read_tables(path, tables))
    for name, value, low, high in (
        ("anvil.port", config.anvil.port, 0, 65_535),
        ("anvil.chain_id", config.anvil.chain_id, 1, 2**53),
        ("anvil.accounts", config.anvil.accounts, 1, 1_000),
        ("anvil.slots_in_an_epoch", config.anvil.slots_in_an_epoch, 1, 1_000),
        ("anvil.block_time", config.anvil.block_time, 0, 86_400),
        ("anvil.prune_history", config.anvil.prune_history, 0, 100_000),
        ("state.keep", config.state.keep, 1, 100),
    ):
        if not low <= value <= high:
            raise SettingsError(f"{path}: {name} is {value}, must be {low} to {high}")
    return config


_SYSTEMS: Final = {"Linux": "linux", "Darwin": "darwin"}
_MACHINES: Final = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_PROJECT: Final = Path(__file__).resolve().parents[3]  # a checkout's root, through the link


def find_anvil(settings: BinarySettings) -> Path:
    """Return the Anvil binary to run: the first found, if its version will do.

    Raises:
        AnvilNotFound: it is in none of the places; says how to get it.
        AnvilVersion: it is there, in another version.
        SettingsError: a place or a version bound that has no meaning.
    """
    places = [place.strip() for place in settings.search.split(",")]
    for place in places:
        for path in _candidates(place):
            if _is_program(path):
                _check_version(path, settings.version)
                return path
    raise AnvilNotFound(
        f"there is no Anvil binary in any of: {', '.join(places)}",
        next_step="run `npm install --prefix contracts --ignore-scripts` in a checkout "
        "(`make` does), or install Foundry, or set ANVIL_BIN to the binary",
    )


def _candidates(place: str) -> Iterator[Path]:
    if place == "env":
        if named := os.environ.get("ANVIL_BIN"):
            if not _is_program(Path(named)):
                raise AnvilNotFound(
                    "ANVIL_BIN does not name an Anvil binary",
                    next_step="point it at the binary itself, not at a script, or unset it",
                )
            yield Path(named)
    elif place == "path":
        if found := shutil.which("anvil"):
            yield Path(found)
    elif place == "node_modules":
        package = f"anvil-{_SYSTEMS.get(platform.system())}-{_MACHINES.get(platform.machine())}"
        for folder in (Path.cwd(), *Path.cwd().parents, _PROJECT):
            for modules in (folder / "node_modules", folder / "contracts" / "node_modules"):
                yield modules / "@foundry-rs" / package / "bin" / "anvil"
    else:
        raise SettingsError(
            f"binary.search names {place!r}", next_step="known: env, path, node_modules"
        )


def _is_program(path: Path) -> bool:
    """Whether the path is an executable and not a script.

    npm puts a node script called anvil on PATH; killing that would leave the real one running.
    """
    try:
        with path.open("rb") as file:
            return os.access(path, os.X_OK) and file.read(2) != b"#!"
    except OSError:
        return False


_COMPARE: Final = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


def _check_version(path: Path, wanted: str) -> None:
    try:
        shown = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise AnvilFailed(f"the Anvil binary {path} does not run") from error
    found = re.search(r"(\d+(?:\.\d+)+)", shown)
    if found is None or not _satisfies(_numbers(found[1]), wanted):
        raise AnvilVersion(
            f"{path} is Anvil {found[1] if found else 'of an unknown version'}, not {wanted}",
            next_step="install a version in that range, or change binary.version in anvil.toml",
        )


def _satisfies(version: tuple[int, ...], wanted: str) -> bool:
    for bound in wanted.split(","):
        match = re.fullmatch(r"\s*(>=|<=|==|>|<)\s*(\d+(?:\.\d+)*)\s*", bound)
        if match is None:
            raise SettingsError(
                f"binary.version has the bound {bound!r}", next_step="write it like >=1.7,<2"
            )
        if not _COMPARE[match[1]](version, _numbers(match[2])):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """Return 1.7.0 as (1, 7): trailing zeros do not make a version differ."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
