"""The page's kernel: the vectors of Python's, with the same verdict, step, reason and words."""

from __future__ import annotations

SMALL_KINDS = (
    "root", "inclusion", "consistency", "commitment",
    "note", "vkey", "tree_head", "signed_tree_head",
)  # fmt: skip


def test_every_bundle_vector_ends_as_it_says(judge, bundle_cases, vectors):
    assert len(bundle_cases) > 200
    answers = judge([(data, trust) for _, data, trust in bundle_cases])
    for (name, _, _), answer in zip(bundle_cases, answers, strict=True):
        report, expect = answer["report"], vectors[name]["expect"]
        said = {"verdict": report["verdict"].upper(), "exit_code": report["exit_code"]}
        if said["verdict"] != "VERIFIED":
            word = {"failed": "failed", "unreadable": "unreadable", "inconclusive": "not_shown"}
            wanted = word[report["verdict"]]
            check = next(x for x in report["checks"] if x["state"] == wanted)
            said |= {"step": check["step"], "error": check["reason"]}
        assert (name, said) == (name, expect)


def test_every_smaller_vector_ends_as_it_says(ask, vectors):
    cases = {name: x for name, x in sorted(vectors.items()) if x["kind"] in SMALL_KINDS}
    answers = ask([(x["kind"], x["input"]) for x in cases.values()])
    for (name, vector), answer in zip(cases.items(), answers, strict=True):
        answer.pop("message", None)
        assert (name, answer) == (name, {key: vector[key] for key in answer})
    assert len(cases) > 100


def test_all_proofs_of_all_sizes_fold_into_the_same_hash(ask, vectors):
    vector = vectors["accumulated"]
    (answer,) = ask([("accumulated", vector["input"])])
    assert answer == {"expect": "ok", "sha256": vector["sha256"]}
