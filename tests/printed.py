"""What README and docs print, as printed: modules, entries of tables of tests, YAML files, command lines."""

import re
import shlex
import sys
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_folder = tempfile.TemporaryDirectory(prefix="printed")  # for as long as this process lives


def blocks(page, language):
    """The code of the blocks of one language: ``python`` is a module, ``py`` an entry of a table of tests."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def imported(page, place=0):
    """A python block of a page, imported from a file of its own, as some tests read the source of what they test."""
    name = f"printed_{page.stem}_{place}"
    if name not in sys.modules:
        path = Path(_folder.name, f"{name}.py")
        path.write_text(blocks(page, "python")[place])
        spec = spec_from_file_location(name, path)
        sys.modules[name] = module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def entry(page, names, brackets="[]"):
    """The ``py`` block of a page between brackets, with the names of its python blocks and those given."""
    (text,) = blocks(page, "py")
    known = dict(names)
    for place in range(len(blocks(page, "python"))):
        known |= vars(imported(page, place))
    return eval(f"{brackets[0]}{text}{brackets[1]}", known)


def files(page):
    """(path, text) of every YAML block whose path stands in code font on the line that leads to it."""
    return re.findall(r"`(conf/[\w/]+\.yaml)`[^\n]*\n\n```yaml\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page):
    """The command lines of a page, as they stand in bash blocks or, over several lines, in inline code."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", page.read_text())
    lines += [
        " ".join(code.split()) for code in inline if re.match(r"(python|srun|uv|pip|pytest|make|bash|redlab)\s", code)
    ]
    return [line.strip() for line in lines if shlex.split(line, comments=True)]
