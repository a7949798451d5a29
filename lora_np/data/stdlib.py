"""Real text that every Python installation has, as batches of bytes: nothing is downloaded.

Two domains, each in two splits:

    prose    English about Python: the language reference (pydoc_data.topics) and the library's docstrings
    code     Python itself: the library's sources, without the docstrings

A base model learns the prose, an adapter specialises it in the code, and both are judged on text that neither has seen.
The split is by document, by the SHA-256 of its family's name alone: the same names are held out in every version of
Python and on every platform, so a base that was trained on one machine meets only unseen documents on any other. About
a tenth is held out.

A token is a byte, 0 to 255. Each document ends with a zero byte, which no text contains: to a model it says "here a
document ends, another begins", and alone it is a prompt. Sources are parsed, never imported.
"""

import ast
import hashlib
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from inspect import cleandoc
from pathlib import Path
from typing import Literal, get_args

import numpy as np

Domain = Literal["prose", "code"]
Split = Literal["train", "heldout"]
END = "\0"  # follows each document
HELD_OUT_PERCENT = 10
SALT = 638  # of the hash; chosen so that a tenth of the bytes is held out in both domains, by sizes alone


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What is no text to learn from, by the first part of its name: other people's packages, test suites, tables, generated
# files, jokes, what exists on one platform only, and what Linux distributions package apart (tkinter, lib2to3, …).
LEFT_OUT = _names(
    "site-packages dist-packages lib-dynload test encodings pydoc_data stringprep msilib __hello__ __phello__ this "
    "antigravity sitecustomize usercustomize _opcode_metadata idlelib tkinter turtle turtledemo lib2to3 distutils "
    "ensurepip"
)
TEST_FOLDERS = frozenset({"test", "tests"})
TABLES = frozenset({"html/entities.py"})

# Topics of the language reference that stand again in another one, as a section ("while" in "compound", …).
SECTIONS = _names(
    "async class else for function if try while with attribute-access callable-types context-managers customization "
    "numeric-types sequence-types naming exceptions dynamic-features augassign in id-classes typesseq-mutable"
)

# Names that share long passages, or that passages moved between from one version to the next: all held out or none.
# Whoever changes this table, HELD_OUT_PERCENT or SALT changes the split, and must pre-train the embedded base again.
FAMILIES = {
    "archives": "bz2 compression gzip lzma tarfile zipfile",
    "arguments": "argparse optparse",
    "ast": "ast ast_unparse dis opcode",
    "audio": "aifc chunk imghdr sndhdr sunau wave",
    "concurrency": "asyncio bootsubprocess concurrent multiprocessing queue socket socketserver subprocess telnetlib "
    "threading threading_local",
    "databases": "dbm shelve",
    "datetime": "datetime strptime zoneinfo",
    "debugger": "bdb pdb topics/debugger",
    "imports": "imp importlib pkgutil runpy weakref weakrefset zipimport",
    "introspection": "annotationlib collections collections_abc inspect numbers pydoc repl types typing xmlrpc",
    "items": "topics/slicings topics/subscriptions",
    "jumps": "topics/break topics/continue topics/return",
    "mail": "asynchat asyncore ftplib imaplib nntplib poplib smtpd smtplib",
    "paths": "genericpath glob ntpath nturl2path pathlib posixpath shutil",
    "pickles": "compat_pickle copyreg pickle pickletools",
    "profilers": "cProfile profile profiling pstats trace",
    "re": "re sre_compile sre_constants sre_parse",
    "site": "aix_support osx_support site sitebuiltins sysconfig",
    "statements": "topics/compound topics/specialnames",
    "types": "topics/specialattrs topics/types",
    "unittest": "contextlib unittest",
    "web": "cgi email http urllib wsgiref",
}
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names.split()}


# ---------------------------------------------------------------------------------------------------------- documents


def documents(domain: Domain, split: Split, stdlib: str | Path | None = None) -> dict[str, str]:
    """Return the documents of one domain and split as {name: text}, sorted by name.

    Names are "topics/assignment" and "docstrings/asyncio/base_events.py" in the prose, "code/asyncio/base_events.py" in
    the code. The first call reads the whole library, which takes a few seconds; the result is kept in the process.

    stdlib: the folder of the library's sources; by default, that of the running Python.
    Raises ValueError for an unknown domain or split, or a file that is no Python; FileNotFoundError where `stdlib` has
    no sources or no language reference.
    """
    _one_of("domain", domain, get_args(Domain))
    _one_of("split", split, get_args(Split))
    return dict(_library(_folder(stdlib))[domain, split])


def corpus(domain: Domain, split: Split, stdlib: str | Path | None = None) -> np.ndarray:
    r"""Return the documents of one domain and split as bytes: one read-only array, (size,) uint8.

    Each document is UTF-8 with "\n" newlines, and a zero byte follows it. Arguments and errors are as in `documents`.
    """
    _one_of("domain", domain, get_args(Domain))
    _one_of("split", split, get_args(Split))
    return _corpus(domain, split, _folder(stdlib))


def split_of(name: str) -> Split:
    """Return whether the document `name` is in "train" or in "heldout": a function of its family's name alone."""
    digest = hashlib.sha256(f"{SALT}/{family_of(name)}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT else "train"


def family_of(name: str) -> str:
    """Return the name that decides on which side the document `name` is.

    It is the topic's name, or the top-level module's, or that of the line of FAMILIES on which these stand. A module
    keeps its family in both domains, as a package ("zipfile.py", "zipfile/__init__.py"), and as the private twin of a
    C module ("_pydecimal.py", "decimal.py").
    """
    name = re.sub(r"^(docstrings|code)/", "", name)
    if not name.startswith("topics/"):
        module = name.split("/")[0].removesuffix(".py")
        name = re.sub(r"^_+(py_?)?", "", module)
    return FAMILY_OF.get(name, name)


@lru_cache
def _corpus(domain: Domain, split: Split, folder: str) -> np.ndarray:
    texts = _library(folder)[domain, split].values()
    return np.frombuffer("".join(text + END for text in texts).encode("utf-8"), dtype=np.uint8)


@lru_cache
def _library(folder: str) -> dict[tuple[Domain, Split], dict[str, str]]:
    """Return all documents of the library in `folder`."""
    found: dict[str, str] = {f"topics/{topic}": text for topic, text in _topics(Path(folder)).items()}
    seen: set[str] = set()
    # Each docstring and each source is kept once. One that both splits have stays held out, hence held out comes first.
    for name, path in sorted(_sources(Path(folder)), key=lambda item: (split_of(item[0]) == "train", item[0])):
        docstrings, code = _parted(path)
        new = [text for text in dict.fromkeys(docstrings) if text and text not in seen]
        seen.update(new)
        if new:
            found[f"docstrings/{name}"] = "\n\n".join(new) + "\n"
        if code and code not in seen:
            seen.add(code)
            found[f"code/{name}"] = code

    library: dict[tuple[Domain, Split], dict[str, str]]
    library = {(domain, split): {} for domain in get_args(Domain) for split in get_args(Split)}
    for name in sorted(found):
        library["code" if name.startswith("code/") else "prose", split_of(name)][name] = found[name]
    return library


# ------------------------------------------------------------------------------------------------- reading the library


def _folder(stdlib: str | Path | None) -> str:
    return str(sysconfig.get_path("stdlib") if stdlib is None else stdlib)


def _topics(folder: Path) -> dict[str, str]:
    """Return the language reference as {topic: text}, without the topics that are sections of others."""
    path = folder / "pydoc_data" / "topics.py"
    if not path.is_file():
        raise FileNotFoundError(_missing("the language reference, pydoc_data/topics.py, is", folder))
    for node in _parse(path)[1].body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "topics":
            topics = ast.literal_eval(node.value)
            return {topic: text.strip() + "\n" for topic, text in topics.items() if topic not in SECTIONS}
    raise ValueError(f"{path} assigns no `topics`: expected the dictionary that Python's help() reads")


def _sources(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the library's modules as (name with forward slashes, path)."""
    any_found = False
    for entry in folder.iterdir():  # before descending, for site-packages may be large
        if entry.name.removesuffix(".py") in LEFT_OUT or entry.name.startswith(("_sysconfig", "config-")):
            continue
        for path in entry.rglob("*.py") if entry.is_dir() else [entry] * (entry.suffix == ".py"):
            relative = path.relative_to(folder)
            if not TEST_FOLDERS.intersection(relative.parts) and relative.as_posix() not in TABLES:
                any_found = True
                yield relative.as_posix(), path
    if not any_found:
        raise FileNotFoundError(_missing("the standard library's sources, *.py, are", folder))


def _parse(path: Path) -> tuple[str, ast.Module]:
    try:
        with tokenize.open(path) as file:  # honours an encoding line, and makes each newline "\n"
            source = file.read()
        return source, ast.parse(source)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no source of this Python ({error}): expected its own standard library. Restore the file, or "
            "pass the folder of an intact library as stdlib=…"
        ) from error


def _parted(path: Path) -> tuple[list[str], str]:
    """Return a module's docstrings, and its source without them and without its copyright notice."""
    source, tree = _parse(path)
    lines = source.encode("utf-8").split(b"\n")  # in bytes, as ast counts columns
    docstrings: list[str] = []
    for body, node, text in sorted(_docstrings(tree), key=lambda found: -found[1].lineno):  # from the last line up
        docstrings.insert(0, cleandoc(text))
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        before, after = lines[first][: node.col_offset], lines[last - 1][node.end_col_offset :]
        removable = len(body) > 1 and not before.strip() and not after.split(b"#")[0].strip()
        lines[first:last] = [] if removable else [before + b"pass" + after]
    code = b"\n".join(lines).decode("utf-8")
    code = re.sub(r"^(#.*\n)+", _without_notice, code, flags=re.MULTILINE).strip("\n")
    return docstrings, code + "\n" if code else ""


def _docstrings(tree: ast.Module) -> Iterator[tuple[list[ast.stmt], ast.Expr, str]]:
    """Yield each docstring: the body that it begins, its statement, and its text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            match node.body[0]:
                case ast.Expr(ast.Constant(str(text))) as statement:
                    yield node.body, statement, text


def _without_notice(comment: re.Match[str]) -> str:
    """Return a block of comment lines, or nothing for a copyright notice: many modules repeat the same."""
    return "" if re.search(r"copyright|licen[cs]ed|permission to use", comment[0], re.IGNORECASE) else comment[0]


def _missing(what: str, folder: Path) -> str:
    found = "no such folder"
    if folder.is_dir():
        found = f"found {len(list(folder.rglob('*.py')))} .py and {len(list(folder.rglob('*.pyc')))} .pyc files"
    return (
        f"{what} not in {folder} ({found}). Expected the standard library with its sources, as python.org, uv, "
        "conda and the Linux distributions install it, neither zipped nor compiled only. Run another Python (3.11 or "
        "later), or pass the folder of its library as stdlib=…"
    )


def _one_of(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}: expected {' or '.join(map(repr, allowed))}")
