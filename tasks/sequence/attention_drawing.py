"""The pictures of attention."""


def draw(view, options):
    return []
