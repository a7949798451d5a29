"""A text corpus from the Python standard library, which every Python installation contains. Nothing is downloaded.

There are two domains, and each is split into train and held-out text:

    prose    English about Python: the language reference (pydoc_data.topics) and the docstrings of the library
    code     Python: the sources of the library without docstrings

A base model is trained on prose, and an adapter is trained on code. The base model and the adapter are evaluated on
held-out text. About a tenth of the text is held out. Each document is either in the train split or in the held-out
split. The split depends only on the SHA-256 of the name of the document's family. So documents with the same name are
in the same split in every version of Python and on every platform. A model trained on one machine can therefore be
evaluated on another machine.

A token is a byte, 0 to 255. A zero byte follows each document. The zero byte marks the end of one document and the
start of the next document. A prompt can consist of this zero byte alone. The source files are parsed, but they are
never imported.
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
END = "\0"  # the zero byte after each document
HELD_OUT_PERCENT = 10
SALT = 638  # part of the hash; chosen by document sizes alone, so that a tenth of the bytes is held out in both domains


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Excluded modules, by the first part of the name: installed packages, tests, tables, generated files, jokes, modules of one
# platform only, and modules that Linux distributions package separately (tkinter, lib2to3, …).
LEFT_OUT = _names(
    "site-packages dist-packages lib-dynload test encodings pydoc_data stringprep msilib __hello__ __phello__ this "
    "antigravity sitecustomize usercustomize _opcode_metadata idlelib tkinter turtle turtledemo lib2to3 distutils "
    "ensurepip"
)
TEST_FOLDERS = frozenset({"test", "tests"})
TABLES = frozenset({"html/entities.py"})

# Topics of the language reference that are also a section of another topic ("while" is part of "compound", …).
SECTIONS = _names(
    "async class else for function if try while with attribute-access callable-types context-managers customization "
    "numeric-types sequence-types naming exceptions dynamic-features augassign in id-classes typesseq-mutable"
)

# Families: names that share long passages, in one version of Python or across versions. A family is held out as a whole.
# A change of this table, HELD_OUT_PERCENT or SALT changes the split, so the base model "tiny" must then be trained again.
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
    r"""Return the documents of one domain and one split.

    The first call reads the whole library, which takes a few seconds. The result is kept in memory for later calls.

    Parameters
    ----------
    domain : {"prose", "code"}
        "prose" is English about Python, and "code" is Python source code.
    split : {"train", "heldout"}
        Whether to return the text for training or the held-out text.
    stdlib : str or Path, optional
        The folder with the sources of a standard library; the default is the library of the running Python.

    Returns
    -------
    dict of str to str
        The text of each document, sorted by name. The keys are names like "topics/assignment" and
        "docstrings/asyncio/base_events.py" for prose, and like "code/asyncio/base_events.py" for code.

    Raises
    ------
    ValueError
        If the domain or split is unknown, or if a file is not valid Python.
    FileNotFoundError
        If the folder has no sources or no language reference.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.data import documents
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "pydoc_data").mkdir()
    ...     _ = (Path(folder) / "pydoc_data/topics.py").write_text("topics = {}")
    ...     _ = (Path(folder) / "box.py").write_text('\"\"\"A box.\"\"\"\nside = 2')
    ...     documents("prose", "train", folder), documents("code", "train", folder)
    ({'docstrings/box.py': 'A box.\n'}, {'code/box.py': 'side = 2\n'})
    """
    _one_of("domain", domain, get_args(Domain))
    _one_of("split", split, get_args(Split))
    return dict(_library(_folder(stdlib))[domain, split])


def corpus(domain: Domain, split: Split, stdlib: str | Path | None = None) -> np.ndarray:
    r"""Return the documents of one domain and one split, joined to one array of bytes.

    Parameters
    ----------
    domain : {"prose", "code"}
        "prose" is English about Python, and "code" is Python source code.
    split : {"train", "heldout"}
        Whether to return the text for training or the held-out text.
    stdlib : str or Path, optional
        The folder with the sources of a standard library; the default is the library of the running Python.

    Returns
    -------
    ndarray, shape (size,), uint8
        The bytes of the documents in UTF-8 with "\n" newlines. A zero byte follows each document. The array is read-only.

    Raises
    ------
    ValueError
        If the domain or split is unknown, or if a file is not valid Python.
    FileNotFoundError
        If the folder has no sources or no language reference.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.data import corpus, decode
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "pydoc_data").mkdir()
    ...     _ = (Path(folder) / "pydoc_data/topics.py").write_text("topics = {}")
    ...     _ = (Path(folder) / "box.py").write_text("side = 2")
    ...     decode(corpus("code", "train", folder))
    'side = 2\n\x00'
    """
    _one_of("domain", domain, get_args(Domain))
    _one_of("split", split, get_args(Split))
    return _corpus(domain, split, _folder(stdlib))


def split_of(name: str) -> Split:
    """Return the split of a document, which depends only on the name of its family.

    Parameters
    ----------
    name : str
        A key of `documents(…)`, such as "code/asyncio/base_events.py".

    Returns
    -------
    {"train", "heldout"}
        The split.

    Examples
    --------
    >>> from lora_np.data import split_of
    >>> split_of("code/zipfile.py"), split_of("code/fractions.py")
    ('train', 'heldout')
    """
    digest = hashlib.sha256(f"{SALT}/{family_of(name)}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT else "train"


def family_of(name: str) -> str:
    """Return the family of a document; all documents of a family are in the same split.

    The family is the name of the topic or of the top-level module, unless the table FAMILIES gives another name. The
    docstrings and the code of a module have the same family. A file and a package with the same name have the same
    family, for example "zipfile.py" and "zipfile/__init__.py". A C module and the Python version of this module have
    the same family, for example "decimal.py" and "_pydecimal.py".

    Parameters
    ----------
    name : str
        A key of `documents(…)`, such as "code/asyncio/base_events.py".

    Returns
    -------
    str
        The name of the family.

    Examples
    --------
    >>> from lora_np.data import family_of
    >>> family_of("code/_pydecimal.py"), family_of("docstrings/asyncio/base_events.py")
    ('decimal', 'concurrency')
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
    # Keep each docstring and source once. Held-out documents come first, so a text in both splits stays held out.
    for name, path in sorted(_sources(Path(folder)), key=lambda item: (split_of(item[0]) == "train", item[0])):
        docstrings, code = _split_docstrings(path)
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
    """Return a dict with the text of each topic of the language reference. A topic inside another topic is left out."""
    path = folder / "pydoc_data" / "topics.py"
    if not path.is_file():
        raise FileNotFoundError(_missing("the language reference, pydoc_data/topics.py, is", folder))
    for node in _parse(path)[1].body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "topics":
            topics = ast.literal_eval(node.value)
            return {topic: text.strip() + "\n" for topic, text in topics.items() if topic not in SECTIONS}
    raise ValueError(
        f"{path} does not assign `topics`; expected the dictionary that Python's help() reads. Restore the file"
    )


def _sources(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and the path of each module of the library; the parts of a name are joined by forward slashes."""
    any_found = False
    for entry in folder.iterdir():  # skip folders early, because site-packages may be large
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
        with tokenize.open(path) as file:  # respects an encoding line, and converts newlines to "\n"
            source = file.read()
        return source, ast.parse(source)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not valid Python source ({error}). Restore the file, or pass the folder of another standard library as "
            "stdlib=…"
        ) from error


def _split_docstrings(path: Path) -> tuple[list[str], str]:
    """Return the docstrings of a module, and the source of the module without docstrings and copyright notice."""
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
    """For each docstring, yield three values: the list of statements that begins with the docstring, the docstring as a
    statement, and the docstring's text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            match node.body[0]:
                case ast.Expr(ast.Constant(str(text))) as statement:
                    yield node.body, statement, text


def _without_notice(comment: re.Match[str]) -> str:
    """Return "" if a block of comment lines is a copyright notice, which many modules repeat; else return the block."""
    return "" if re.search(r"copyright|licen[cs]ed|permission to use", comment[0], re.IGNORECASE) else comment[0]


def _missing(what: str, folder: Path) -> str:
    found = "the folder does not exist"
    if folder.is_dir():
        found = f"found {len(list(folder.rglob('*.py')))} .py and {len(list(folder.rglob('*.pyc')))} .pyc files"
    return (
        f"{what} not in {folder} ({found}). Expected the standard library with its sources, as python.org, uv, conda and "
        "Linux distributions install it, not zipped and not only compiled. Use another Python (3.11 or later), or pass the "
        "folder of its library as stdlib=…"
    )


def _one_of(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; expected {' or '.join(map(repr, allowed))}")
