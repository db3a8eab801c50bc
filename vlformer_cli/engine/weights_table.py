"""Where a model's weights came from, part by part: for people, and for manifests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Leak = Literal["clean", "leaky", "unknown"]
"""`leaky`: the weights have seen evaluation pictures of RefCOCO, so that numbers on it flatter."""
Fate = Literal["taken", "new", "not used"]
"""`taken` and `new`: of our model. `not used`: of the checkpoint."""
COLUMNS = ("part", "weights", "tensors", "parameters", "from, or why not")
ONE_PART = ("backbone.net.", "backbone.", "text_encoder.tower.", "pixel_level_module.encoder.")
"""What is one part of the table, however many layers it has."""


CLEAN: tuple[Leak, str] = ("clean", "pretrained on ImageNet and as CLIP at most")
CLEAN_DATA = {"in1k", "in12k", "in21k", "in22k", "openai", "laion2b", "laion400m"}
"""Words of timm's pretrained tags: ImageNet's sizes, and what CLIPs were trained on."""
OTHER_DATA = {"m30m", "m38m", "ig1b", "yfcc100m", "jft", "swag", "seer"}
"""Words that stand beside those of ImageNet and tell of more pictures; EVA's m30m and m38m hold COCO's."""


@dataclass(frozen=True)
class Row:
    """Tensors of one part that fared alike."""

    part: str
    weights: Fate
    tensors: int
    parameters: int
    note: str
    """Where they came from, or why they did not."""


@dataclass(frozen=True)
class Initialisation:
    """Where a model's weights came from."""

    source: str
    """`init` as the config has it; empty for none."""
    kind: str
    leak: Leak
    leak_reason: str
    rows: tuple[Row, ...]
    files: tuple[tuple[str, str], ...]
    """Path and SHA-256 of each file that was read."""

    @property
    def summary(self) -> str:
        """A line for people."""
        ours = [row for row in self.rows if row.weights != "not used"]
        taken = sum(row.parameters for row in ours if row.weights == "taken")
        share = f"{taken / 1e6:.1f} M of {sum(row.parameters for row in ours) / 1e6:.1f} M parameters are not random"
        return f"{self.source or 'new weights'} ({self.kind}): {share}; {self.leak}: {self.leak_reason}"

    def table(self) -> list[tuple[str, ...]]:
        """A row for each part, in the order of `COLUMNS`."""
        return [(row.part, row.weights, str(row.tensors), f"{row.parameters:,}", row.note) for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """For manifests."""
        return {**asdict(self), "files": dict(self.files)}


def rows_of(entries: Iterable[tuple[str, Fate, str, int]]) -> list[Row]:
    """From (name, weights, note, parameters) of single tensors."""
    groups: dict[tuple[str, Fate], list[tuple[str, int]]] = {}
    for name, weights, note, numel in entries:
        groups.setdefault((_part(name), weights), []).append((note, numel))
    rows = []
    for (part, weights), tensors in groups.items():
        notes = list(dict.fromkeys(note for note, _ in tensors))
        note = notes[0] + (f" (and {len(notes) - 1} more such)" if len(notes) > 1 else "")
        rows.append(Row(part, weights, len(tensors), sum(numel for _, numel in tensors), note))
    return rows


def leak_of_tag(tag: str) -> tuple[Leak, str]:
    """Of weights with this tag of timm's.

    >>> leak_of_tag("ms_in22k_ft_in1k")[0], leak_of_tag("mim_m38m_ft_in1k")[0], leak_of_tag("pali_refcoco_seg")[0]
    ('clean', 'unknown', 'unknown')
    """
    words = set(tag.split("_"))
    if words & CLEAN_DATA and not words & OTHER_DATA:
        return CLEAN
    return "unknown", f"timm's tag {tag!r} does not say that its pictures are ImageNet's or CLIP's alone"


def _part(name: str) -> str:
    """The layer that a tensor belongs to, its number left out.

    >>> _part("decoder.blocks.4.to_words.out_proj.bias"), _part("decoder.query_feat")
    ('decoder.blocks.*.to_words', 'decoder.query_feat')
    """
    for beginning in ONE_PART:
        if name.startswith(beginning):
            return beginning.rstrip(".")
    words = ["*" if word.isdigit() else word for word in name.split(".")]
    return ".".join(words[:4] if len(words) > 4 else words[:-1] if len(words) > 2 else words)
