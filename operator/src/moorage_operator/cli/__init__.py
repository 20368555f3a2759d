"""The platform commands of `moorage`; each module holds one, found by the entry point group `moorage.commands`."""
