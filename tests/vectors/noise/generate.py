"""Write the vectors of noise slots: `python tests/vectors/noise/generate.py [--check]`.

Expectations are declared beside the scenario. Seeds, leaves and trees come from the few lines
of `reference` here, written from `FORMAT.md` and not from the package; drawn values come from
the package, and `tests/privacy_noise/check_slots.mjs` draws all of them again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from rlhf_audit_trail.privacy.bits import SeededBits
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.mechanisms import (
    Binomial,
    DiscreteGaussian,
    Geometric,
    Mechanism,
    RandomisedResponse,
    RoundedResponse,
)
from rlhf_audit_trail.privacy.redraw import Raw, drawn

FILE = Path(__file__).with_name("noise_slots.json")
SECRET, COIN = hashlib.sha256(b"secret").digest(), hashlib.sha256(b"coin").digest()
OTHER = hashlib.sha256(b"other").digest()
COUNT = 13
CODE = "0" * 64  # the digest of the code is only reported: the vectors outlive it
Named = tuple[str, dict[str, Any]]


# --- reference: FORMAT.md, 22.2 and 22.3, word by word ------------------------------------


def seed(secret: bytes, slot: int) -> bytes:
    return hmac.new(secret, slot.to_bytes(8, "big"), hashlib.sha256).digest()


def leaf(secret: bytes, slot: int) -> bytes:
    data = b"\x00noise-slot" + slot.to_bytes(8, "big") + seed(secret, slot)
    return hashlib.sha256(data).digest()


def root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + root(leaves[:half]) + root(leaves[half:])).digest()


def path(leaves: list[bytes], index: int) -> list[bytes]:
    if len(leaves) == 1:
        return []
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < half:
        return [*path(leaves[:half], index), root(leaves[half:])]
    return [*path(leaves[half:], index - half), root(leaves[:half])]


def leaves(secret: bytes = SECRET, count: int = COUNT) -> list[bytes]:
    return [leaf(secret, slot) for slot in range(count)]


def bits(slot: int, coin: bytes = COIN) -> SeededBits:
    data = seed(SECRET, slot) + coin + slot.to_bytes(8, "big")
    return SeededBits(hashlib.sha256(data).digest())


def opening(slot: int, *, secret: bytes = SECRET, count: int = COUNT) -> dict[str, Any]:
    nodes = [node.hex() for node in path(leaves(secret, count), slot)]
    return {"path": nodes, "seed": seed(secret, slot).hex(), "slot": slot}


def text(fields: Any) -> str:
    return json.dumps(fields, separators=(",", ":"))


# --- scenarios ------------------------------------------------------------------------


def trees() -> Iterator[Named]:
    for count in (1, 2, 3, COUNT):
        given = {"secret": SECRET.hex(), "count": count}
        found = {"root": root(leaves(count=count)).hex()}
        yield (
            f"The root of {count} slots.",
            {"kind": "tree", "input": given, "expect": "ok"} | found,
        )


def openings() -> Iterator[Named]:
    good = opening(5)

    def one(about: str, given: str, expect: str = "WrongSlotOpening", **changed: Any) -> Named:
        public = {"root": root(leaves()).hex(), "count": COUNT, "coin": COIN.hex()}
        vector = {
            "kind": "opening",
            "input": {"opening": given, **public, **changed},
            "expect": expect,
        }
        return about, vector

    for slot in (0, 5, 12):
        about, vector = one(f"Slot {slot}, and its first words.", text(opening(slot)), "ok")
        stream = bits(slot)
        yield about, vector | {"words": [f"{stream.word():016x}" for _ in range(5)]}
    single = opening(0, count=1)
    about, vector = one(
        "The only slot: no path.", text(single), "ok", count=1, root=leaf(SECRET, 0).hex()
    )
    stream = bits(0)
    yield about, vector | {"words": [f"{stream.word():016x}" for _ in range(5)]}

    flipped = f"{int(good['seed'][0], 16) ^ 1:x}{good['seed'][1:]}"
    yield one("Another seed, chosen when the coin was known.", text(good | {"seed": OTHER.hex()}))
    yield one("One bit of the seed is another.", text(good | {"seed": flipped}))
    yield one("The seed of another slot.", text(good | {"seed": seed(SECRET, 6).hex()}))
    yield one("The path of another slot.", text(good | {"path": opening(6)["path"]}))
    yield one("Another slot's number.", text(good | {"slot": 4}))
    yield one("A slot behind the last.", text(good | {"slot": COUNT}))
    yield one("Another root.", text(good), root=OTHER.hex())
    yield one("Another count, with the same path's length.", text(opening(12)), count=14)
    yield one("A round of another secret.", text(opening(5, secret=OTHER)))
    yield one("A path that is one hash too short.", text(good | {"path": good["path"][:-1]}))
    yield one(
        "A path that is one hash too long.", text(good | {"path": [*good["path"], OTHER.hex()]})
    )
    yield one("A path in another order.", text(good | {"path": good["path"][::-1]}))
    yield one(
        "A hash of 31 bytes.", text(good | {"path": [good["path"][0][2:], *good["path"][1:]]})
    )
    yield one("A seed of 31 bytes.", text(good | {"seed": good["seed"][2:]}))
    yield one("A seed of 33 bytes.", text(good | {"seed": good["seed"] + "00"}))
    yield one("Hex in upper case.", text(good | {"seed": good["seed"].upper()}))
    yield one("Hex with spaces.", text(good | {"seed": good["seed"][:2] + " " + good["seed"][2:]}))
    yield one("White space in the object.", json.dumps(good))
    yield one("White space behind it.", text(good) + "\n")
    yield one("Keys in another order.", text(dict(reversed(list(good.items())))))
    yield one("An unknown key.", text(good | {"z": 1}))
    yield one("A key is missing.", text({"path": good["path"], "seed": good["seed"]}))
    yield one("A key twice.", text(good)[:-1] + ',"slot":5}')
    yield one("The slot as text.", text(good | {"slot": "5"}))
    yield one("The slot as true.", text(opening(1) | {"slot": True}))
    yield one("The slot as 5.0.", text(good | {"slot": 5.0}))
    yield one("The slot as 5e0.", text(good)[:-2] + "5e0}")
    yield one("A negative slot.", text(good | {"slot": -1}))
    yield one("The path is null.", text(good | {"path": None}))
    yield one("A list.", text([good["path"], good["seed"], 5]))
    yield one("Nothing.", "")
    yield one("More than 2,048 bytes.", text(good | {"path": [OTHER.hex()] * 40}))
    yield one("A coin of 31 bytes.", text(good), "NoiseProtocolError", coin=COIN.hex()[2:])
    yield one("A coin of 33 bytes.", text(good), "NoiseProtocolError", coin=COIN.hex() + "00")


def coins() -> Iterator[Named]:
    def one(about: str, expect: str = "EarlyCoin", **given: Any) -> Named:
        usual = {
            "committed": [4, 9, 7],
            "anchored_size": 10,
            "coin_index": 10,
            "anchored_at": None,
            "coin_at": None,
        }
        return about, {"kind": "coin", "input": usual | given, "expect": expect}

    yield one("All is anchored, then the coin comes.", "ok")
    yield one("The coin's block is one later than the anchor.", "ok", anchored_at=100, coin_at=101)
    yield one("A value was committed to after the anchored head.", committed=[4, 10])
    yield one("The slots' root is not below the anchored head.", committed=[10, 4])
    yield one("The coin's entry is in the anchored head.", coin_index=9)
    yield one("The coin came before the slots' root.", coin_index=3)
    yield one("The coin's block is that of the anchor.", anchored_at=100, coin_at=100)
    yield one("The coin's block is older than the anchor.", anchored_at=100, coin_at=99)
    yield one("A negative index.", committed=[-1, 4])
    yield one("Nothing is committed to.", "InvalidParameter", committed=[])
    yield one("Only one of both times.", "InvalidParameter", anchored_at=100)


def orders() -> Iterator[Named]:
    def one(about: str, used: list[int], expect: str | int, **given: Any) -> Named:
        usual = {"used": used, "count": 8, "burnt": []}
        said = {"expect": expect} if isinstance(expect, str) else {"expect": "ok", "next": expect}
        return about, {"kind": "slots", "input": usual | given} | said

    yield one("No slot is used yet.", [], 0)
    yield one("One after another.", [0, 1, 2], 3)
    yield one("All of them.", list(range(8)), 8)
    yield one("Burnt ones are passed over.", [0, 2, 5], 6, burnt=[1, 3, 4])
    yield one("The first ones are burnt.", [], 2, burnt=[0, 1])
    yield one("One twice in a row.", [0, 1, 1], "SlotReused")
    yield one("One again later.", [0, 1, 2, 0], "SlotReused")
    yield one("One passed over.", [0, 2], "SlotSkipped")
    yield one("The first passed over.", [1], "SlotSkipped")
    yield one("One passed over and used later.", [0, 2, 1], "SlotSkipped")
    yield one("A burnt one is used.", [0, 1], "SlotReused", burnt=[1])
    yield one("A slot behind the last.", list(range(9)), "SlotSkipped")


def public(mechanism: Mechanism) -> dict[str, Any]:
    return mechanism.public() | {"code_digest": CODE}


RESPONSE, ROUNDED = (
    RandomisedResponse(Fraction(1, 4), 5),
    RoundedResponse(Fraction(1), Interval.of(-1, "3/2")),
)
GEOMETRIC, GAUSSIAN = Geometric(Fraction(1, 10), 2), DiscreteGaussian(Fraction(13184161, 10000), 2)
BINOMIAL = Binomial(128, Fraction(1), Fraction(1, 10**6))
CASES: tuple[tuple[Mechanism, Any, Raw], ...] = (
    (RESPONSE, 3, 3),
    (RandomisedResponse(Fraction(4), 2), 1, 1),
    (ROUNDED, 0.75, 0.75),
    (ROUNDED, 99, 99),
    (GEOMETRIC, [10, 0, 7, -2], [10, 0, 7, -2]),
    (GAUSSIAN, [1200], [1200]),
    (BINOMIAL, 40, 40),
)  # fmt: skip


def releases() -> Iterator[Named]:
    def one(about: str, case: int, expect: str, **changed: Any) -> Named:
        mechanism, shown, raw = CASES[case]
        given = {
            "mechanism": public(mechanism), "root": root(leaves()).hex(), "count": COUNT,
            "slot": case, "coin": COIN.hex(), "released": drawn(mechanism, raw, bits(case)),
            "raw": shown, "opening": text(opening(case)),
        }  # fmt: skip
        return about, {"kind": "release", "input": given | changed, "expect": expect}

    for case, (mechanism, _, _) in enumerate(CASES):
        yield one(f"{mechanism.name}, as published.", case, "ok")
        off = drawn(mechanism, CASES[case][2], bits(case))
        other = [off[0] + 1, *off[1:]] if isinstance(off, list) else off + 1
        yield one(
            f"{mechanism.name}, another value published.", case, "ReleaseDiffers", released=other
        )
        yield one(
            f"{mechanism.name}, another slot's opening.",
            case,
            "WrongSlotOpening",
            opening=text(opening(case + 1)),
        )
        yield one(
            f"{mechanism.name}, an inflated cost.",
            case,
            "TamperedParameters",
            mechanism=public(mechanism) | {"delta_units": "7"},
        )
    yield one("Noise of another coin.", 4, "ReleaseDiffers", coin=OTHER.hex())
    yield one("Another raw value.", 5, "ReleaseDiffers", raw=[1201])
    yield one(
        "A cell is missing.",
        4,
        "ReleaseDiffers",
        released=drawn(GEOMETRIC, [10, 0, 7, -2], bits(4))[:3],
    )
    yield one("A raw value that is no level.", 0, "ReleaseDiffers", raw=5)
    yield one("A raw value that is text.", 0, "ReleaseDiffers", raw="3")
    yield one("A statistic without cells.", 5, "ReleaseDiffers", raw=[], released=[])
    for about, case, changes in (
        (
            "A higher threshold.",
            0,
            {"parameters": GOOD[0] | {"threshold": str(RESPONSE.threshold + 1)}},
        ),
        ("A threshold of certainty.", 0, {"parameters": GOOD[0] | {"threshold": str(2**64)}}),
        (
            "The threshold as a number.",
            0,
            {"parameters": GOOD[0] | {"threshold": RESPONSE.threshold >> 12}},
        ),
        ("Another epsilon, the same threshold.", 0, {"parameters": GOOD[0] | {"epsilon": "1/8"}}),
        ("Another number of levels.", 0, {"parameters": GOOD[0] | {"levels": 6}}),
        ("Levels as true.", 1, {"parameters": GOOD[1] | {"levels": True}}),
        ("One level.", 0, {"parameters": GOOD[0] | {"levels": 1}}),
        ("A lower cost in epsilon.", 0, {"epsilon_units": "249999999999"}),
        ("A lower cost in rho.", 0, {"rho_units": str(RESPONSE.cost.rho_units - 1)}),
        ("No cost at all.", 0, {"epsilon_units": None}),
        ("The cost as a number.", 0, {"epsilon_units": 250000000000}),
        ("Epsilon not in lowest terms.", 0, {"parameters": GOOD[0] | {"epsilon": "2/8"}}),
        ("Epsilon as a decimal.", 0, {"parameters": GOOD[0] | {"epsilon": "0.25"}}),
        ("Epsilon with an exponent.", 0, {"parameters": GOOD[0] | {"epsilon": "1e-999999999"}}),
        ("Epsilon over zero.", 0, {"parameters": GOOD[0] | {"epsilon": "1/0"}}),
        ("Epsilon below zero.", 0, {"parameters": GOOD[0] | {"epsilon": "-1/4"}}),
        ("Epsilon with a plus sign.", 0, {"parameters": GOOD[0] | {"epsilon": "+1/4"}}),
        ("An unknown mechanism.", 0, {"name": "laplace"}),
        ("Another mechanism's name.", 4, {"name": "discrete_gaussian"}),
        ("Another relation.", 0, {"relation": "add_remove"}),
        ("Another unit.", 0, {"unit": "example"}),
        ("Another generator of bits.", 0, {"drbg": "mt19937"}),
        ("A code digest of another form.", 0, {"code_digest": "0" * 63}),
        ("An unknown field.", 0, {"note": "fine"}),
        ("An unknown parameter.", 0, {"parameters": GOOD[0] | {"note": "fine"}}),
        ("A parameter is missing.", 0, {"parameters": {"epsilon": "1/4", "levels": 5}}),
        ("Bounds the wrong way round.", 2, {"parameters": GOOD[2] | {"bounds": ["3/2", "-1"]}}),
        ("Three bounds.", 2, {"parameters": GOOD[2] | {"bounds": ["-1", "0", "3/2"]}}),
        ("A smaller scale.", 4, {"parameters": GOOD[4] | {"scale": "19"}}),
        ("A smaller sensitivity.", 4, {"parameters": GOOD[4] | {"sensitivity_l1": 1}}),
        ("A smaller variance at the same cost.", 5, {"parameters": GOOD[5] | {"variance": "1"}}),
        ("A variance of zero.", 5, {"parameters": GOOD[5] | {"variance": "0"}}),
        ("A sensitivity of zero.", 5, {"parameters": GOOD[5] | {"sensitivity_l2_squared": 0}}),
        ("Fewer coins than the delta needs.", 6, {"parameters": GOOD[6] | {"coins": 64}}),
        ("An odd number of coins.", 6, {"parameters": GOOD[6] | {"coins": 127}}),
    ):
        fields = public(CASES[case][0]) | changes
        yield one(f"Parameters: {about}", case, "TamperedParameters", mechanism=fields)


GOOD = [mechanism.parameters() for mechanism, _, _ in CASES]


def samples() -> Iterator[Named]:
    for events, wanted in ((1, 1), (10, 3), (10, 10), (1_000_000, 8)):
        given = {"seed": OTHER.hex(), "root": COIN.hex(), "events": events, "openings": wanted}
        chosen = sample(OTHER, COIN, events, wanted)
        vector = {"kind": "sample", "input": given, "expect": "ok", "chosen": chosen}
        yield f"{wanted} of {events} events.", vector
    for about, changed in (
        ("More openings than events.", {"openings": 11}),
        ("No opening.", {"openings": 0}),
        ("A seed of 31 bytes.", {"seed": OTHER.hex()[2:]}),
        ("A root of 31 bytes.", {"root": COIN.hex()[2:]}),
    ):
        given = {"seed": OTHER.hex(), "root": COIN.hex(), "events": 10, "openings": 3} | changed
        yield about, {"kind": "sample", "input": given, "expect": "InvalidParameter"}


def sample(given: bytes, head: bytes, events: int, wanted: int) -> list[int]:
    stream = SeededBits(hashlib.sha256(b"dp-audit-sample/1" + given + head).digest())
    chosen: set[int] = set()
    for last in range(events - wanted, events):
        while last and (word := stream.word()) >= 2**64 - 2**64 % (last + 1):
            pass
        event = word % (last + 1) if last else 0
        chosen.add(last if event in chosen else event)
    return sorted(chosen)


def encoded() -> str:
    rooms = (trees, openings, coins, orders, releases, samples)
    found = [{"about": about} | vector for room in rooms for about, vector in room()]
    return "[\n" + ",\n".join(json.dumps(vector) for vector in found) + "\n]\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(FILE.read_text("utf-8") != encoded())
    FILE.write_text(encoded(), "utf-8")
