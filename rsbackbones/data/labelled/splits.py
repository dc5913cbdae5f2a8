"""Splits: those of the files, those of the user's lists, or a seeded split.

Seeded splits and shares depend on a hash of each sample's id, not on its position: they do not change when
samples are added, and 1 % of the training samples is part of 10 % of them. The notes name them, as they are
no paper's split.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from rsbackbones.data.labelled.dataset import SPLITS, LabelledDataset

Indices = npt.NDArray[np.int64]
# A file of "id,split" rows, or of training ids, one on each line; or by split a file of ids.
Lists = str | Path | Mapping[str, str | Path]
TEST_SHARE = 0.2
_SHOWN = 5
_WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def split_of(word: str) -> str | None:
    """Return the split that a word names (``valid`` and ``validation`` are ``val``), or ``None``."""
    return _WORDS.get(word.strip().lower())


def assign_splits(
    data: LabelledDataset,
    *,
    lists: Lists | None = None,
    subset: float | None = None,
    seed: int = 0,
    stratify: bool = True,
) -> LabelledDataset:
    """Return the data set with its final splits, see :func:`choose_splits`, and notes on what was decided.

    Raises:
        ValueError: as :func:`choose_splits`, or all training samples are of one class.
    """
    classes = None if data.labels is None or data.labels.ndim > 1 else data.labels
    try:
        choose = partial(
            choose_splits, data.ids, classes.tolist() if classes is not None and stratify else None,
            data.splits, lists=lists, seed=seed,
        )  # fmt: skip
        splits, notes = choose(subset=subset)
    except ValueError as error:
        raise ValueError(f"{data.name}: {error}") from error
    if classes is not None and len(np.unique(classes[splits["train"]])) < 2:
        raise ValueError(
            f"{data.name}: all {len(splits['train'])} training samples are of one class; take more of them"
        )
    statistics = data.statistics
    if statistics is not None and (lists is not None or not data.splits):
        # Of all training samples, also where a subset trains.
        training, _ = choose(subset=None)
        statistics = partial(statistics, [data.ids[i] for i in training["train"]])
    return replace(data, splits=splits, statistics=statistics, notes=(*data.notes, *notes))


def choose_splits(
    ids: Sequence[str],
    classes: Sequence[int] | None,
    stated: Mapping[str, Indices],
    *,
    lists: Lists | None = None,
    subset: float | None = None,
    seed: int = 0,
) -> tuple[dict[str, Indices], list[str]]:
    """Return by split the indices of its samples, and notes on what was decided here.

    1. ``lists`` decide where they are given. Where they name no test samples, what they do not name is as the
       set has it; of a set without splits the rest of a list of training samples is test.
    2. Else the set's own splits. One without a test split is tested on its ``val`` split.
    3. Else 80 % train and 20 % test, by hash of the id; of every class, where a sample has one.

    ``subset`` then keeps a share of the training samples, those of the lowest hashes of ``"{seed}:{id}"``.

    Args:
        ids: of all samples, unique.
        classes: of all samples, or ``None`` where a sample has not one class.
        stated: the splits that the data set states (:func:`stated_splits`); empty where it states none.
        lists: a file with ``ID,SPLIT`` on each line; or one with an id on each line, of training samples; or
            by split such files. An id is that of the set; its file name, with or without suffix, is
            understood where it is unique.
        subset: more than 0, at most 1.
        seed: of the seeded split and share.

    Raises:
        ValueError: an unknown split or id, a sample in two splits, no training or no test samples, an empty
            split, or a share out of range.
    """
    notes: list[str] = []
    given = dict(stated)
    if lists is not None:
        given = _listed(ids, lists, given)
    elif not given:
        given = _hashed(ids, classes, seed)
        how = "stratified, " if classes is not None else ""
        notes.append(
            f"no split given: seeded, {how}by hash of the id (seed {seed}): {len(given['train'])} train, "
            f"{len(given['test'])} test"
        )
    elif set(given) == {"train"}:
        raise ValueError("the set has training samples only; pass a split file, or leave the splits out")
    if "train" not in given:
        raise ValueError(f"no training samples: the splits are {', '.join(given) or 'empty'}")
    if "test" not in given and "val" in given:
        given["test"] = given.pop("val")
        notes.append("no test split is named: the validation split is tested on")
    if empty := [name for name, indices in given.items() if not len(indices)]:
        raise ValueError(f"the {' and '.join(empty)} split is empty")
    if "test" not in given:
        raise ValueError("there are no test samples")
    if subset is not None:
        if not 0 < subset <= 1:
            raise ValueError(f"subset must be more than 0 and at most 1 (0.1 is 10 %), got {subset}")
        given["train"], note = _share_of(given["train"], ids, subset, seed)
        notes.append(note)
    return {name: given[name] for name in SPLITS if name in given}, notes


def training_share(data: LabelledDataset, share: float, *, seed: int) -> LabelledDataset:
    """Return the data set with a share of its training samples, as ``subset`` of :func:`choose_splits`."""
    train, note = _share_of(data.splits["train"], data.ids, share, seed)
    return replace(data, splits={**data.splits, "train": train}, notes=(*data.notes, note))


def _share_of(train: Indices, ids: Sequence[str], share: float, seed: int) -> tuple[Indices, str]:
    kept = np.sort(_lowest_hashes(train, ids, f"{seed}:", max(1, round(share * len(train)))))
    return kept, (
        f"training samples: a seeded {100 * share:g} % by hash of the id (seed {seed}), {len(kept)} of "
        f"{len(train)}; not the list of any paper"
    )


def read_ids(path: str | Path) -> list[str]:
    """Read a file with one id on each line; empty lines are left out.

    Raises:
        ValueError: the file cannot be read, or holds no id.
    """
    found = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{path} holds no id")
    return found


def find_ids(ids: Sequence[str], wanted: Iterable[str], where: str) -> list[int]:
    """Return where in ``ids`` the wanted ones are, in their order.

    Raises:
        ValueError: some are not there, or one is wanted twice; ``where`` names the list in the message.
    """
    wanted = list(wanted)
    places = {name: place for place, name in enumerate(ids)}
    for short in (_file_name, _stem):
        count = Counter(map(short, ids))
        for place, name in enumerate(ids):
            if count[short(name)] == 1:
                places.setdefault(short(name), place)
    # A list of .jpg names serves a set of .tif files.
    found = [places.get(name, places.get(_stem(name))) for name in wanted]
    if missing := [name for name, place in zip(wanted, found, strict=True) if place is None]:
        raise ValueError(
            f"{where}: {len(missing)} of {len(wanted)} ids are not in the set: {_shorten(missing)}; its ids "
            f"look like {ids[0]!r}"
        )
    held = [place for place in found if place is not None]
    if twice := [ids[place] for place, count in Counter(held).items() if count > 1]:
        raise ValueError(f"{where}: {len(twice)} ids are named more than once: {_shorten(twice)}")
    return held


def stated_splits(ids: Sequence[str], words: Sequence[str | None] | None) -> dict[str, Indices]:
    """Return the indices of every split, from the word of every sample; ``None`` or empty: it is in none.

    Raises:
        ValueError: a word that names no split.
    """
    members: dict[str, list[int]] = {}
    for place, word in enumerate(words or ()):
        if word is None or not word.strip():
            continue
        name = split_of(word)
        if name is None:
            raise ValueError(f"{ids[place]}: unknown split {word!r}; known: {', '.join(SPLITS)}")
        members.setdefault(name, []).append(place)
    return {name: np.array(places, np.int64) for name, places in members.items()}


def _listed(ids: Sequence[str], lists: Lists, stated: Mapping[str, Indices]) -> dict[str, Indices]:
    if isinstance(lists, Mapping):
        named = {}
        for word, path in lists.items():
            name = split_of(word)
            if name is None or name in named:
                raise ValueError(f"split {word!r}: name each of {', '.join(SPLITS)} once at most")
            named[name] = np.array(find_ids(ids, read_ids(path), str(path)), np.int64)
    else:
        rows = _rows(lists)
        places = find_ids(ids, [name for name, _ in rows], str(lists))
        words: list[str | None] = [None] * len(ids)
        for place, (_, word) in zip(places, rows, strict=True):
            words[place] = word
        named = stated_splits(ids, words)
    for name in named:
        for other in named:
            if name < other and len(both := np.intersect1d(named[name], named[other])):
                raise ValueError(
                    f"{len(both)} samples are in the {name} and the {other} list: "
                    f"{_shorten([ids[i] for i in both])}"
                )
    if "test" in named:
        return named
    if not stated and set(named) == {"train"}:
        return {**named, "test": np.setdiff1d(np.arange(len(ids)), named["train"])}
    kept: dict[str, Indices] = {k: stated[k] for k in ("val", "test") if k in stated and k not in named}
    for other in kept:
        for name in named:
            if len(both := np.intersect1d(named[name], kept[other])):
                raise ValueError(
                    f"{len(both)} samples of the {name} list are in the set's {other} split: "
                    f"{_shorten([ids[i] for i in both])}"
                )
    return {**kept, **named}


def _rows(path: str | Path) -> list[tuple[str, str]]:
    """Read ids and their splits; of a plain list of ids they are training samples."""
    lines = read_ids(path)
    pairs = [line.rpartition(",") for line in lines]
    if lines[0].replace(" ", "").lower() == "id,split":
        lines, pairs = lines[1:], pairs[1:]
    elif not any(split_of(word) for _, _, word in pairs):
        return [(line, "train") for line in lines]
    if not lines:
        raise ValueError(f"{path} holds no id")
    for line, (name, _, word) in zip(lines, pairs, strict=True):
        if not name.strip() or not split_of(word):
            raise ValueError(f"{path}: expected ID,SPLIT with a split of {', '.join(SPLITS)}, got {line!r}")
    return [(name.strip(), word) for name, _, word in pairs]


def _hashed(ids: Sequence[str], classes: Sequence[int] | None, seed: int) -> dict[str, Indices]:
    groups: dict[int, list[int]] = {}
    for place in range(len(ids)):
        groups.setdefault(0 if classes is None else int(classes[place]), []).append(place)
    # A class of one sample stays in train: a test sample of a class never seen measures nothing.
    test = [
        _lowest_hashes(np.array(places), ids, f"split:{seed}:", max(1, round(TEST_SHARE * len(places))))
        for places in groups.values()
        if len(places) > 1
    ]
    if not test:
        raise ValueError(f"{len(ids)} samples are too few for a seeded split; pass one")
    chosen = np.sort(np.concatenate(test)).astype(np.int64)
    return {"train": np.setdiff1d(np.arange(len(ids)), chosen), "test": chosen}


def _lowest_hashes(places: npt.NDArray[np.int64], ids: Sequence[str], salt: str, count: int) -> Indices:
    ranked = sorted(
        places.tolist(), key=lambda place: hashlib.sha256(f"{salt}{ids[place]}".encode()).digest()
    )
    return np.array(ranked[:count], np.int64)


def _file_name(name: str) -> str:
    return PurePosixPath(name).name


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
