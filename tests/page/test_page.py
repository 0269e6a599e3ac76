"""The page in Chromium: offline, from a file and over plain http, with honest and hostile bundles."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import zlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.page import PAGE_PATH
from rlhf_audit_trail.ledger.page.link import fragment_of
from rlhf_audit_trail.ledger.proof.bundle import Bundle, BundledEntry, encode_bundle
from rlhf_audit_trail.ledger.proof.commitment import Opening, commit
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.proof.note import Algorithm, VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from tests.page.chromium import Tab, find_chromium, open_chromium

PAGE = PAGE_PATH.resolve().as_uri()
TRUST = Path(__file__).with_name("vector_trust.mjs").read_text("utf-8")
MARKUP = "<img/src=x/onerror=window.pwned=1><svg/onload=alert(1)>"


@pytest.fixture(scope="module")
def browser():
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium here: make tools fetches one")
    with open_chromium(program) as opened:
        yield opened


@pytest.fixture
def tab(browser):
    """A tab that must end without a complaint, and without having asked for anything but the page."""
    opened = Tab(browser)
    yield opened
    assert opened.complaints() == []
    assert {url.split("#")[0].split("?")[0] for url in opened.requests()} <= {PAGE, *opened.allowed}
    assert opened.run("return window.pwned ?? null") is None
    browser.call("Target.closeTarget", targetId=opened.target)


SUBMIT = """
const set = (id, value) => { document.getElementById(id).value = value; };
set("pasted", text); set("keys", keys.join("\\n"));
for (const [id, value] of Object.entries(more)) set(id, value);
document.getElementById("result").hidden = true;
document.getElementById("form").requestSubmit();
"""
WAIT = """
const [result, problem] = ["result", "problem"].map((id) => document.getElementById(id));
while (result.hidden && !problem.textContent) await new Promise((then) => setTimeout(then, 2));
const all = (selector) => [...result.querySelectorAll(selector)].map((x) => x.textContent);
return {
  problem: problem.textContent, verdict: result.hidden ? null : result.querySelector("#verdict").lastChild.textContent,
  answers: all("dd"), headline: all(".headline")[0], checks: all(".checks p"), states: all(".state"),
  focus: document.activeElement.id, status: document.getElementById("status").textContent,
  whole: result.textContent, title: document.title,
};
"""


def submit(tab, text, keys=(), **more):
    names = {name.replace("_", "-"): value for name, value in more.items()}
    tab.run(SUBMIT, text=text, keys=list(keys), more=names)
    return tab.run(WAIT)


def test_every_bundle_vector_has_the_verdict_and_words_of_python(tab, bundle_cases, said):
    tab.open(PAGE)
    script = (
        TRUST.replace("export ", "")
        + """
    const { VerifierKey, answers, examineBundle, reportText, toReport } = rlhfAudit;
    const found = [];
    for (const [data, trust] of cases) {
      const bytes = Uint8Array.from(atob(data), (x) => x.charCodeAt(0));
      const examination = await examineBundle(bytes, trustOf(trust, VerifierKey));
      found.push({ report: reportText(toReport(examination)), ...answers(examination) });
    }
    return found;
    """
    )
    names = {"keys", "need_anchor", "on_chain", "chain", "accept_unpinned", "accept_unanchored"}
    for first in range(0, len(bundle_cases), 40):
        batch = bundle_cases[first : first + 40]
        cases = [
            (base64.b64encode(data).decode(), {k: v for k, v in trust.items() if k in names})
            for _, data, trust in batch
        ]
        for (name, data, trust), found in zip(batch, tab.run(script, cases=cases), strict=True):
            found["report"] = json.loads(found["report"])
            wanted = said(data, trust)
            del wanted["on_trust"]
            assert (name, found) == (name, wanted)


@pytest.mark.parametrize(
    ("name", "verdict", "state"),
    [
        ("bundle-good-full", "VERIFIED", "passed"),
        ("bundle-entry-changed", "FAILED", "failed"),
        ("bundle-half-signed", "INCONCLUSIVE", "not_shown"),
        ("bundle-indented", "UNREADABLE", "unreadable"),
    ],
)
def test_what_the_page_shows(tab, vectors, said, name, verdict, state):
    given = vectors[name]["input"]
    tab.open(PAGE)
    shown = submit(tab, given["bundle"], given["keys"])
    wanted = said(given["bundle"].encode(), given)
    assert shown["verdict"] == verdict
    assert shown["answers"] == [wanted["unchanged"], wanted["byWhom"]]
    assert shown["headline"].lower() == wanted["headline"].lower()
    assert shown["focus"] == "verdict"  # a screen reader goes on there
    assert shown["status"] == (
        f"{verdict}. Unchanged: {wanted['unchanged']}. By whom: {wanted['byWhom']}."
    )
    assert shown["title"].startswith(verdict)
    checks = wanted["report"]["checks"]
    assert len(shown["checks"]) == len(checks)
    for text, word, check in zip(shown["checks"], shown["states"], checks, strict=True):
        assert text.startswith(check["text"])
        assert word.lower().startswith(check["state"].replace("_", " "))
        assert word.endswith(f"{check['step']} {check['id'].replace('_', ' ')}")
    assert "Whether values were true when logged" in shown["whole"]
    if wanted["report"]["next"]:
        assert f"Next: {wanted['report']['next']}" in shown["whole"]
    assert tab.run("return document.getElementById('result').dataset.state") == state


def test_without_a_key_the_page_does_not_say_by_whom(tab, vectors):
    tab.open(PAGE)
    shown = submit(tab, vectors["bundle-good"]["input"]["bundle"])
    assert (shown["verdict"], shown["answers"]) == (
        "INCONCLUSIVE", ["yes", "unknown, you pinned no key"],
    )  # fmt: skip
    assert "paste it into “The keys you pin”" in shown["whole"]
    tab.run("document.getElementById('accept-unpinned').click()")
    again = submit(tab, vectors["bundle-good"]["input"]["bundle"])
    assert (again["verdict"], again["answers"]) == ("VERIFIED", shown["answers"])
    whole = shown["whole"].lower()
    assert "authentic" not in whole
    assert "genuine" not in whole


ANVIL = "bundle-chain-anvil-storage"


def chain_fields(given):
    chain = given["chain"]
    blocks = [f"{x['chain_id']}:{x['number']}:0x{x['hash']}" for x in chain["blocks"]]
    return {"chain_id": str(chain["chain_id"]), "publisher": f"0x{chain['publisher']}"}, blocks


@pytest.mark.parametrize("trusted", [2, 1, 0])
def test_chain_evidence_is_judged_as_the_command_line_does(tab, vectors, tmp_path, trusted):
    given = vectors[ANVIL]["input"]
    place, blocks = chain_fields(given)
    blocks = blocks[:trusted]
    file = tmp_path / "bundle.json"
    file.write_text(given["bundle"], "utf-8")
    flags = [x for name, x in place.items() for x in (f"--{name.replace('_', '-')}", x)]
    flags += [x for block in blocks for x in ("--trusted-block-hash", block)]
    command = ["verify", str(file), *(x for key in given["keys"] for x in ("--key", key)), *flags]
    done = CliRunner().invoke(main, [*command, "--json"])
    report = json.loads(done.stdout)
    tab.open(PAGE)
    shown = submit(tab, given["bundle"], given["keys"], **place, blocks="\n".join(blocks))
    assert shown["verdict"] == report["verdict"].upper()
    assert [x.split("expected")[0] for x in shown["checks"]] == [
        x["text"] for x in report["checks"]
    ]
    for sentence in report.get("on_trust", ()):
        assert f"On trust: {sentence}. A header does not name its chain." in shown["whole"]
    assert ("On trust" in shown["whole"]) == bool(report.get("on_trust"))


def test_a_trust_policy_may_be_pasted_for_the_keys(tab, vectors):
    given = vectors[ANVIL]["input"]
    place, blocks = chain_fields(given)
    anchor = {"chain_id": 31337, "contract": f"0x{given['chain']['contract']}"}
    anchor |= {"publisher": place["publisher"]}
    policy = {"schema": "rlhf-audit/trust-policy/v1", "keys": given["keys"], "anchor": anchor}
    tab.open(PAGE)
    text, trusted = given["bundle"], "\n".join(blocks)
    assert submit(tab, text, [json.dumps(policy)], blocks=trusted)["verdict"] == "VERIFIED"
    assert submit(tab, text, [json.dumps(policy)], blocks="")["verdict"] == "INCONCLUSIVE"
    policy["anchor"]["publisher"] = "0x" + "00" * 20
    assert submit(tab, text, [json.dumps(policy)])["verdict"] == "FAILED"


@pytest.mark.parametrize(
    ("keys", "more", "problem"),
    [
        (["no key"], {}, "not a usable key: a vkey must read name+id+key"),
        (['{"schema":1}'], {}, "not a trust policy"),
        (['{"keys":[],"keys":[]}'], {}, "the same key twice"),
        ([], {"publisher": "0x12"}, "chain id and publisher belong together"),
        ([], {"chain_id": "1", "publisher": "0x12"}, "the publisher '0x12' is no address"),
        ([], {"blocks": "1:2:3"}, "'1:2:3' names no block"),
        ([], {"blocks": "1:2:0x" + "00" * 32}, "of another chain"),
        ([], {"chain_id": "1", "publisher": "0x" + "11" * 20}, "needs the log's Ed25519 key"),
        ([MARKUP], {}, "a vkey must read name+id+key"),
        ([], {"blocks": MARKUP}, "names no block"),
    ],
)  # fmt: skip
def test_trust_of_no_use_is_refused_before_any_verdict(tab, vectors, keys, more, problem):
    tab.open(PAGE)
    shown = submit(tab, vectors["bundle-good"]["input"]["bundle"], keys, **more)
    assert problem in shown["problem"]
    assert shown["verdict"] is None


def signed_bundle(origin, entry, opening):
    """A bundle of a log of one entry, sound in every step; and the key that signed it."""
    private = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
    key = VerifierKey(origin, Algorithm.ED25519, private.public_key().public_bytes_raw())
    head = TreeHead(origin, 1, leaf_hash(entry))
    signature = base64.b64encode(key.key_id + private.sign(head.text.encode())).decode()
    note = f"{head.text}\n— {origin} {signature}\n"
    item = BundledEntry(0, entry, (), (opening,))
    return encode_bundle(Bundle((str(key),), note, (item,))).decode(), str(key)


def hostile():
    """(bundle, key) with markup wherever a bundle may hold a text and yet be sound."""
    opening = Opening(
        MARKUP, bytes(32), f'"{MARKUP}</pre><script>window.pwned=1</script>"'.encode()
    )
    fields = {"kind": MARKUP, MARKUP: [MARKUP], "c": {MARKUP: commit(opening).hex()}}
    fields["unseen"] = "\u202ekcab\u2066 \u200b\x00"
    entry = json.dumps(fields, ensure_ascii=False).replace(
        '"unseen"', '"n":[1.0,1e999,{},[]],"unseen"'
    )
    return signed_bundle(MARKUP, entry.encode(), opening)


ELEMENTS = """
return [...new Set([...document.querySelectorAll("#result *, #problem *")].map((x) => x.localName))];
"""
OWN = {
    "h2",
    "span",
    "p",
    "dl",
    "div",
    "dt",
    "dd",
    "ol",
    "li",
    "br",
    "pre",
    "code",
    "a",
    "button",
    "strong",
}


def test_markup_in_a_sound_bundle_stays_text(tab):
    text, key = hostile()
    tab.open(PAGE)
    shown = submit(tab, text, [key])
    assert shown["verdict"] == "VERIFIED"
    assert shown["whole"].count(MARKUP) >= 5
    assert set(tab.run(ELEMENTS)) <= OWN
    assert "\u202e" not in shown["whole"]
    assert "\\u{202e}" in shown["whole"]
    assert '"n": [\n    1.0,\n    1e999,\n    {},\n    []\n  ],\n' in shown["whole"]  # as written


def test_markup_in_every_single_text_of_a_bundle_stays_text(tab):
    text, key = hostile()
    tab.open(PAGE)
    count = 0
    for spoilt in spoilt_texts(json.loads(text)):
        shown = submit(tab, spoilt, [key])
        assert shown["verdict"] in {"VERIFIED", "FAILED", "UNREADABLE"}
        assert set(tab.run(ELEMENTS)) <= OWN
        count += 1
    assert count == 19


def spoilt_texts(record):
    """The bundle with markup in place of, or behind, each of its texts, and as each object's key."""

    def places(value):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(items):
            if isinstance(item, dict | list):
                yield from places(item)
            elif isinstance(item, str):
                for changed in (MARKUP, item + MARKUP):
                    value[key] = changed
                    yield
                value[key] = item
        if isinstance(value, dict):
            value[MARKUP] = MARKUP
            yield
            del value[MARKUP]

    for _ in places(record):
        body = {key: item for key, item in record.items() if key != "sha256"}
        if record["sha256"].count("<") == 0:
            digest = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
            body["sha256"] = hashlib.sha256(digest).hexdigest()
        else:
            body["sha256"] = record["sha256"]
        yield json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def test_files_by_dialogue_and_by_dropping_even_with_hostile_names(tab, tmp_path, vectors):
    given = vectors["bundle-good"]["input"]
    file = tmp_path / "<img src=x onerror=alert(1)>.json"
    file.write_text(given["bundle"], "utf-8")
    keys = tmp_path / "keys.txt"
    keys.write_text("# the log's\n" + "\n".join(given["keys"]) + "\n", "utf-8")
    tab.open(PAGE)
    choose(tab, "#key-file", keys)
    tab.run(
        "while (!document.getElementById('keys').value) await new Promise((f) => setTimeout(f, 2))"
    )
    choose(tab, "#file", file)
    shown = tab.run(WAIT)
    assert shown["verdict"] == "VERIFIED"
    assert f"{file.name}, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}" in shown["whole"]
    assert set(tab.run(ELEMENTS)) <= OWN
    drop = """
    document.getElementById("result").hidden = true;
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([text], name));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    """
    tab.run(drop, text=given["bundle"].replace("entries", "entriez"), name=file.name)
    assert tab.run(WAIT)["verdict"] == "UNREADABLE"


def choose(tab, selector, file):
    root = tab.call("DOM.getDocument")["root"]["nodeId"]
    node = tab.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    tab.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)


def test_the_saved_report_is_that_of_the_command_line(tab, browser, tmp_path, vectors):
    given = vectors["bundle-good-full"]["input"]
    file = tmp_path / "bundle.json"
    file.write_text(given["bundle"], "utf-8")
    pins = [x for key in given["keys"] for x in ("--key", key)]
    done = CliRunner().invoke(main, ["verify", str(file), *pins, "--json"])
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    tab.open(PAGE)
    submit(tab, given["bundle"], given["keys"])
    tab.run("document.querySelector('a[download]').click()")
    saved = tmp_path / "verify-result.json"
    for _ in range(500):
        if saved.exists():
            break
        tab.run("await new Promise((then) => setTimeout(then, 10))")
    assert json.loads(saved.read_text("utf-8")) == json.loads(done.stdout)


def test_a_link_is_verified_as_it_is_opened(tab, vectors):
    data = vectors["bundle-good"]["input"]["bundle"].encode()
    tab.open(f"{PAGE}#{fragment_of(data)}")
    shown = tab.run(WAIT)
    assert (shown["verdict"], shown["answers"][0]) == ("INCONCLUSIVE", "yes")
    assert "From the link" in shown["whole"]
    offered = """
    while (!document.querySelector(".actions a[href^='#']")) await new Promise((f) => setTimeout(f, 2));
    return document.querySelector(".actions a[href^='#']").href;
    """
    again = tab.run(offered)
    assert (
        submit(tab, f"  {again}\n", vectors["bundle-good"]["input"]["keys"])["verdict"]
        == "VERIFIED"
    )


def test_a_damaged_or_endless_link_is_refused_quickly(tab):
    def packed(data):
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    bomb = packed(zlib.compress(bytes(64 * 1024 * 1024), 6))
    for fragment in ("%3Cscript%3E", "AAAA", bomb, packed(zlib.compress(b"{}") + b"more"), MARKUP):
        tab.open(f"{PAGE}?{len(fragment)}#{fragment}")
        shown = tab.run(WAIT)
        assert shown["problem"].startswith("the link holds no bundle, or a part of it was lost")
        assert set(tab.run(ELEMENTS)) <= OWN


@contextlib.contextmanager
def served(headers=()):
    """The page on a server of this machine; yields its port and the paths that were asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(PAGE_PATH.read_bytes())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


def test_over_plain_http_it_needs_no_webcrypto_and_asks_for_nothing_else(tab, vectors):
    given = vectors["bundle-good-full"]["input"]
    with served() as (port, asked):
        address = f"http://ledger.example:{port}/verify"
        tab.allowed = (address,)
        tab.open(address)
        assert tab.run("return [isSecureContext, typeof crypto.subtle]") == [False, "undefined"]
        assert submit(tab, given["bundle"], given["keys"])["verdict"] == "VERIFIED"
        forged = vectors["bundle-entry-changed"]["input"]
        assert submit(tab, forged["bundle"], forged["keys"])["verdict"] == "FAILED"
        notice = tab.run("return document.getElementById('origin').textContent")
        assert f"ledger.example:{port}" in notice
        assert "proves less" in notice
    assert asked == ["/verify"]


def test_the_policy_stops_what_a_page_must_not_do(browser):
    tab = Tab(browser)
    tab.open(PAGE)
    with served() as (port, asked):
        attempts = """
        const denied = [];
        addEventListener("securitypolicyviolation", (event) => denied.push(event.effectiveDirective));
        const there = `http://127.0.0.1:${port}/`;
        await fetch(there).catch(() => denied.push("fetch"));
        new Image().src = there;
        navigator.sendBeacon(there);
        const script = document.createElement("script");
        try { script.text = "window.pwned = 1"; } catch { denied.push("script"); }
        try { document.body.innerHTML = "<b>"; } catch { denied.push("markup"); }
        try { eval("window.pwned = 1"); } catch { denied.push("eval"); }
        await new Promise((then) => setTimeout(then, 100));
        return [denied, window.pwned ?? null];
        """
        denied, pwned = tab.run(attempts, port=port)
    assert (asked, pwned) == ([], None)
    assert {"fetch", "script", "markup", "eval", "connect-src", "img-src"} <= set(denied)


def test_it_can_be_used_by_keyboard_and_screen_reader_and_on_a_small_screen(tab, vectors):
    size = {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    tab.call("Emulation.setDeviceMetricsOverride", **size)
    tab.open(PAGE)
    given = vectors["bundle-good-full"]["input"]
    tab.run("document.getElementById('pasting').open = document.getElementById('more').open = true")
    tab.run("document.getElementById('pasted').value = text; document.getElementById('keys').value = keys",
            text=given["bundle"], keys="\n".join(given["keys"]))  # fmt: skip
    reached = []
    for _ in range(30):
        for kind in ("keyDown", "keyUp"):
            tab.call(
                "Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9
            )
        reached.append(
            tab.run("return document.activeElement.id || document.activeElement.localName")
        )
        if reached[-1] == "button":
            break
    assert {"file", "pasted", "keys", "key-file", "chain-id", "blocks", "button"} <= set(reached)
    for kind in ("keyDown", "keyUp"):
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        tab.call("Input.dispatchKeyEvent", type=kind, **enter)
    assert tab.run(WAIT)["focus"] == "verdict"
    assert tab.run("return document.documentElement.scrollWidth") <= 320
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    controls = {"textbox", "button", "checkbox", "link", "DisclosureTriangle", "heading"}
    named = [
        (x["role"]["value"], x.get("name", {}).get("value", ""))
        for x in nodes
        if not x["ignored"] and x["role"]["value"] in controls
    ]
    assert len(named) > 12
    assert all(name for _, name in named)
    assert {"alert", "status", "main"} <= {x["role"]["value"] for x in nodes if "role" in x}
