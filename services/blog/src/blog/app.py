"""The module that the handlers belong to."""

from moorage import Module

module = Module("blog")
