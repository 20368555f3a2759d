"""Configuration: typed groups, filled from layers; a wrong value names its layer, file and field."""

from moorage.config.layers import Layer, read_layers
from moorage.config.loading import ConfigError, load
from moorage.config.settings import Config, Settings
from moorage.config.values import Duration, Reloadable

__all__ = ["Config", "ConfigError", "Duration", "Layer", "Reloadable", "Settings", "load", "read_layers"]
