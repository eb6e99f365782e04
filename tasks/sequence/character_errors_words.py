"""The texts of the pictures of a character model's errors, and the names of their kinds."""

from __future__ import annotations

GROUPS: dict[str, str] = {
    "n_gram": "n-gram of the training text", "memory": "word seen shortly before", "rare_word": "rare word",
    "word_start": "first letter of a word", "punctuation": "punctuation mark", "word_end": "blank or end of line",
    "near_miss": "near miss", "other": "anything else",
}  # fmt: skip
"""Titles of the kinds; those of several lengths under one."""


def group_of(kind: str) -> str:
    return next(group for group in GROUPS if kind == group or kind.startswith(f"{group}_"))


def title_of(kind: str) -> str:
    """`n_gram_3` as “3-gram of the training text”, `memory_50` as “word seen within 50 characters”."""
    group, length = group_of(kind), kind.rsplit("_", 1)[-1]
    if group == "n_gram":
        return f"{length}-gram of the training text"
    return f"word seen within {length} characters" if group == "memory" else GROUPS[group]


WORDS: dict[str, dict[str, str]] = {
    "types": {
        "shows": "What would have avoided the model's errors: the share of all characters that are errors of each kind, with bootstrap intervals; an error belongs to the first line from above that avoids it. {untaught}",
        "reading": "Errors in the n-gram lines are cheap ones: a table of the training text knows better. Errors in the memory lines need the words just before, those below need what no window of the text tells. Crosses are the first checkpoint.",
        "caution": "At step {step} {rate:.1%} of {n} characters are errors, that is, got less than a half; the largest kind is “{largest}” with {share:.0%} of them. The order decides: an error that a 4-gram and a memory both avoid counts as the 4-gram's. {tables}",
        "audience": "For people who wonder whether more memory, more data or a larger model would help.",
        "practitioner": "Large n-gram lines ask for more training; memory lines for a longer context; rare words and first letters for more data.",
        "researcher": "After Karpathy et al. 2015, section 4.4, with these oracles: unsmoothed n-grams above 0.5, a word's earlier appearance within the same sample only, words with at most {rare} appearances in the training text. Words are cut at the edges of samples, which makes a few rarer than they are.",
    },
    "texts": {
        "shows": "Texts of the probe, each character coloured by the probability that the model gave it before it came; the green strip marks errors, which got less than a half.",
        "reading": "Pale characters surprised the model. Words usually begin pale and end dark; pale letters inside words are names, rare words or new turns.",
        "caution": "At step {step} the mean loss is {loss:.2f} nats a character, {rate:.1%} of all characters are errors; in these {shown} texts it is {shown_rate:.1%}. A sample begins without any past, so its first characters are harder than they would be inside a text. {worst}",
        "audience": "For readers who want to see where a language model is wrong.",
        "practitioner": "Slide over the steps: what turns dark early is what is learned first.",
        "researcher": "Softmax probability of the target at each position, in double precision from the network's single-precision logits.",
    },
    "history": {
        "shows": "What the errors of each kind are of all characters, at each checkpoint; the bands add up to the error rate.",
        "reading": "A band that thins out is a kind of error that the model has learned to avoid. Bands that keep their width need something else than more of this training.",
        "caution": "From step {first} to {last} the error rate goes from {start:.1%} to {end:.1%}; “{fallen}” fell most, by {fall:.1%} of all characters, and “{stayed}” least, by {stay:+.1%}. An error can move from band to band: what an n-gram explains at first may later be a near miss.",
        "audience": "For people who decide whether to go on training.",
        "practitioner": "When only first letters and the rest still matter, longer training buys little.",
        "researcher": "The oracles are the same at every checkpoint; only which characters are errors changes.",
    },
}  # fmt: skip
