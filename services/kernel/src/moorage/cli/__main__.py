"""``python -m moorage.cli``: the command for environments in which it is not on the PATH."""

from moorage.cli import main

main(prog_name="moorage")
