#!/usr/bin/env python3
"""Draws a random sample of doc comments and identifiers from the Rust sources, for a review of readability.

    python3 tests/readability_sample.py --seed HASH [--root DIR] [--count 100]

The script collects

- every doc comment (`///` and `//!`), with the signature of the item that it documents;
- every identifier of at least three characters that the sources define: functions, structs, enums and their variants,
  traits, type aliases, constants, statics, modules, macros, fields, `let` bindings and function parameters.

It prints COUNT of each as a numbered Markdown list. The same seed and the same sources give the same sample.
"""

import argparse
import dataclasses
import pathlib
import random
import re
import sys

FOLDERS = ["crates/*/src", "tests/src", "benches/src", "xtask/src", "examples"]
MIN_LENGTH = 3
MAX_SIGNATURE = 200
KEYWORDS = set(
    "as async await box break const continue crate dyn else enum extern false fn for if impl in let loop match mod "
    "move mut pub ref return self Self static struct super trait true type union unsafe use where while".split()
)
OPEN, CLOSE = "([{", ")]}"


@dataclasses.dataclass(frozen=True)
class Doc:
    """A doc comment."""

    path: str
    line: int
    signature: str
    text: str


@dataclasses.dataclass(frozen=True)
class Identifier:
    """The definition of an identifier."""

    path: str
    line: int
    kind: str
    name: str
    code: str


def mask(source: str) -> str:
    """Replaces comments and the contents of literals by spaces, so that positions and lines stay the same."""
    token = re.compile(
        r"""//[^\n]*
        | /\*                                                   # the start of a block comment, which may nest
        | \b(?:br|cr|r)(?P<hashes>\#*)".*?"(?P=hashes)          # a raw string
        | \b[bc]?"(?:\\.|[^"\\])*"                              # a string
        | "(?:\\.|[^"\\])*"
        | b?'(?:\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.)|[^'\\\n])'   # a character, not a lifetime
        """,
        re.VERBOSE | re.DOTALL,
    )
    parts, position = [], 0
    while match := token.search(source, position):
        end = match.end()
        if match.group().startswith("/*"):
            depth = 1
            while depth and (edge := re.compile(r"/\*|\*/").search(source, end)):
                depth += 1 if edge.group() == "/*" else -1
                end = edge.end()
        parts += [source[position : match.start()], re.sub(r"[^\n]", " ", source[match.start() : end])]
        position = end
    return "".join(parts + [source[position:]])


def closing(code: str, start: int) -> int:
    """Returns the position of the bracket that closes the one at `start`, or the end of the code."""
    depth = 0
    for position in range(start, len(code)):
        depth += (code[position] in OPEN) - (code[position] in CLOSE)
        if depth == 0:
            return position
    return len(code)


def split(text: str, separator: str = ",") -> list[tuple[int, str]]:
    """Splits at a separator outside of all brackets, generic arguments included; returns offsets and parts."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        is_path = "::" in (text[position - 1 : position + 1], text[position : position + 2])
        if character in OPEN or character == "<":
            depth += 1
        elif character in CLOSE or (character == ">" and text[position - 1] not in "-="):
            depth -= 1
        elif character == separator and depth <= 0 and not is_path:
            parts.append((start, text[start:position]))
            start = position + 1
    return parts + [(start, text[start:])]


def skip_attributes(code: str, position: int) -> int:
    """Returns the position of the first code after white space and attributes."""
    while True:
        position = re.compile(r"\s*").match(code, position).end()
        attribute = re.compile(r"#\s*!?\s*\[").match(code, position)
        if not attribute:
            return position
        position = closing(code, attribute.end() - 1) + 1


def signature(source: str, code: str, position: int) -> str:
    """Returns the signature of the item that starts after `position`, on one line."""
    start = skip_attributes(code, position)
    end, depth = start, 0
    while end < len(code):
        character = code[end]
        if depth == 0 and character in ";,{}" or depth == 0 and character == ")":
            break
        if character in "([" or (character == "<" and code[end + 1 : end + 2] not in "< =" and code[end - 1] != "<"):
            depth += 1
        elif character in ")]" or (character == ">" and code[end - 1] not in "-= "):
            depth = max(depth - 1, 0)
        elif character in "{}":
            break
        end += 1
    return shorten(" ".join(source[start:end].split()))


def shorten(text: str) -> str:
    """Cuts a text that is too long for one entry."""
    return text if len(text) <= MAX_SIGNATURE else text[: MAX_SIGNATURE - 3] + "..."


def doc_comments(path: str, source: str, code: str) -> list[Doc]:
    """Collects the doc comments of a file."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = source.splitlines()
    found, k = [], 0
    while k < len(lines):
        marker = lines[k].lstrip()[:3]
        is_doc = marker in ("///", "//!") and not lines[k].lstrip().startswith("////")
        # A line of a string literal that looks like a comment is masked like one, but does not start the code.
        if not is_doc or code[starts[k] : starts[k + 1]].strip():
            k += 1
            continue
        first = k
        while k < len(lines) and lines[k].lstrip().startswith(marker) and not lines[k].lstrip().startswith("////"):
            k += 1
        text = "\n".join(line.lstrip()[3:].removeprefix(" ").rstrip() for line in lines[first:k])
        item = f"module {path}" if marker == "//!" else signature(source, code, starts[k])
        found.append(Doc(path, first + 1, item, text))
    return found


def bindings(pattern: str) -> list[tuple[int, str]]:
    """Returns the names that a pattern binds, with their offsets."""
    found = []
    for match in re.finditer(r"(?<![\w.:'])(?P<name>[a-z_]\w*)\b(?!\s*(?:::|\(|!|\{))", pattern):
        name, after = match.group("name"), pattern[match.end() :].lstrip()
        # In `Struct { field: binding }` the field is not bound.
        is_field = after.startswith(":") and not after.startswith("::")
        if name not in KEYWORDS and not is_field:
            found.append((match.start(), name))
    return found


def annotated(text: str) -> str:
    """Cuts a pattern before its type."""
    return split(text, ":")[0][1]


def identifiers(path: str, source: str, code: str) -> list[Identifier]:
    """Collects the identifiers that a file defines."""
    lines = source.splitlines()
    found = []

    def add(kind: str, position: int, name: str) -> None:
        line = code.count("\n", 0, position)
        if len(name) >= MIN_LENGTH and not name.startswith("_"):
            found.append(Identifier(path, line + 1, kind, name, shorten(lines[line].strip())))

    def fields(start: int, body: str) -> None:
        for offset, part in split(body):
            at = skip_attributes(part, 0)
            if match := re.compile(r"(?:pub\s*(?:\([^)]*\))?\s*)?(?:r#)?(?P<name>[a-z_]\w*)\s*:(?!:)").match(part, at):
                add("field", start + offset + match.start("name"), match.group("name"))

    item = r"(?<!['*])\b(struct|enum|union|trait|type|mod|fn|const|static)\s+(?:mut\s+)?(?:r#)?([A-Za-z_]\w*)"
    for match in re.finditer(item, code):
        kind, name = match.groups()
        if name in KEYWORDS:
            continue
        add(kind, match.start(2), name)
        if kind in ("struct", "enum", "union"):
            body = re.compile(r"[^;{(]*").match(code, match.end()).end()
            # Fields of tuple structs have no names.
            if code[body : body + 1] != "{":
                continue
            start, end = body + 1, closing(code, body)
            if kind != "enum":
                fields(start, code[start:end])
                continue
            for offset, part in split(code[start:end]):
                at = skip_attributes(part, 0)
                if variant := re.compile(r"[A-Z]\w*").match(part, at):
                    add("variant", start + offset + at, variant.group())
                    brace = part.find("{", variant.end())
                    if brace >= 0:
                        fields(start + offset + brace + 1, part[brace + 1 : closing(part, brace)])
        elif kind == "fn":
            # Generic parameters may hold parentheses, as in `F: Fn(f32)`.
            parenthesis, depth = match.end(), 0
            while parenthesis < len(code) and (code[parenthesis] != "(" or depth > 0):
                depth += code[parenthesis] == "<"
                depth -= code[parenthesis] == ">" and code[parenthesis - 1] not in "-="
                parenthesis += 1
            start, end = parenthesis + 1, closing(code, parenthesis)
            for offset, part in split(code[start:end]):
                at = skip_attributes(part, 0)
                for position, name in bindings(annotated(part[at:])):
                    add("parameter", start + offset + at + position, name)
    for match in re.finditer(r"\bmacro_rules!\s*(\w+)", code):
        add("macro", match.start(1), match.group(1))
    for match in re.finditer(r"\blet\s+(?P<pattern>[^;=]*?)\s*(?:;|=)", code):
        for position, name in bindings(annotated(match.group("pattern"))):
            add("let", match.start("pattern") + position, name)
    return found


def collect(root: pathlib.Path) -> tuple[list[Doc], list[Identifier]]:
    """Collects the doc comments and identifiers of all sources."""
    files = sorted({file for folder in FOLDERS for top in root.glob(folder) for file in top.rglob("*.rs")})
    docs, names = [], []
    for file in files:
        source, path = file.read_text(), file.relative_to(root).as_posix()
        code = mask(source)
        docs += doc_comments(path, source, code)
        names += identifiers(path, source, code)
    return docs, names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", required=True, help="any text, such as a commit hash")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--count", type=int, default=100, help="size of each of the two samples (default: 100)")
    arguments = parser.parse_args()
    docs, names = collect(arguments.root)
    if not docs or not names:
        print(f"error: no Rust sources under {arguments.root}", file=sys.stderr)
        return 2
    generator = random.Random(arguments.seed)
    distinct: dict[str, list[Identifier]] = {}
    for name in names:
        distinct.setdefault(name.name, []).append(name)

    drawn = generator.sample(docs, min(arguments.count, len(docs)))
    print(f"# Sample of doc comments and identifiers, seed {arguments.seed}\n")
    print(f"{len(docs)} doc comments; {len(names)} definitions of {len(distinct)} distinct identifiers.\n")
    print(f"## {len(drawn)} doc comments\n")
    for k, doc in enumerate(drawn, 1):
        print(f"{k}. `{doc.path}:{doc.line}` `{doc.signature}`\n")
        print("\n".join(f"    > {line}".rstrip() for line in doc.text.splitlines()) + "\n")
    chosen = generator.sample(sorted(distinct), min(arguments.count, len(distinct)))
    print(f"## {len(chosen)} identifiers\n")
    for k, name in enumerate(chosen, 1):
        item = generator.choice(distinct[name])
        print(f"{k}. `{item.name}` ({item.kind}) `{item.path}:{item.line}`: `{item.code}`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
