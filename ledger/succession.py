"""Which keys sign which tree heads: what a registry log says about the keys of all logs.

Keys change in two steps (`FORMAT.md`, section 11). A *rotation* adds a new generation of
keys to every open log: from one size on, the old and the new keys sign together. Later the
old ones are *retired*. Both are said in the registry log, and by each log about itself,
under tree heads that the old keys have signed too: who trusts those can find the new ones.

Standard library and kernel only: operator, fsck and auditor read the same entries by this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.errors import Inconsistent, MalformedBundle
from rlhf_audit_trail.ledger.proof.note import VerifierKey

__all__ = [
    "KEY_KINDS",
    "OPENED",
    "REGISTRY",
    "RETIRED",
    "ROTATED",
    "Era",
    "KeyHistory",
    "Link",
    "Succession",
    "parse_keys",
]

REGISTRY: Final = "registry"
OPENED: Final = "run.opened"
ROTATED: Final = "keys.rotated"
RETIRED: Final = "keys.retired"
KEY_KINDS: Final = (ROTATED, RETIRED)
"""The kinds of event that change keys."""

Keys = tuple[VerifierKey, ...]


@dataclass(frozen=True)
class Era:
    """From which tree size on which keys sign a log, all of them together.

    Attributes:
        from_size: the smallest tree size that these keys may sign.
        generations: numbers of the operator's secrets behind the keys, growing.
        keys: for each generation Ed25519, then ML-DSA-44.
    """

    from_size: int
    generations: tuple[int, ...]
    keys: Keys

    @property
    def key_text(self) -> str:
        """The keys as a file holds them, one vkey a line."""
        return "".join(f"{key}\n" for key in self.keys)


@dataclass(frozen=True)
class KeyHistory:
    """One log's keys through all its eras, of which there is always one."""

    origin: str
    eras: tuple[Era, ...]

    @classmethod
    def begin(cls, origin: str, keys: Iterable[VerifierKey], generation: int = 1) -> KeyHistory:
        """Return the history of a log whose keys were never rotated."""
        return cls(origin, (Era(0, (generation,), tuple(keys)),))

    @property
    def first(self) -> Keys:
        """The keys with which the log began; they name it on a chain for ever."""
        return self.eras[0].keys

    @property
    def now(self) -> Keys:
        """The keys that sign the log's next tree head."""
        return self.eras[-1].keys

    def at(self, tree_size: int) -> Keys:
        """Return the keys that must have signed a tree head of this size."""
        return next(era.keys for era in reversed(self.eras) if era.from_size <= tree_size)

    def add(self, era: Era) -> KeyHistory:
        """Return the history with one more era; raises Inconsistent if it begins too early."""
        if era.from_size < self.eras[-1].from_size:
            raise Inconsistent(f"the keys of {self.origin} change before their last change")
        return replace(self, eras=(*self.eras, era))


@dataclass(frozen=True)
class Link:
    """One rotation of a log's keys, as the log itself says it: it leads from old to new.

    Attributes:
        index: leaf index of `keys.rotated` in the log.
        old_keys: who must have signed a tree head that holds this entry.
        new_keys: whom that head makes believable.
        tree_head: such a signed tree head, from `keys.retired`; empty during the overlap,
            when the newest tree head is one.
    """

    index: int
    old_keys: Keys
    new_keys: Keys
    tree_head: str = ""


@dataclass
class Succession:
    """Follows what a log says about keys, entry by entry; not safe to share between threads.

    The registry log speaks of all logs, a run's log of itself only.

    Attributes:
        run: id of the log that is followed.
        origin: its origin.
        histories: run id to keys, of this log and of those that it speaks of.
        generation: number of the newest generation, from 1.
        is_overlapping: whether the generation before it still signs as well.
        links: the rotations of the log's own keys, in order.
    """

    run: str
    origin: str
    histories: dict[str, KeyHistory]
    generation: int = 1
    is_overlapping: bool = False
    links: list[Link] = field(default_factory=list)

    @classmethod
    def begin(
        cls, origin: str, keys: Iterable[VerifierKey], *, run: str = REGISTRY, generation: int = 1
    ) -> Succession:
        """Begin at a log's first entry, with its first keys."""
        return cls(run, origin, {run: KeyHistory.begin(origin, keys, generation)}, generation)

    def copy(self) -> Succession:
        """Return one that goes on from here by itself."""
        return replace(self, histories=dict(self.histories), links=list(self.links))

    @property
    def generations(self) -> tuple[int, ...]:
        """The generations of which a key may sign now."""
        return tuple(range(self.generation - self.is_overlapping, self.generation + 1))

    def see(self, index: int, record: Mapping[str, Any]) -> None:
        """Take the next entry; kinds that say nothing about keys are passed over.

        Raises:
            Inconsistent: it contradicts earlier entries.
            MalformedBundle: a field is missing or no key.
        """
        read = {OPENED: self._opened, ROTATED: self._rotated, RETIRED: self._retired}
        taken = read.get(str(record.get("kind")))
        if taken is None:
            return
        try:
            taken(index, record)
        except (KeyError, TypeError, ValueError) as error:
            what = f"entry {index:,} of {self.origin} has unreadable keys"
            raise MalformedBundle(what) from error
        except Inconsistent as error:
            error.message = f"entry {index:,} of {self.origin}: {error.message}"
            raise

    def _opened(self, _index: int, record: Mapping[str, Any]) -> None:
        if self.run != REGISTRY:  # which alone speaks of others
            return
        run, origin = str(record["run"]), str(record["origin"])
        keys = parse_keys(record["log_keys"], origin)
        history = KeyHistory.begin(origin, keys, self.generation)
        earlier = self.histories.setdefault(run, history)
        if (earlier.origin, earlier.first) != (origin, keys):
            raise Inconsistent(f"run {run!r:.120} is opened again, with another origin or keys")

    def _rotated(self, index: int, record: Mapping[str, Any]) -> None:
        run, generation, history = self._of(record)
        old, new = self._keys(record, "old_keys"), self._keys(record, "new_keys")
        if run == self.run:  # in the registry log it comes first, those of the runs follow
            self._require(not self.is_overlapping and generation == self.generation + 1)
            self.generation, self.is_overlapping = generation, True
            self.links.append(Link(index, old, new))
        self._require(self.is_overlapping and generation == self.generation)
        self._require(old == history.now and not set(new) & set(old))
        generations = (*history.eras[-1].generations, generation)
        self._add(run, Era(_size(record), generations, (*old, *new)))

    def _retired(self, _index: int, record: Mapping[str, Any]) -> None:
        run, generation, history = self._of(record)
        old = self._keys(record, "old_keys")
        left = tuple(key for key in history.now if key not in old)
        self._require(self.is_overlapping and generation == self.generation - 1)
        self._require(history.now == (*old, *left) and bool(left))
        self._add(run, Era(_size(record), (self.generation,), left))
        if run == self.run:  # in the registry log it comes last
            self.is_overlapping = False
            self.links[-1] = replace(self.links[-1], tree_head=str(record["tree_head"]))

    def _of(self, record: Mapping[str, Any]) -> tuple[str, int, KeyHistory]:
        run, generation = str(record["run"]), record["generation"]
        self._require(run in self.histories and type(generation) is int)
        self._require(self.histories[run].origin == record["origin"])
        return run, generation, self.histories[run]

    def _keys(self, record: Mapping[str, Any], name: str) -> Keys:
        return parse_keys(record[name], str(record["origin"]))

    def _add(self, run: str, era: Era) -> None:
        self.histories[run] = self.histories[run].add(era)

    @staticmethod
    def _require(is_so: bool) -> None:  # noqa: FBT001 - a statement, not an option
        if not is_so:
            raise Inconsistent("what it says about keys does not follow from the entries before it")


def parse_keys(texts: Any, origin: str) -> Keys:
    """Read an event's list of vkeys.

    Raises:
        MalformedBundle: not a list of vkeys, or of another log.
    """
    if not isinstance(texts, list) or not texts:
        raise MalformedBundle("a list of keys is no list, or empty")
    keys = tuple(VerifierKey.parse(str(text)) for text in texts)
    if any(key.name != origin for key in keys):
        raise MalformedBundle("a key is of another log than its entry says")
    return keys


def _size(record: Mapping[str, Any]) -> int:
    size = record["from_size"]
    if type(size) is not int or size < 0:
        raise MalformedBundle("from_size is no tree size")
    return size
