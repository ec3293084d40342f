"""What the site has beyond docs/: a hook of MkDocs, see mkdocs.yml.

- Pages of the reference, one entry a public name.
- CONTRIBUTING.md and CHANGELOG.md as pages, and sections of README.md where a page says
  ``<!-- README: Heading -->``.
- Links that are right on a page in the repository are right on the site.
- Checks after the build: every public name stands in the reference once, and no page loads
  anything from elsewhere.
"""

from __future__ import annotations

import inspect
import logging
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

log = logging.getLogger("mkdocs.hooks.docs_site")  # under mkdocs, a warning fails a strict build

ADOPTED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files outside docs/, and what they are called on the site."""
ON_SITE = {"README.md": "index.md", **ADOPTED}

PARTS = {
    "models": "mishkit.surgery",
    "gates": "mishkit.gates",
    "neuron": "mishkit.neuron",
}
"""Pages of the reference by where their names come from; `tools` has the rest."""
RETURNED = {
    "models": (
        "mishkit.surgery.report.Report",
        "mishkit.surgery.report.Site",
        "mishkit.surgery.replacements.Replacements",
        "mishkit.surgery.replacements.Replacement",
        "mishkit.surgery.prune.PruneReport",
        "mishkit.surgery.prune.PrunedSite",
    ),
    "tools": ("mishkit.lab.calculus.analysis.Analysis",),
}
"""Classes that public functions return, by page."""

# ---- the reference -------------------------------------------------------------------------------


def public_names() -> dict[str, list[str]]:
    """The public names of each page of the reference, in the order of the table or by the letter.

    What `mishkit.__all__` has gets a page without further registration.
    """
    import mishkit
    from mishkit.functional import FUNCTIONS
    from mishkit.modules import MODULES

    pages: dict[str, list[str]] = {
        "functions": list(FUNCTIONS),
        "modules": list(MODULES),
        **{page: [] for page in PARTS},
        "tools": [],
    }
    elsewhere = {*FUNCTIONS, *MODULES, "__version__"}
    for name in mishkit.__all__:
        if name in elsewhere:
            continue
        value = getattr(mishkit, name)
        if value in (mishkit.functional, mishkit.modules):  # they open their pages
            continue
        home = value.__name__ if isinstance(value, ModuleType) else value.__module__
        page = next((p for p, prefix in PARTS.items() if home.startswith(prefix)), "tools")
        pages[page].append(name)
    return pages


def path_of(name: str) -> str:
    """By what path MkDocs, which does not run the package, finds a public name."""
    import mishkit

    home = getattr(getattr(mishkit, name), "__module__", "")
    # `mishkit.audit` would be the module `mishkit.surgery.audit`.
    return f"{home}.{name}" if home.endswith(f".{name}") else f"mishkit.{name}"


def entries(names: list[str]) -> str:
    return "\n".join(f"::: {path_of(name)}\n" for name in names)


def table(link: Callable[[Any], str]) -> str:
    """The activations, each with its formula."""
    from mishkit.functions import ACTIVATIONS

    rows = [f"| {link(a)} | {a.formula} |" for a in ACTIVATIONS.values()]
    return "\n".join(["| | f(x) |", "|---|---|", *rows])


def functions_page(names: list[str]) -> str:
    from mishkit import functional

    overview = table(lambda a: f"[`{a.name}`](#mishkit.{a.name})")
    said = inspect.getdoc(functional)
    assert said is not None
    _, _, said = said.partition("\n\n")
    return f"# Functions\n\n{overview}\n\n{definition_list(said)}\n\n{entries(names)}"


def modules_page(names: list[str]) -> str:
    overview = table(lambda a: f"[`{a.module_name}`](#mishkit.{a.module_name})")
    text = (
        "Each is the function of the same formula as a `torch.nn.Module`, with the names and "
        "arguments of `torch.nn`: arguments are attributes, passed at each call. Input and output "
        "have any shape and strides, in float32, float64, bfloat16 or float16. "
        "[Functions](functions.md) says what `inplace` and `save` do."
    )
    return f"# Modules\n\n{text}\n\n{overview}\n\n{entries(names)}"


def definition_list(text: str) -> str:
    """Docstring entries, `name : type` above indented text, as a Markdown list."""

    def item(match: re.Match[str]) -> str:
        said = " ".join(match["text"].split())
        return f"- **`{match['name']}`** ({match['type']}): {said}\n"

    pattern = r"^(?P<name>\w+) : (?P<type>.+)\n(?P<text>(?:    .+\n)+)"
    return re.sub(pattern, item, text + "\n", flags=re.MULTILINE)


COMMANDS = """\
The extra `cli` brings what `audit`, `lean`, `swap` and `run` need, and the extra `lab` what every
command needs; `env` needs neither. `mishkit COMMAND --help` prints what stands here.

An error is reported in one line on stderr, with exit status 1. The status is 2 for a wrong option
or argument, and 130 after Ctrl-C. `--traceback`, or `MISHKIT_TRACEBACK=1` in the environment, also
prints the calls that led to an error. If a terminal is too narrow for a table, it becomes a list;
characters that the terminal does not know become question marks."""


def commands_page() -> str:
    """The command line, in its own words."""
    import typer

    from mishkit_cli import app

    group = typer.main.get_command(app)
    context = group.make_context("mishkit", [], resilient_parsing=True)
    text = ["# Command line", COMMANDS]
    for name in group.list_commands(context):  # type: ignore[attr-defined]
        command = group.get_command(context, name)  # type: ignore[attr-defined]
        sub = command.make_context(f"mishkit {name}", [], resilient_parsing=True)
        usage = " ".join([f"mishkit {name}", *command.collect_usage_pieces(sub)])
        said = inspect.cleandoc(command.help or "").replace("\b\n", "")
        text += [f"## mishkit {name}", f"```\n{usage}\n```", said, options_of(command, sub)]
    return "\n\n".join(filter(None, text)) + "\n"


def options_of(command: Any, context: Any) -> str:
    rows = []
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is None or "--help" in parameter.opts:
            continue
        name, said = (" ".join(re.sub(r"\[/?\w*\]", "", part).split()) for part in record)
        rows.append(f"| `{escaped(name)}` | {escaped(said)} |")
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


TITLES = {
    "models": "# Models\n\nWhat is done to the activations of a model that exists.",
    "gates": "# Gates",
    "neuron": "# The APTx neuron",
    "tools": "# Names, memory, analysis",
}


def reference() -> Iterator[tuple[str, str]]:
    for page, names in public_names().items():
        if page == "functions":
            text = functions_page(names)
        elif page == "modules":
            text = modules_page(names)
        else:
            also = "\n".join(f"::: {path}\n" for path in RETURNED.get(page, ()))
            text = f"{TITLES[page]}\n\n{entries(names)}\n{also}"
        yield f"reference/{page}.md", text
    yield "reference/commands.md", commands_page()


class _NamesFromTables(logging.Filter):
    """`*_functions` in `mishkit.__all__` is the table's; the pages don't need MkDocs to read it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "Unsupported item in mishkit.__all__" not in record.getMessage()


logging.getLogger("mkdocs.plugins.griffe").addFilter(_NamesFromTables())

# ---- pages from elsewhere ------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for source, target in ADOPTED.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    for target, text in reference():
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    adopted = {target: source for source, target in ADOPTED.items()}
    source = adopted.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if not page.file.src_uri.startswith("reference/"):
        markdown = with_links(markdown, source)
    return re.sub(r"^<!-- README: (.+) -->$", _from_readme, markdown, flags=re.MULTILINE)


def _from_readme(match: re.Match[str]) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return with_links(section(text, match[1]), "README.md")


def section(text: str, heading: str) -> str:
    """What stands under a heading, without it; code may have lines that look like one."""
    lines, inside, fenced = [], False, False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            if inside:
                break
            inside = line.lstrip("#").strip() == heading
        elif inside:
            lines.append(line)
    if not inside:
        log.warning('README.md has no heading "%s"', heading)
    return "\n".join(lines).strip()


# ---- links ---------------------------------------------------------------------------------------

CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")


def with_links(markdown: str, source: str) -> str:
    """Relative links from a file of the repository, as they are on the site.

    A link to a file that is no page becomes its text. One to what does not exist stays, for MkDocs
    to warn about.
    """
    # Code within a link's text is part of the link, and code elsewhere is left alone.
    held: list[str] = []

    def hold(match: re.Match[str]) -> str:
        held.append(match[0])
        return f"\0{len(held) - 1}\0"

    def link(match: re.Match[str]) -> str:
        there = place_of(match["target"], source)
        return match["text"] if there is None else f"[{match['text']}]({there})"

    markdown = LINK.sub(link, CODE.sub(hold, markdown))
    return re.sub("\0(\\d+)\0", lambda match: held[int(match[1])], markdown)


def place_of(target: str, source: str) -> str | None:
    """Where a link leads on the site; None where there is no such page."""
    parts = urlsplit(target)
    if parts.scheme or not parts.path:
        return target
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), parts.path))
    here = ON_SITE.get(source, source.removeprefix("docs/"))
    if path in ON_SITE:
        there = ON_SITE[path]
    elif path.startswith("docs/"):
        there = path.removeprefix("docs/")
    elif (ROOT / path).exists():
        return None
    else:
        return target
    there = posixpath.relpath(there, posixpath.dirname(here) or ".")
    return f"{there}#{parts.fragment}" if parts.fragment else there


# ---- checks --------------------------------------------------------------------------------------


class _Contents(HTMLParser):
    """The identifiers on a page, and what a browser would load for it without being asked."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.append(given["id"])
        loads = given.get("href", "") if tag == "link" else given.get("src", "")
        if loads and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(loads)


def complaints(site: Path, wanted: set[str]) -> Iterator[str]:
    """What is wrong with a built site, where `wanted` are the identifiers of the public names."""
    places: dict[str, list[str]] = {}
    for path in sorted(site.rglob("*.html")):
        contents = _Contents()
        contents.feed(path.read_text(encoding="utf-8"))
        name = path.relative_to(site).as_posix()
        for load in contents.loads:
            parts = urlsplit(load)
            if parts.netloc or parts.scheme not in ("", "data"):
                yield f"{name} loads {load}"
        for identifier in contents.ids:
            places.setdefault(identifier, []).append(name)
    for path in sorted(site.rglob("*.css")):
        for load in re.findall(r"url\(\s*[\"']?((?:https?:)?//[^)\"']+)", path.read_text()):
            yield f"{path.relative_to(site).as_posix()} loads {load}"
    for identifier in sorted(wanted):
        where = places.get(identifier, [])
        if len(where) != 1:
            yield f"{identifier} stands {len(where)} times in the reference: {', '.join(where)}"


def on_post_build(config: MkDocsConfig) -> None:
    wanted = {path_of(name) for names in public_names().values() for name in names}
    wanted.update(*RETURNED.values())
    for complaint in complaints(Path(config.site_dir), wanted):
        log.warning("%s", complaint)
