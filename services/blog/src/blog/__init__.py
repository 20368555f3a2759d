"""The reference module: posts, comments, tags and categories."""

from blog import comments, posts, topics  # their handlers register themselves
from blog.app import module

__all__ = ["comments", "module", "posts", "topics"]
