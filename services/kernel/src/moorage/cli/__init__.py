"""The command ``moorage``: run-time verbs from here, platform verbs from other distributions by entry
point.
"""

from moorage.cli.group import main

__all__ = ["main"]
