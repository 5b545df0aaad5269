"""The bar that a person sees while a set is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def with_progress(items: Iterable[Item], name: str, split: str) -> Iterator[Item]:
    """Pass items on, counting them on a bar in standard error that vanishes when complete."""
    total = len(items) if isinstance(items, Sized) else None
    yield from tqdm(items, desc=f"{name} {split}", total=total, unit=" images", leave=False)
