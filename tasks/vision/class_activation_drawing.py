from typing import Any
def draw(view: Any, options: Any):
    return []
