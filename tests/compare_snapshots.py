#!/usr/bin/env python3
"""Compares the snapshots of a git revision with those of the working tree, whatever the files are called.

    python3 tests/compare_snapshots.py BASE_REVISION [--root DIR]

Snapshot files may be renamed or moved, but their contents must not change. The script compares two multisets over
all `*.snap` files:

- the digest lines, such as `y [3, 6, 7] digest f570d17e9fb5355b` (array name, shape and digest);
- the whole contents without insta's header, so that losses and printed values count too.

It prints the counts and every difference. The exit code is 0 if both multisets are equal, 1 if they differ, and 2 if
a revision has no snapshots or git fails.
"""

import argparse
import collections
import pathlib
import re
import subprocess
import sys

DIGEST = re.compile(r"^(?P<array>\S.*?) digest (?P<digest>[0-9a-f]{16})\b", re.MULTILINE)
HEADER = re.compile(r"\A---\n.*?^---\n", re.MULTILINE | re.DOTALL)


def git(root: pathlib.Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Returns the standard output of a git command."""
    return subprocess.run(["git", "-C", str(root), *arguments], input=stdin, check=True, stdout=subprocess.PIPE).stdout


def revision_snapshots(root: pathlib.Path, revision: str) -> dict[str, str]:
    """Returns the contents of every snapshot in a revision, by path."""
    paths = git(root, "ls-tree", "-r", "-z", "--name-only", "--full-tree", revision).decode().split("\0")
    paths = [path for path in paths if path.endswith(".snap")]
    names = "".join(f"{revision}:{path}\n" for path in paths)
    # The answer to each name is `OBJECT blob SIZE\n`, the contents, and a newline.
    output = git(root, "cat-file", "--batch", stdin=names.encode())
    snapshots, position = {}, 0
    for path in paths:
        header_end = output.index(b"\n", position)
        size = int(output[position:header_end].rsplit(b" ", 1)[1])
        snapshots[path] = output[header_end + 1 : header_end + 1 + size].decode()
        position = header_end + 1 + size + 1
    return snapshots


def working_snapshots(root: pathlib.Path) -> dict[str, str]:
    """Returns the contents of every snapshot in the working tree, by path, without files that git ignores."""
    listing = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.snap"]
    paths = set(git(root, *listing).decode().split("\0")) - {""}
    return {path: (root / path).read_text() for path in paths if (root / path).is_file()}


def digests(snapshots: dict[str, str]) -> collections.Counter:
    """Counts the digest lines of all snapshots."""
    found = (DIGEST.finditer(text) for text in snapshots.values())
    return collections.Counter(match.group(0) for matches in found for match in matches)


def contents(snapshots: dict[str, str]) -> collections.Counter:
    """Counts the contents of all snapshots without insta's header."""
    return collections.Counter(HEADER.sub("", text, count=1).rstrip() for text in snapshots.values())


def report(side: str, lines: collections.Counter) -> None:
    """Prints what only one side has."""
    for line, count in sorted(lines.items()):
        print(f"only in {side}: {line}" + (f" ({count} times)" if count > 1 else ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", metavar="BASE_REVISION", help="git revision to compare with")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    arguments = parser.parse_args()
    try:
        root = pathlib.Path(git(arguments.root, "rev-parse", "--show-toplevel").decode().strip())
        base, working = revision_snapshots(root, arguments.base), working_snapshots(root)
    except subprocess.CalledProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sides = [(arguments.base, base), ("the working tree", working)]
    for side, snapshots in sides:
        total = digests(snapshots)
        print(f"{side}: {len(snapshots)} snapshots, {sum(total.values())} digests, {len(total)} distinct digest lines")
        if not total:
            print(f"error: no digests in {side}", file=sys.stderr)
            return 2

    missing, added = digests(base) - digests(working), digests(working) - digests(base)
    report(arguments.base, missing)
    report("the working tree", added)
    # Names the files whose contents have no counterpart on the other side.
    changed = 0
    for (side, snapshots), (_, other) in (sides, reversed(sides)):
        unmatched = contents(snapshots) - contents(other)
        changed += sum(unmatched.values())
        paths = [path for path, text in snapshots.items() if HEADER.sub("", text, count=1).rstrip() in unmatched]
        for path in sorted(paths):
            print(f"contents only in {side}: {path}")
    counts = f"{sum(missing.values())} digests missing, {sum(added.values())} added"
    print(f"{counts}, {changed} snapshots without counterpart")
    return 1 if missing or added or changed else 0


if __name__ == "__main__":
    sys.exit(main())
