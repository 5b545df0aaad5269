"""'name(k=v)' -> value: how a string in a config selects a leaf of the code from a literal table.

>>> build({"cosine": cosine}, "cosine(shift=-2)", "process.schedule")
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

Config = Any
"""An ``ml_collections.ConfigDict``; its fields are not known to type checkers."""

# Annotations, or parts of a union, that a literal is checked against; anything richer is the
# function's own business.
_LITERALS: dict[str, tuple[type, ...]] = {
    "float": (int, float),
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
}
# Of a union, what may stand beside those: no literal is an array, but what a caller gives may be.
_KNOWN = frozenset({*_LITERALS, "None", "Array"})


def build(table: Mapping[str, Callable], spec: str, field: str, **context: Any) -> Any:
    """Call the table's entry that the string names, with the string's arguments.

    Args:
        table: name -> factory.
        spec: "name" or "name(1, key=2.5)"; arguments are Python literals.
        field: where the string came from, for error messages, such as "process.schedule".
        **context: values passed to factories that have a parameter of that name.

    Raises:
        ValueError: if the string does not parse, the name is unknown (the known are listed), or the
            arguments do not fit.
    """
    name, args, kwargs = parse(spec, field)
    if name not in table:
        known = ", ".join(sorted(table))
        raise ValueError(f"config.{field} = {spec!r}: unknown name {name!r}; known are {known}")
    factory = table[name]
    signature = inspect.signature(factory)
    given = {k: v for k, v in context.items() if k in signature.parameters and k not in kwargs}
    try:
        bound = signature.bind(*args, **kwargs, **given)
    except TypeError as error:
        raise ValueError(f"config.{field} = {spec!r}: {error}; it is {name}{signature}") from None
    for key, value in bound.arguments.items():
        wanted = signature.parameters[key].annotation
        _check_literal(key, value, wanted, field, spec)
        if wanted in ("float", float) and isinstance(value, int):
            bound.arguments[key] = float(value)  # "decay=1" for 1.0
    return factory(*bound.args, **bound.kwargs)


def parse(spec: str, field: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Split "name(1, key=2)" into ("name", [1], {"key": 2}).

    Raises:
        ValueError: if it is not of that form.
    """
    try:
        node = ast.parse(spec.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            raise ValueError(spec)
        args = [ast.literal_eval(a) for a in node.args]
        if any(k.arg is None for k in node.keywords):  # **rest
            raise ValueError(spec)
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        raise ValueError(
            f"config.{field} = {spec!r} is not of the form 'name' or 'name(key=value)', "
            "with numbers, strings or lists as values"
        ) from None
    return node.func.id, args, kwargs


def plain(config: Config) -> dict[str, Any]:
    """The config as JSON keeps it: dicts, lists, numbers and strings."""
    return json.loads(json.dumps(config.to_dict()))


def _check_literal(key: str, value: Any, annotation: Any, field: str, spec: str) -> None:
    wanted = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    parts = [part.strip() for part in wanted.split("|")]
    if not any(part in _LITERALS for part in parts) or not _KNOWN.issuperset(parts):
        return
    if (value is None and "None" in parts) or ("Array" in parts and hasattr(value, "dtype")):
        return
    allowed = tuple(kind for part in parts for kind in _LITERALS.get(part, ()))
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        named = " or ".join(part for part in parts if part in _LITERALS)
        raise ValueError(f"config.{field} = {spec!r}: {key} must be of type {named}, got {value!r}")
