"""The library that every Moorage module is built on."""
