"""Changed bundles, texts and signatures: the page's kernel and Python's say the same, word for word."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.evm.keccak import keccak256
from rlhf_audit_trail.ledger.proof.evm.rlp import encode

ORDER = 2**252 + 27742317777372353535851937790883648493
PRIME = 2**255 - 19


def encoded(data):
    return base64.b64encode(data).decode()


def respelt(record):
    """A bundle's JSON in its one spelling, with a digest that fits: changes reach every step."""
    body = {key: value for key, value in record.items() if key != "sha256"}
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    body["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def verified(bundle_cases, vectors):
    """(bytes, trust) of those vectors that are VERIFIED, the smallest first."""
    good = {"verdict": "VERIFIED", "exit_code": 0}
    found = [(d, trust) for name, d, trust in bundle_cases if vectors[name]["expect"] == good]
    return sorted(found, key=lambda case: len(case[0]))


def test_every_flipped_byte_of_a_bundle(judge, bundle_cases, vectors):
    data, trust = verified(bundle_cases, vectors)[0]
    rng = random.Random(7)
    cases = [(data, trust)]
    for at in range(len(data)):
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << rng.randrange(8)
        cases.append((bytes(spoilt), trust))
    first, *others = judge(cases)
    assert first["report"]["verdict"] == "verified"
    survived = [x for x in others if x["report"]["verdict"] == "verified"]
    assert len(survived) <= 1  # the last newline may become another white space


def test_changes_inside_a_bundle_reach_every_step_and_agree(judge, bundle_cases, vectors):
    rng = random.Random(11)
    good = [case for case in verified(bundle_cases, vectors) if len(case[0]) < 12_000]
    cases = []
    for data, trust in good:
        for _ in range(25):
            record = json.loads(data)
            for _ in range(rng.choice((1, 1, 1, 2))):
                change(record, rng)
            cases.append((respelt(record), trust))
    answers = judge(cases)
    decisive = set()
    for answer in answers:
        words = ("failed", "unreadable", "not_shown")
        found = (x for w in words for x in answer["report"]["checks"] if x["state"] == w)
        decisive.add(next((x["step"] for x in found), None))
    assert decisive >= {None, 1, 2, 4, 5, 6, 7}
    assert len(cases) > 600


def change(record, rng):
    """Change one value somewhere in a record: a byte below base64, a sign of a text, a number."""
    places = []

    def walk(value, parent, key):
        if isinstance(value, dict):
            for name in value:
                walk(value[name], value, name)
        elif isinstance(value, list):
            for number, item in enumerate(value):
                walk(item, value, number)
            places.append((value, parent, key))
        else:
            places.append((value, parent, key))

    walk(record, None, None)
    value, parent, key = rng.choice([x for x in places if x[2] not in ("schema", "sha256")])
    if isinstance(value, list):
        if value:
            rng.choice((value.pop, value.reverse, lambda: value.append(value[0])))()
        return
    if isinstance(value, int):
        parent[key] = max(0, value + rng.choice((-1, 1, 2, 2**40)))
        return
    try:
        raw = bytearray(base64.b64decode(value, validate=True))
        at = rng.randrange(len(raw))
        raw[at] = rng.choice((raw[at] ^ 1 << rng.randrange(8), 0, 0x80, 0xFF))
        parent[key] = encoded(bytes(raw))
    except ValueError:
        at = rng.randrange(max(1, len(value)))
        parent[key] = (
            value[:at] + rng.choice("0A+\n —é'\"\x00\x85\u200b\u2028\U0001f600") + value[at + 1 :]
        )


def large(vectors):
    """Bundles that cost a careless reader time or memory beyond their size; and an honest large one."""
    record = json.loads(vectors["bundle-good"]["input"]["bundle"])
    millions = 1_000_000
    for text in (
        '"' + "a" * millions, '{"' + "\\u0041" * 200_000 + '":1}', "[" + " " * millions + "x]",
        "[" + "0," * 300_000 + "0]", "{" + "[]" * 300_000, '["' + '","' * 300_000 + '"]',
        "-" + "1" * millions, "1." + "1" * millions, " " * millions,
    ):  # fmt: skip
        yield text.encode()
    for field, value in (
        ("tree_head", "=" * millions), ("tree_head", "\n\n" * 1_000_000),
        ("tree_head", "\u2014 " * 150_000), ("log_keys", ["+" * millions]),
        ("log_keys", ["a+b+" + "=" * millions]), ("log_keys", ["\u200b" * 1_000_000]),
    ):  # fmt: skip
        yield respelt(record | {field: value})
    for chain in (  # RLP of 131,000 items, of 72 and of 73 levels, and of lengths beyond all memory
        b"\xfa\x01\xff\xb8" + b"\x01" * 0x1FFB8, nested(72), nested(73), b"\xbf" + b"\xff" * 20,
        b"\xff" + b"\xff" * 20, b"\xfa\x01\xff\xb8" + b"\xc0" * 0x1FFB8, bytes(131_073),
    ):  # fmt: skip
        body = {key: value for key, value in record.items() if key != "sha256"}
        yield respelt(body | {"chain": encoded(chain)})
    entries = record["entries"][:1]
    for _ in range(3000):
        entries.append(entries[-1] | {"index": entries[-1]["index"] + 1})
    yield respelt(record | {"entries": entries})
    opened = [{"path": "'" * 60_000, "salt": encoded(bytes(32)), "value": encoded(b"1")}]
    yield respelt(record | {"entries": [record["entries"][0] | {"openings": opened}]})


def nested(levels):
    item = b""
    for _ in range(levels):
        item = encode([item]) if not item else wrapped(item)
    return item


def wrapped(payload):
    if len(payload) <= 55:
        return bytes([0xC0 + len(payload)]) + payload
    return bytes([0xF8, len(payload)]) + payload


def test_large_and_hostile_bundles_end_soon_and_alike(judge, vectors):
    cases = [(data, vectors["bundle-good"]["input"]) for data in large(vectors)]
    cases.append((b"[" * (32 * 1024 * 1024 + 1), {}))
    began = time.monotonic()
    answers = judge(cases)
    assert time.monotonic() - began < 60  # steps to the square of a million would take hours
    assert {x["report"]["verdict"] for x in answers} <= {"unreadable", "failed", "inconclusive"}


TEXTS = [
    "", " ", "nul", "null", "true ", "[1,2,]", "[1 2]", '{"a":1,}', '{"a" 1}', "{a:1}", "[", "]",
    "01", "-", "-0", "-01", "1.", ".5", "1.5e", "1e5", "1E+5", "-0.0", "1e999", "-1e999", "[1]x",
    "NaN", "[NaN]", "Infinity", "-Infinity", "[-Infinity]", "-Inf", "9" * 4300, "9" * 4301,
    "-" + "9" * 4300, '"\\ud83d\\ude00"', '"\\ud83d"', '"\\u00e9\\/\\b\\f"', '"\\x"', '"\\u12g4"',
    '"\t"', '"\x7f"', '"a', '"a\\', '{"a":1,"a":1}', '{"a":1,"\\u0061":1}', '{"__proto__":{"x":1}}',
    '[{"a":1,"a":2},NaN]', '[NaN,{"a":1,"a":2}]', "[" * 64 + "]" * 64, "[" * 65 + "]" * 65,
    "[" * 65, "]" * 70, "\ufeff1", "\xa01", "\x0b1", "12345678901234567890", '{"a":[{"b":null}]}',
    "[" * 30 + "1" + "]" * 30 + " " * 65_536, "]" + " " * 65_536, '"' + "[" * 65_600 + '"', "\x00",
]  # fmt: skip


def plain(value):
    """The counterpart of `plain` in run_kernel.mjs."""
    if isinstance(value, dict):
        return {"object": [[key, plain(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return {
            "fraction": {float("inf"): "Infinity", -float("inf"): "-Infinity"}.get(value, value)
        }
    return {"whole": str(value)} if type(value) is int else value


def test_both_read_json_alike(ask):
    rng = random.Random(3)
    source = '{"a":[1,-2.5e3,"x\\n\\u00e9",null,true],"b":{"c":{},"d":[]}}'
    data = [text.encode("utf-8", "surrogatepass") for text in TEXTS]
    data += [b"\xff", b'"\xed\xa0\x80"', b'"\xc0\x80"']
    for _ in range(1500):
        text = list(source)
        for _ in range(rng.choice((1, 2, 3))):
            text[rng.randrange(len(text))] = rng.choice('{}[],:"\\ -+.0129eEunltrfaN\x00\x7fé')
        data.append("".join(text).encode())
    answers = ask([("json", {"data": encoded(x)}) for x in data])
    for given, answer in zip(data, answers, strict=True):
        try:
            wanted = {"expect": "ok", "value": plain(parse_json(given))}
        except MalformedBundle as error:
            wanted = {"expect": "MalformedBundle", "message": error.message}
        if "\\ud83d" not in given.decode("utf-8", "replace"):  # a lone surrogate has no JSON
            assert (given[:80], answer) == (given[:80], wanted)


def spoilt(data, rng, first=0, last=None):
    changed = bytearray(data)
    changed[rng.randrange(first, last or len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def signatures(rng):
    """(algorithm, public key, message, signature): good, spoilt, and in the corners of Ed25519."""
    for number in range(12):
        message = bytes(number * 11)
        ed = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        key, signature = ed.public_key().public_bytes_raw(), ed.sign(message)
        larger = int.from_bytes(signature[32:], "little") + ORDER
        yield "ED25519", key, message, signature
        yield "ED25519", key, message + b".", signature
        yield "ED25519", key, message, signature[:32] + larger.to_bytes(32, "little")
        yield "ED25519", key, message, spoilt(signature, rng)
        yield "ED25519", spoilt(key, rng), message, signature
        yield "ED25519", key, message, signature[:-1]
        ml = MLDSA44PrivateKey.from_seed_bytes(bytes([number]) * 32)
        key, signature = ml.public_key().public_bytes_raw(), ml.sign(message)
        yield "ML_DSA_44", key, message, signature
        yield "ML_DSA_44", key, message + b".", signature
        yield "ML_DSA_44", spoilt(key, rng), message, signature
        yield "ML_DSA_44", key, message, signature + b"."
        for first, last in ((0, 32), (32, 2336), (2336, 2416), (2416, 2420)):
            yield "ML_DSA_44", key, message, spoilt(signature, rng, first, last)
    of_order_8 = int.from_bytes(
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
    )
    heights = (0, 1, PRIME - 1, PRIME, PRIME + 1, 2**255 - 1, of_order_8, PRIME - of_order_8)
    points = [(y | sign << 255).to_bytes(32, "little") for y in heights for sign in (0, 1)]
    for key in points:  # points of small order, and coordinates that are not reduced
        for r in points:
            yield "ED25519", key, b"1", r + bytes(32)


def test_signatures_fit_where_cryptography_says_so(ask):
    cases = list(signatures(random.Random(5)))
    fields = ("algorithm", "key", "message", "signature")
    rows = [dict(zip(fields, (name, *map(encoded, x)), strict=True)) for name, *x in cases]
    classes = {"ED25519": Ed25519PublicKey, "ML_DSA_44": MLDSA44PublicKey}
    fitting = 0
    for case, answer in zip(cases, ask([("signature", row) for row in rows]), strict=True):
        algorithm, key, message, signature = case
        try:
            classes[algorithm].from_public_bytes(key).verify(signature, message)
            fits = True
        except (InvalidSignature, ValueError):
            fits = False
        fitting += fits
        assert (case, answer["fits"]) == (case, fits)
    assert fitting > 24  # some keys of small order "sign" anything, for both alike


def test_hashes_of_every_length(ask):
    inputs = [bytes(range(256))[:length] * 2 for length in range(257)]
    answers = ask([("hashes", {"data": encoded(x)}) for x in inputs])
    for given, answer in zip(inputs, answers, strict=True):
        wanted = [hashlib.sha256(given), hashlib.sha512(given)]
        assert answer["all"] == [x.hexdigest() for x in wanted] + [keccak256(given).hex()]
