"""Sentences for the experiments: where they are read from, and how they become integers."""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import LabError

VADER = "vaderSentiment-3.3.2.tar.gz"
"""A source distribution (MIT licence) whose additional resources include rated sentences."""
GET_VADER = "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2"
SNIPPETS = {
    "amazon": ("amazonReviewSnippets", "product reviews"),
    "movie": ("movieReviewSnippets", "film reviews"),
    "nyt": ("nytEditorialSnippets", "editorials"),
    "tweets": ("tweets", "tweets"),
}
"""The file of each, and what is in it."""
LENGTH = 32
"""Tokens per sentence; the rest is cut off. One film review in eleven is longer."""
TOKENS = 8192
"""The number of different tokens: 0 stands for no token, at the end of a short sentence."""

_TOKEN = re.compile(r"[\w']+|[!?.]")


def snippets(archive: Path, kind: str) -> list[tuple[str, float]]:
    """The sentences of one of `SNIPPETS` in `VADER`, each with its mean rating.

    Ratings go from −4, negative, to 4. From Hutto & Gilbert, "VADER: A Parsimonious Rule-based
    Model for Sentiment Analysis of Social Media Text" (ICWSM 2014).

    Raises
    ------
    LabError
        if the archive is not what it should be
    """
    try:
        with tarfile.open(archive) as source:
            ending = "additional_resources/hutto_ICWSM_2014.tar.gz"
            (name,) = [name for name in source.getnames() if name.endswith(ending)]
            inner = source.extractfile(name)
            assert inner is not None
            with tarfile.open(fileobj=io.BytesIO(inner.read())) as nested:
                file = nested.extractfile(f"hutto_ICWSM_2014/{SNIPPETS[kind][0]}_GroundTruth.txt")
                assert file is not None
                text = file.read().decode("utf-8", "replace")
    except (OSError, tarfile.TarError, ValueError, KeyError) as error:
        raise LabError(f"{archive} is not {VADER}: {error}") from None
    # A line has a number, a rating and a text.
    rows = (line.split("\t") for line in text.splitlines())
    return [(row[2], float(row[1])) for row in rows if len(row) == 3]


def encode(sentences: Sequence[str]) -> Tensor:
    """(n, LENGTH) int64: the words and punctuation marks of each sentence.

    A word gets the remainder of its CRC-32, so that no vocabulary has to be learnt from the
    samples. Words that share a number can't be told apart.
    """
    numbers = torch.zeros(len(sentences), LENGTH, dtype=torch.int64)
    for row, sentence in zip(numbers, sentences, strict=True):
        words = _TOKEN.findall(sentence.lower())[:LENGTH]
        row[: len(words)] = torch.tensor(
            [1 + zlib.crc32(word.encode()) % (TOKENS - 1) for word in words], dtype=torch.int64
        )
    return numbers
