"""The findings of an audit, and how they are shown: as text, as HTML and as JSON."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._html import html_bar, html_block, html_cell, html_paragraph, html_table
from .._repeats import Repeat, masked, merged, repeats
from ._columns import aligned
from .keepers import Keeper

LEAN, LEAN_FUNCTIONAL, CODE = "lean", "lean_functional", "code"
"""The means by which an activation can be made to keep its output."""
MOST = 10
"""Rows of a table in a notebook before the others are folded away."""


@dataclass(frozen=True)
class Site:
    """One place in a model where an activation is applied, once or several times per pass."""

    name: str
    """The path of the module, or of the attribute that holds a function; for a function call, the
    path of the enclosing module.
    """
    line: str
    """For a function call: the file and the line."""
    function: str
    """mishkit's name for the function, or torch's."""
    how: str
    """The module's class; "call" for a function; "by hand" if it is composed of other operations;
    "autograd.Function" for a custom one that contains an activation; "scripted" in TorchScript.
    """
    calls: int
    shape: tuple[int, ...]
    """The shape of the first call's output. -1 marks a size that differs between items, as in
    nested tensors.
    """
    dtype: torch.dtype
    kept: int
    """Bytes that autograd keeps because this site asks for them, by distinct storage."""
    alone: int
    """The part of them that nothing else keeps."""
    output_kept_by: tuple[str, ...]
    """What else keeps the output: operator and module."""
    input_kept_by: tuple[str, ...]
    """What else keeps the tensors that this site keeps."""
    advice: str
    """"output": keep the output and the side instead; otherwise "leave"."""
    reason: str
    """The reason for the advice."""
    saving: int
    """Bytes saved by following the advice, given that it is followed at the other sites too."""
    inplace: bool
    """Whether the result overwrites the input: either it already does, or ``lean(inplace=True)``
    found that nothing else needs the input.
    """
    gate: bool
    """Whether the output is only multiplied by another tensor of its shape: ``act(g) * u``. `lean`
    computes that in one pass, which keeps g and u alone. For `mishkit.gate` itself `how` is "gate".
    """
    by: str
    """What can follow the advice: "lean" for a module or a function held as an attribute;
    "lean_functional" for a call of a torch function; "code" for a call of a mishkit function, where
    you have to write ``save="output"`` yourself. Empty if there is no advice.
    """

    @property
    def where(self) -> str:
        """The name; for a call, also the line."""
        return self._at(self.name)

    def _at(self, name: str) -> str:
        if not self.line:
            return name
        path, _, number = self.line.rpartition(":")
        return f"{name or '(model)'} ({Path(path).name}:{number})"

    @property
    def verdict(self) -> str:
        """What the site is, the advice and the reason, in one line."""
        return self._judged(self.reason)

    def _judged(self, reason: str) -> str:
        advice = "output, in place" if self.advice == "output" and self.inplace else self.advice
        shape = "×".join("?" if size < 0 else str(size) for size in self.shape)
        dtype = str(self.dtype).removeprefix("torch.")
        how = f"{self.how} of a gate" if self.gate else self.how
        return f"{how}, {shape} {dtype}: {advice}, {reason}"


@dataclass(frozen=True)
class Row:
    """Sites that repeated blocks have in common, or a single site."""

    sites: Repeat[Site]

    @property
    def where(self) -> str:
        """The common name; for calls, also the line; and how many sites there are."""
        return self.sites.items[0]._at(self.sites.name) + self.sites.times

    @property
    def function(self) -> str:
        """The function, and how often each site applies it."""
        site = self.sites.items[0]
        return site.function + (f" ×{site.calls}" if site.calls > 1 else "")

    @property
    def verdict(self) -> str:
        """What the sites are, the advice and the reason, in one line."""
        reasons = [site.reason for site in self.sites.items]
        return self.sites.items[0]._judged(merged(reasons))

    @property
    def kept(self) -> int:
        """The bytes that are kept for all of the sites."""
        return sum(site.kept for site in self.sites.items)

    @property
    def alone(self) -> int:
        """The part of them that nothing else keeps."""
        return sum(site.alone for site in self.sites.items)

    @property
    def saving(self) -> int | None:
        """The bytes saved by following the advice; None if that is to leave the sites."""
        if self.sites.items[0].advice != "output":
            return None
        return sum(site.saving for site in self.sites.items)


def _likeness(site: Site) -> tuple[Any, ...]:
    """What the sites of a row have in common."""
    return (
        *(site.function, site.how, site.calls, site.line, site.shape, site.dtype),
        *(site.advice, site.inplace, site.by, masked(site.reason)),
    )


@dataclass(frozen=True, repr=False)
class Report:
    """The result of an audit: print it, show it in a notebook, or read its attributes."""

    sites: tuple[Site, ...]
    """In order of first call."""
    kept: int
    """Bytes that autograd keeps between the forward and the backward pass, by distinct storage,
    without parameters, buffers and inputs.
    """
    lean: int
    """The same after all the advice is followed."""
    checkpointed: int | None
    """The same with `torch.utils.checkpoint` around each block and no other changes. None if there
    are no blocks, or if one of them can't be checkpointed.
    """
    blocks: tuple[str, ...]
    """The blocks: items of containers that hold activations."""
    after_lean: int
    """Bytes kept after `lean`, which does not change function calls."""
    changed: tuple[str, ...] | None = None
    """The names of the sites that `lean` has changed; None if this was only an audit."""
    norms: tuple[str, ...] = ()
    """The names of the RMS norms that `lean` made run in one pass."""
    recomputes: bool = False
    """Whether `lean` made the model recompute. If so, `after_lean` and `lean` are what it keeps."""
    keepers: tuple[Keeper, ...] = ()
    """From an audit: which operators keep these bytes, and how many could be recomputed."""
    curve: tuple[tuple[int, float], ...] = ()
    """With a budget: what recomputing more and more keeps, in bytes, and the time in seconds that
    it takes in a backward pass, from nothing recomputed to everything.
    """
    advised: AdvisedCalls = field(default_factory=lambda: AdvisedCalls(()), repr=False)
    """The calls that `lean_functional` should change."""

    @property
    def ratio(self) -> float:
        """Bytes kept once the advice is followed, divided by those kept now."""
        return self.lean / self.kept if self.kept else 1.0

    @property
    def lines(self) -> frozenset[str]:
        """The lines of code whose calls should keep the output, as file:line."""
        return frozenset(s.line for s in self.sites if s.line and s.advice == "output")

    def rows(self, top: int | None = None) -> list[Row]:
        """The sites, with those of repeated blocks in one row. The largest savings come first, then
        what keeps most. With `top`, only that many rows.
        """
        every = [Row(row) for row in repeats(self.sites, lambda site: site.name, _likeness)]
        every.sort(key=lambda row: (-(row.saving or 0), -row.kept))
        return every[:top]

    def __repr__(self) -> str:
        kept = f"kept {readable(self.kept)}"
        if self.changed is None:
            pays = sum(site.advice == "output" for site in self.sites)
            saving = readable(self.kept - self.lean)
            sites = f"{_sites(len(self.sites))}, {pays} of which {_pay(pays)}: {saving}"
            if self.recomputable:
                kept += f", {readable(self.recomputable)} recomputable"
            return f"<Report: {kept}; {sites}>"
        return f"<Report: {kept}, {readable(self.after_lean)} when lean; {self._done()}>"

    def __str__(self) -> str:
        return self.text()

    def text(self, top: int | None = None) -> str:
        """What ``print`` shows; with `top`, only that many rows of the table."""
        return "\n".join(line for line, _ in self.styled(top))

    def styled(self, top: int | None = None) -> list[tuple[str, str]]:
        """The lines of the text, each with its style: bold for what pays, dim for the verdicts."""
        changes = [(self._done(), "")] if self.changed is not None else []
        if self.recomputes:
            return [*changes, *((line, "") for line in self._totals())]
        rows = self.rows(top)
        cells = [("site", "function", "kept", "alone", "saves")]
        for row in rows:
            saves = "–" if row.saving is None else readable(row.saving)
            counts = (readable(row.kept), readable(row.alone), saves)
            cells.append((row.where, row.function, *counts))
        head, *lines = aligned(cells, numbers=(2, 3, 4))
        styled = [*changes, *([("", "")] if changes else []), (head, "")]
        for line, row in zip(lines, rows, strict=True):
            styled += [(line, "" if row.saving is None else "bold"), (f"    {row.verdict}", "dim")]
        hidden = len(self.sites) - sum(len(row.sites.items) for row in rows)
        if hidden:
            styled.append((f"and {_sites(hidden)} more", "dim"))
        return [*styled, ("", ""), *((line, "") for line in self.summary())]

    def _repr_html_(self) -> str:
        heads = [] if self.changed is None else [self._done()]
        heads += [] if self.recomputes else [self._counts()]
        parts = [html_paragraph(head, strong=True) for head in heads]
        parts += [html_bar(label, text, self._share(n)) for label, text, n in self._amounts()]
        if self.sites and not self.recomputes:
            rows = map(_cells, self.rows())
            parts.append(html_table(("site", "kept", "saves"), rows, (1, 2), MOST))
        return html_block(*parts)

    def to_json(self, *, top: int | None = None, indent: int | None = 2) -> str:
        """Everything as JSON, with the names of the attributes as keys; sizes are in bytes.

        There are also ``ratio`` and ``recomputable``. A site has its attributes and ``where``, a
        keeper its attributes, and a point of the curve ``kept`` and ``seconds``. With `top`, only
        that many sites and keepers are listed, those that save the most bytes first.
        """
        sites, keepers = list(self.sites), list(self.keepers)
        if top is not None:
            sites.sort(key=lambda site: (-site.saving, -site.kept))
            keepers.sort(key=lambda keeper: (-keeper.recomputable, -keeper.nbytes))
        plain = {
            "kept": self.kept,
            "after_lean": self.after_lean,
            "lean": self.lean,
            "ratio": self.ratio,
            "recomputable": self.recomputable,
            "recomputes": self.recomputes,
            "checkpointed": self.checkpointed,
            "blocks": self.blocks,
            "changed": self.changed,
            "norms": self.norms,
            "curve": [{"kept": kept, "seconds": seconds} for kept, seconds in self.curve],
            "sites": [{"where": s.where, **dataclasses.asdict(s)} for s in sites[:top]],
            "keepers": [dataclasses.asdict(keeper) for keeper in keepers[:top]],
        }
        return json.dumps(plain, default=_plain, indent=indent, ensure_ascii=False)

    def _done(self) -> str:
        """What `lean` has changed and what it has not."""
        changed = len(self.changed or ())
        count = f"changed {changed or 'none'} of {_sites(len(self.sites))}"
        if self.recomputes:
            if self.norms:
                count += f" and {len(self.norms)} RMS norm{'s' * (len(self.norms) > 1)}"
            count += ", and recomputes what it can"
            return f"{count}: saves {readable(self.kept - self.after_lean)}"
        if changed:
            count += f": saves {readable(self.kept - self.after_lean)}"
        hints = [
            f"{_calls(self._by(by))}: {hint}"
            for by, hint in (
                (LEAN_FUNCTIONAL, "see lean_functional"),
                (CODE, 'give save="output" there'),
            )
            if self._by(by)
        ]
        return "; ".join([count, *hints])

    def _by(self, by: str) -> int:
        return sum(site.by == by for site in self.sites)

    def summary(self) -> list[str]:
        """The totals, one per line."""
        return [self._counts(), *self._totals()]

    def _counts(self) -> str:
        """How many sites there are, how many of them pay, and by what means."""
        pays = sum(site.advice == "output" for site in self.sites)
        head = f"{_sites(len(self.sites))}, {pays} of which {_pay(pays)}"
        if pays > self._by(LEAN):
            ways = (
                (LEAN, "by lean"),
                (LEAN_FUNCTIONAL, "within lean_functional"),
                (CODE, 'with save="output" in the code'),
            )
            head += ": " + ", ".join(
                f"{self._by(by)} {means}" for by, means in ways if self._by(by)
            )
        return head

    @property
    def recomputable(self) -> int:
        """How many of the bytes kept `mishkit.recompute` would not keep, according to an audit."""
        return sum(keeper.recomputable for keeper in self.keepers)

    def _totals(self) -> list[str]:
        return [f"{label}: {text}" for label, text, _ in self._amounts()]

    def _amounts(self) -> list[tuple[str, str, int]]:
        """What is kept now and otherwise: in which case, in words, and the bytes."""
        kept = readable(self.kept)
        if self.recomputable:
            kept += f", of which {readable(self.recomputable)} can be recomputed"
        amounts = [("kept for backward", kept, self.kept)]
        if self.after_lean == self.lean or self._by(LEAN):
            label = "when lean" if self.recomputes else "with outputs kept instead"
            amounts.append((label, self._of_that(self.after_lean), self.after_lean))
        if self.after_lean != self.lean:
            amounts.append(("with the calls", self._of_that(self.lean), self.lean))
        if self.checkpointed is not None:
            blocks = f"{len(self.blocks)} block{'' if len(self.blocks) == 1 else 's'}"
            label = f"with torch.utils.checkpoint around {blocks} instead"
            text = f"{readable(self.checkpointed)}, and a second forward pass"
            amounts.append((label, text, self.checkpointed))
        return amounts

    def _of_that(self, count: int) -> str:
        return f"{readable(count)}, {self._share(count):.3f} of that"

    def _share(self, count: int) -> float:
        """The bytes as a share of those kept now."""
        return count / self.kept if self.kept else 1.0


def _sites(count: int) -> str:
    return f"{count} site{'' if count == 1 else 's'}"


def _cells(row: Row) -> tuple[str, str, str]:
    """A row of the table in a notebook."""
    cell = html_cell(f"{row.where or '(model)'}  {row.function}", row.verdict)
    return cell, readable(row.kept), "–" if row.saving is None else readable(row.saving)


def _plain(value: object) -> str:
    """A dtype in JSON."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    raise TypeError(f"{type(value).__name__} has no JSON")


def _pay(count: int) -> str:
    return "pays" if count == 1 else "pay"


def _calls(count: int) -> str:
    return "1 is a call" if count == 1 else f"{count} are calls"


class AdvisedCalls:
    """Function calls, identified by the enclosing module, the line of code and the function.

    Modules are referenced weakly, so they are known as long as the model lives. Pickling a report
    loses them.
    """

    def __init__(self, calls: Iterable[tuple[nn.Module | None, str, str]]) -> None:
        self._calls = {
            (None if module is None else id(module), line, function): module and weakref.ref(module)
            for module, line, function in calls
        }
        self.is_lost = False

    def has(self, module: nn.Module | None, line: str, function: str) -> bool:
        """Whether this call is one of them."""
        key = None if module is None else id(module), line, function
        if key not in self._calls:
            return False
        reference = self._calls[key]
        return reference is None or reference() is module

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AdvisedCalls) and self._calls.keys() == other._calls.keys()

    def __hash__(self) -> int:
        return hash(frozenset(self._calls))

    def __getstate__(self) -> dict[str, Any]:
        return {"_calls": {}, "is_lost": bool(self._calls) or self.is_lost}

    def __deepcopy__(self, memo: Any) -> AdvisedCalls:
        return self


def readable(count: int) -> str:
    """A byte count with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.4g} GiB"
