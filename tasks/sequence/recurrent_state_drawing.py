"""x"""

from collections.abc import Iterator
from typing import Any

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View


def draw(view: View, options: Any) -> Iterator[Figure]:
    yield from ()
