"""Between plain trees, as YAML and JSON have them, and frozen dataclasses: strict, with errors that name the field."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from vlformer_cli.types import VLFormerError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """What a number may be, as the second part of an `Annotated` type; both ends belong to it."""

    low: float
    high: float = math.inf

    def checked(self, value: float, where: str) -> float:
        """The value; raises VLFormerError where it is outside or not finite."""
        if math.isfinite(value) and self.low <= value <= self.high:
            return value
        allowed = f"at least {self.low:g}" if math.isinf(self.high) else f"from {self.low:g} to {self.high:g}"
        raise VLFormerError(f"{where} is {value}: {allowed}")


def from_tree(cls: type[T], tree: Any, where: str = "config") -> T:
    """Builds the dataclass `cls` from plain dicts, lists and numbers; raises VLFormerError on anything that is off.

    >>> Cup = dataclasses.make_dataclass("Cup", [("colour", str), ("handles", Annotated[int, Range(0)], 1)])
    >>> from_tree(Cup, {"colour": "red"})
    Cup(colour='red', handles=1)
    >>> from_tree(Cup, {"color": "red"})
    Traceback (most recent call last):
    vlformer_cli.types.VLFormerError: config: no field 'color' in Cup, did you mean 'colour'?
    >>> from_tree(Cup, {"colour": "red", "handles": -1})
    Traceback (most recent call last):
    vlformer_cli.types.VLFormerError: config: handles is -1: at least 0
    """
    if not isinstance(tree, Mapping):
        raise VLFormerError(f"{where}: {cls.__name__} takes fields, not {tree!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in tree:
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            advice = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(hints)}"
            raise VLFormerError(f"{where}: no field {name!r} in {cls.__name__}, {advice}")
    values = {name: _convert(hints[name], value, f"{where}: {name}") for name, value in tree.items()}
    missing = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in values]  # type: ignore[arg-type]
    if missing:
        raise VLFormerError(f"{where}: {cls.__name__} lacks {', '.join(missing)}")
    return cls(**values)


def to_tree(config: Any) -> dict[str, Any]:
    """The inverse of `from_tree`: plain dicts, lists, numbers and strings."""
    tree: dict[str, Any] = dataclasses.asdict(config, dict_factory=lambda pairs: {k: _plain(v) for k, v in pairs})
    return tree


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _required(spec: dataclasses.Field[Any]) -> bool:
    return spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that the annotation `hint` names."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return args[1].checked(_convert(args[0], value, where), where)
    if origin is types.UnionType or origin is typing.Union:
        return None if value is None else _convert(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_tree(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise VLFormerError(f"{where} takes a list, not {value!r}")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Literal:
        if value not in args:
            raise VLFormerError(f"{where} is {value!r}; it can be {', '.join(map(repr, args))}")
        return value
    return _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and type(value) in (int, float, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as a string
        except ValueError:
            pass
    elif type(value) is hint:
        return value
    raise VLFormerError(f"{where} takes {hint.__name__}, not {value!r}")
