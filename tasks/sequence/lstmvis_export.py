"""States, words and a description in the layout that LSTMVis reads, from what `state_patterns` stored with `keep_states`.

Three files lie beside each other: `states.hdf5` (a matrix (step, unit) for each layer and kind of state), `words.hdf5`
(`word_ids` (step,)), and `words.dict` (a word and its number in each line), told to LSTMVis by `lstm.yml`. The samples stand
one behind the other, without padding; `samples.csv` says where each begins.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.errors import ConfigurationError, StoreError, did_you_mean
from stratascope.storage.archive import join_path
from stratascope.storage.names import decode_path_part, encode_path_part, step_directory
from stratascope.storage.probes import read_probe
from stratascope.storage.store import Store
from stratascope.tasks.sequence.sequence_samples import names_of

_TYPES = {"cell": "state", "hidden": "output"}


def export_lstmvis(
    store: str | Path, run: str, step: int, folder: str | Path, *, probe: str = "test", layers: Sequence[str] = ()
) -> list[Path]:
    """Write the states of one checkpoint into `folder`, which is made, for LSTMVis to read; returns the files.

    `layers` are recurrent layers (`recurrent.l1`), all stored ones by default. States are those of `state_patterns`, which
    must have run with `keep_states: true`: tanh of cell states (LSTMVis's type `state`) and hidden states (`output`), float32
    as widened from the stored float16. Raises StoreError where they are not stored, ConfigurationError where h5py is missing
    or a layer is unknown.
    """
    try:
        import h5py
    except ImportError:
        raise ConfigurationError("the export needs h5py: pip install 'stratascope[lstmvis]'.") from None
    opened = Store.open(store)
    states = _stored_states(opened, run, step, probe)
    known = list(dict.fromkeys(layer for _, layer, _ in states))
    for layer in layers:
        if layer not in known:
            raise ConfigurationError(
                f"no states of layer {layer!r} are stored; there are {', '.join(known)}."
                + did_you_mean(layer, known)
            )
    wanted = {key: path for key, path in states.items() if not layers or key[1] in layers}
    inputs = sorted({name for name, _, _ in wanted})
    if len(inputs) > 1:
        raise ConfigurationError(
            f"layers of several inputs are stored ({', '.join(inputs)}), which have different words: name `layers` of one."
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    ids, real, words = _sequence(opened, run, step, probe, inputs[0], target)
    described = []
    with h5py.File(target / "states.hdf5", "w") as file:
        for number, ((_, layer, kind), path) in enumerate(sorted(wanted.items())):
            # The stored array is (sample, token, unit); what counts of it becomes one sequence.
            file[f"states{number}"] = opened.array(path)[real].astype(np.float32)
            described.append(
                {
                    "type": _TYPES[kind],
                    "layer": known.index(layer) + 1,
                    "path": f"states{number}",
                    "transform": "raw",
                }
            )
    with h5py.File(target / "words.hdf5", "w") as file:
        file["word_ids"] = ids.astype(np.int64)
    (target / "words.dict").write_text(
        "".join(f"{word} {number}\n" for number, word in enumerate(words)), encoding="utf-8"
    )
    _describe(target / "lstm.yml", f"{run} step {step}", probe, described)
    return [target / name for name in ("lstm.yml", "states.hdf5", "words.hdf5", "words.dict", "samples.csv")]


def _stored_states(store: Store, run: str, step: int, probe: str) -> dict[tuple[str, str, str], str]:
    """Paths of the stored states by (input, layer, kind). Raises StoreError where there are none."""
    root = join_path("runs", run, step_directory(step), "state_patterns", encode_path_part(probe))
    found = {}
    for path in store.list_arrays(root):
        parts = [decode_path_part(part) for part in path[len(root) + 1 :].split("/")]
        if len(parts) == 4 and parts[3] == "states":
            found[parts[0], parts[1], parts[2]] = path
    if not found:
        raise StoreError(
            f"no states of run {run!r}, step {step}, probe {probe!r} are stored: audit with "
            "`analyses: {state_patterns: {keep_states: true}}`."
        )
    return found


def _sequence(
    store: Store, run: str, step: int, probe: str, name: str, target: Path
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The codes of all real tokens (step,), which tokens are real (sample, token), and the words; writes `samples.csv`."""
    place = ("runs", run, step_directory(step), "state_patterns", encode_path_part(probe), encode_path_part(name))
    path = join_path(*place, "tokens")
    if not store.has_array(path):
        raise StoreError(f"the samples of probe {probe!r} have no codes: LSTMVis reads words only.")
    real = store.array(join_path(*place, "real")).astype(bool)
    codes, ids = store.array(path), store.array(join_path(*place, "sample_id"))
    lengths = real.sum(1)
    with open(target / "samples.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("sample_id", "first_step", "steps"))
        writer.writerows(zip(ids.tolist(), (np.cumsum(lengths) - lengths).tolist(), lengths.tolist(), strict=True))
    names = names_of(read_probe(store, probe), "" if name == "input" else name)
    return codes[real], real, dictionary_words(names, int(codes[real].max(initial=0)) + 1)


def dictionary_words(names: Sequence[str], count: int) -> list[str]:
    """A word for each code below `count`, as a line of the dictionary can hold it: without blanks, and no word twice.

    Blanks, line feeds and tabs become ␣, ↵ and →; a word that is there already gets its code behind it.
    """
    marks = {" ": "␣", "\n": "↵", "\t": "→"}
    found: list[str] = []
    seen: set[str] = set()
    for code in range(max(count, len(names))):
        raw = names[code] if code < len(names) else str(code)
        word = "".join(
            marks.get(letter, f"U+{ord(letter):04X}" if letter.isspace() or not letter.isprintable() else letter)
            for letter in raw
        )
        if not word or word in seen:
            word = f"{word}#{code}"
        seen.add(word)
        found.append(word)
    return found


def _describe(path: Path, name: str, probe: str, types: list[dict[str, Any]]) -> None:
    """`lstm.yml`: JSON is YAML, and quotes names as they need it."""
    described = {
        "name": name,
        "description": f"states of probe {probe}; cell states are tanh already",
        "files": {"states": "states.hdf5", "word_ids": "words.hdf5", "words": "words.dict"},
        "word_sequence": {"file": "word_ids", "path": "word_ids", "dict_file": "words"},
        "states": {"file": "states", "types": types},
    }
    path.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
