"""Parallel text: sentences in two languages, as words with numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from stratascope.errors import ProbeError
from stratascope.storage.datasets.compressed import read_bounded
from stratascope.storage.datasets.dataset import Dataset

PADDING, UNKNOWN, BEGIN, END = range(4)
MARKS = ("<pad>", "<unk>", "<bos>", "<eos>")
SPLITS = {"train": "train", "val": "val", "test": "test_2016_flickr", "test_2017": "test_2017_flickr"}
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_LARGEST = 1 << 26


def words_of(sentence: str) -> list[str]:
    """Lower-case words (with inner hyphens and apostrophes) and punctuation marks."""
    return _WORD.findall(sentence.lower())


def build_vocabulary(sentences: Iterable[Sequence[str]], minimum_count: int) -> tuple[str, ...]:
    """Words by token id: the four marks, then by falling count, equal counts in the order of their characters."""
    counts = Counter(word for sentence in sentences for word in sentence)
    kept = [word for word, count in counts.items() if count >= minimum_count]
    return MARKS + tuple(sorted(kept, key=lambda word: (-counts[word], word)))


def source_files(folder: Path, split: str, languages: tuple[str, str]) -> list[Path]:
    """The files of `split`, source first, and those of `train`, which the vocabulary comes from.

    Raises ProbeError where one is missing.
    """
    found = []
    for stem in dict.fromkeys((SPLITS[split], SPLITS["train"])):
        for language in languages:
            candidates = [folder / f"{stem}.{language}.gz", folder / f"{stem}.{language}"]
            existing = [path for path in candidates if path.exists()]
            if not existing:
                raise ProbeError(
                    f"data set 'multi30k': {candidates[0]} is missing. `stratascope data get multi30k` fetches "
                    "it, or set STRATASCOPE_DATA to the folder that has it."
                )
            found.append(existing[0])
    return found


def load(
    folder: Path,
    split: str,
    languages: tuple[str, str],
    minimum_count: int,
    length: int,
    longest: int | None = None,
) -> Dataset:
    """Token ids int64 of `length` places, padded with 0.

    `inputs` are `source` (words, then end) and `target` (begin, then words: what a decoder is shown); `targets`
    are (words, then end: what it is to say), with 0 in the padding. Longer sentences are cut. `masks` tell the
    real tokens of both inputs; the target's mask holds for `targets` too. With `longest`, pairs of which a sentence has
    more words are left out, from the vocabulary too. A sample's id is its line in the files, from 0.
    """
    paths = source_files(folder, split, languages)
    chosen = [_sentences(path) for path in paths[:2]]
    training = [_sentences(path) for path in paths[2:]] or chosen
    if len(chosen[0]) != len(chosen[1]):
        raise ProbeError(
            f"{paths[0]} has {len(chosen[0])} lines, {paths[1].name} has {len(chosen[1])}: they are no pairs."
        )
    lines, chosen = _short(chosen, longest)
    words = [build_vocabulary(sentences, minimum_count) for sentences in _short(training, longest)[1]]
    source, target = (_codes(sentences, known) for sentences, known in zip(chosen, words, strict=True))
    inputs = {
        "source": _padded([[*codes[: length - 1], END] for codes in source], length),
        "target": _padded([[BEGIN, *codes[: length - 1]] for codes in target], length),
    }
    return Dataset(
        inputs,
        _padded([[*codes[: length - 1], END] for codes in target], length),
        kind="text",
        sample_id=lines,
        masks={name: values != PADDING for name, values in inputs.items()},
        names={"source": words[0], "target": words[1]},
    )


def _short(pairs: list[list[list[str]]], longest: int | None) -> tuple[np.ndarray, list[list[list[str]]]]:
    """Numbers int64 of the lines of which both sentences have at most `longest` words, and these sentences."""
    kept = [
        line
        for line, pair in enumerate(zip(*pairs, strict=False))
        if longest is None or max(map(len, pair)) <= longest
    ]
    return np.array(kept, np.int64), [[sentences[line] for line in kept] for sentences in pairs]


def _sentences(path: Path) -> list[list[str]]:
    try:
        text = read_bounded(path, _LARGEST).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProbeError(f"{path} is no UTF-8 text: {error}.") from None
    # Only a line feed ends a line here; str.splitlines knows more ends and would part pairs.
    return [words_of(line) for line in text.removesuffix("\n").split("\n")]


def _codes(sentences: Iterable[Sequence[str]], vocabulary: Sequence[str]) -> list[list[int]]:
    known = {word: code for code, word in enumerate(vocabulary)}
    return [[known.get(word, UNKNOWN) for word in sentence] for sentence in sentences]


def _padded(sentences: Sequence[Sequence[int]], length: int) -> np.ndarray:
    padded = np.full((len(sentences), length), PADDING, np.int64)
    for row, codes in enumerate(sentences):
        padded[row, : len(codes)] = codes
    return padded
