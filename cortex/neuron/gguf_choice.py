"""Which of several GGUF files is meant by a ``quant``, and which where none is asked for. Pure."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Iterable, Sequence

import attrs

from cortex.engine.load.gguf_parts import part_names, stem_of
from cortex.errors import CheckpointError, UnsupportedLoad, clip

SUFFIX = ".gguf"
# Where no quant is asked for: the usual compromise, then what is nearest to it in size without
# being worse, then the rest from fine to coarse, and what is not quantised last.
PREFERRED = (
    "Q4_K_M", "UD-Q4_K_XL", "Q4_K_L", "Q4_K_S", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "IQ4_NL",
    "IQ4_XS", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "BF16", "F16",
    "F32",
)  # fmt: skip

# In a file's name: Q4_K_M, IQ4_XS, UD-Q4_K_XL, MXFP4, BF16 and so on, in any case.
_LABEL = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]{1,4}){1,3}|TQ\d_\d|MXFP4(?:_MOE)?|B?F16|FP16"
    r"|F32))(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._+-]*/)?[A-Za-z0-9_-][A-Za-z0-9._+-]*\.gguf")
# What lies beside models and is none: projectors of images, and statistics for quantising.
_OTHERS = ("mmproj", "imatrix")
_SHOWN = 40


@attrs.frozen
class Variant:
    """One model in one precision: the names of all its parts, and what it is called by."""

    label: str  # "" where the name does not tell
    model: str  # what the name says beside that
    files: tuple[str, ...]

    @property
    def shown(self) -> str:
        return self.label or self.files[0]


def label_of(name: str) -> str:
    """The precision that a file's name states, in upper case; "" where it states none."""
    found = _LABEL.findall(stem_of(posixpath.basename(name)))
    return _normal(found[-1]) if found else ""


def variants(names: Iterable[str]) -> list[Variant]:
    """The models among the files *names* (paths with ``/``, one folder deep at most) whose parts
    are all there."""
    there = {name for name in names if _PLAIN.fullmatch(name) and ".." not in name}
    found: dict[tuple[str, ...], Variant] = {}
    for name in sorted(there):
        folder, base = posixpath.split(name)
        if any(other in base.lower() for other in _OTHERS):
            continue
        files = tuple(posixpath.join(folder, part) for part in part_names(base))
        if there.issuperset(files):
            label, stem = label_of(base), stem_of(base)
            model = _LABEL.sub("", stem).strip("._-").lower() if label else stem.lower()
            found[files] = Variant(label, model, files)
    return _without_splits(found.values())


def choose(found: Sequence[Variant], quant: str | None, where: str) -> Variant:
    """The one of *found* that *quant* names, or that is best where it is None.

    `UnsupportedLoad` when there is none of that name, with what there is; `CheckpointError` when
    there are several.
    """
    if quant is not None:
        return _only(matching(found, quant) or _refuse(found, quant, where), where)
    if len({variant.model for variant in found}) > 1:
        return _only(found, where)
    ranks = {label: rank for rank, label in enumerate(PREFERRED)}
    best = min(found, key=lambda v: (ranks.get(v.label, len(ranks)), v.label))
    return _only([variant for variant in found if variant.label == best.label], where)


def is_dense(found: Sequence[Variant], quant: str | None, *, dense: bool) -> bool:
    """Whether what has GGUF files *found* and maybe safetensors (*dense*) is loaded from these."""
    return not found or (dense and (quant is None or not matching(found, quant)))


def matching(found: Iterable[Variant], quant: str) -> list[Variant]:
    """Those of *found* that are called *quant*, in any case and with or without ``UD-``."""
    wanted = _normal(quant)
    by_label = {label: [v for v in found if v.label == label] for label in (wanted, f"UD-{wanted}")}
    return by_label[wanted] or by_label[f"UD-{wanted}"]


def _normal(label: str) -> str:
    label = label.upper()
    return "F16" if label == "FP16" else label


def _without_splits(found: Iterable[Variant]) -> list[Variant]:
    """Of a model that is there whole and in parts, in one precision: whole."""
    fewest: dict[tuple[str, str], Variant] = {}
    for variant in found:
        key = variant.label, variant.model
        known = fewest.get(key)
        if known is None or len(variant.files) < len(known.files):
            fewest[key] = variant
    return list(fewest.values())


def _refuse(found: Sequence[Variant], quant: str, where: str) -> list[Variant]:
    labels = sorted({variant.shown for variant in found})
    near = difflib.get_close_matches(_normal(quant), labels, 1, 0.0)
    raise UnsupportedLoad(
        f"{clip(where)} has no {clip(quant, 40)}; it has {_listed(labels)}"
        f" (the nearest is {clip(near[0])})",
        param="quant",
        extras={"requested": quant, "available": labels[:_SHOWN], "nearest": near[0]},
    )


def _only(found: Sequence[Variant], where: str) -> Variant:
    if len(found) == 1:
        return found[0]
    names = sorted(variant.files[0] for variant in found)
    raise CheckpointError(f"{clip(where)} has several models, say which: {_listed(names)}")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return clip(", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else ""), 700)
