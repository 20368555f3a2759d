"""``python -m moorage_crds generate [--check] [--root DIR]``."""

import argparse
import sys
from pathlib import Path

from moorage_crds import generate


def main(arguments: list[str] | None = None) -> int:
    """Generate, or with ``--check`` tell what is out of date. Gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m moorage_crds")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("generate", help="write CRDs, editor schemas and reference pages from the models")
    verb.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    verb.add_argument("--root", type=Path, help="checkout to write into; default: the one around this folder")
    options = parser.parse_args(arguments)
    try:
        root = options.root or generate.repository_root(Path.cwd())
    except FileNotFoundError as error:
        parser.error(str(error))
    files = generate.outputs()
    if options.check:
        found = generate.differences(root, files)
        for sentence in found:
            sys.stderr.write(f"{sentence}\n")
        if found:
            sys.stderr.write(f"run `{generate.COMMAND}` and commit what it writes\n")
        return 1 if found else 0
    for path in generate.write(root, files):
        sys.stdout.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
