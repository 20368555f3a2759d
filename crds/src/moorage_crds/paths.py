"""Paths of rules: joining them to a prefix, and what an edge without captures can know of them."""


def join(prefix: str, path: str) -> str:
    """A rule's path with its Route's prefix before it: ``/api`` and ``/`` give ``/api``."""
    return (prefix.rstrip("/") + path).rstrip("/") or "/"


def segments(path: str) -> tuple[str, ...]:
    """The parts between the slashes; none for ``/``."""
    return tuple(part for part in path.split("/") if part)


def is_capture(segment: str) -> bool:
    """Whether a segment is ``{name}``."""
    return segment.startswith("{") and segment.endswith("}")


def captures(path: str) -> tuple[str, ...]:
    """Names of the captures in their order, repeated ones repeated."""
    return tuple(part[1:-1] for part in segments(path) if is_capture(part))


def shape(path: str) -> tuple[str, ...]:
    """The segments with every capture as ``{}``: rules of one shape match the same paths."""
    return tuple("{}" if is_capture(part) else part for part in segments(path))


def literal_prefix(full_path: str) -> tuple[str, bool]:
    """What the edge can route by: literal segments before the first capture or ``**``, and if that is all.

    ``/api/posts/{id}`` → ``("/api/posts", False)``; ``/api/posts`` → ``("/api/posts", True)``;
    ``/{id}`` → ``("/", False)``. Neither an Ingress nor an HTTPRoute knows captures.
    """
    literal: list[str] = []
    parts = segments(full_path)
    for part in parts:
        if part == "**" or is_capture(part):
            break
        literal.append(part)
    return "/" + "/".join(literal), len(literal) == len(parts)


def covers(prefix: str, path: str) -> bool:
    """Whether the literal `path` is `prefix` or lies below it, by whole segments."""
    return prefix == "/" or path == prefix or path.startswith(f"{prefix}/")
