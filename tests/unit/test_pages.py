"""README and guides: links lead somewhere, commands are ones that exist, and what is done by hand comes out as told."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flows.__main__ import cli
from tests.pages import ROOT, RUN, Block, blocks, differences, problem, rewritten, run

PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings: lower case, blanks to hyphens, punctuation gone, repeats numbered."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        again = found[name] = found.get(name, -1) + 1
        names.add(f"{name}-{again}" if again else name)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.resolve().is_relative_to(ROOT) or not file.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            wrong.append(f"{target}: no such heading")
    assert not wrong, f"{page}: {wrong}"


def test_every_guide_can_be_found_from_the_readme() -> None:
    named = set(re.findall(r"\]\((docs/[^)#]+\.md)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert set(PAGES) - named == {"README.md"}


def typed(commands: str) -> Iterator[list[str]]:
    """The words of each `gptflow` command in a box."""
    joined = re.sub(r"<<-?'?(\w+)'?\n.*?^\1$", "", commands.replace("\\\n", " "), flags=re.DOTALL | re.MULTILINE)
    for line in joined.splitlines():
        for words in re.split(r"\s(?:\||&&|;)\s", line):
            if found := re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?gptflow (.*)", words.strip()):
                lexer = shlex.shlex(re.sub(r"\s\d?[<>].*", "", found[1]), posix=True, punctuation_chars=False)
                lexer.whitespace_split = True
                yield list(lexer)


def refusal(words: list[str], *, whole: bool = True) -> str:
    """What the command line says against these words, without doing them; nothing if they are right.

    A command that is only spoken of need not be `whole`.
    """
    command: click.Command = cli
    context = click.Context(cli, info_name="gptflow")
    while isinstance(command, click.Group):
        if not words:
            return ""  # it lists its commands
        known = command.get_command(context, words[0])
        if known is None:
            return f"no command {words[0]!r}"
        command, words = known, words[1:]
    try:
        command.make_context(str(command.name), list(words), parent=context)
    except click.exceptions.Exit:  # --help
        return ""
    except click.MissingParameter as error:
        return error.format_message() if whole else ""
    except click.ClickException as error:
        return "" if "does not exist" in error.message and "File" in error.message else error.format_message()
    return ""


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/errors.md"])  # it holds wrong ones
def test_commands_are_as_the_command_line_takes_them(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    boxes = re.findall(r"^```(?:bash|console)?\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    inline = [each for each in re.findall(r"`(gptflow [a-z][^`\n]*)`", text) if not re.search(r"[A-Z…]{2}|…", each)]
    wrong = [
        f"gptflow {' '.join(words)}: {said}"
        for commands, whole in (*((box, True) for box in boxes), *((each, False) for each in inline))
        for words in typed(commands)
        if (said := refusal(words, whole=whole))
    ]
    assert not wrong, f"{page}: {wrong}"


def test_a_wrong_command_in_a_page_is_seen() -> None:
    assert list(typed("A=1 .venv/bin/gptflow loss --json 'a b' > out.json  # hush\n$ gptflow \\\n  doctor | head")) == [
        ["loss", "--json", "a b"],
        ["doctor"],
    ]
    assert "No such option" in refusal(["loss", "--jsn", "a"])
    assert "no command 'los'" in refusal(["los"])
    assert refusal(["rate", "start", "--raterr", "x"])
    assert not refusal(["store", "gc", "--yes"])


def test_the_loss_by_hand_in_the_tutorial_comes_out_as_told(tmp_path: Path) -> None:
    page = "docs/tutorial.md"
    by_hand = [b for b in blocks(page, (ROOT / page).read_text(encoding="utf-8")) if "by hand" in b.heading.lower()]
    told = [b for b in by_hand if "gptflow" not in b.commands]
    assert told
    for block in told:
        assert block.output
        assert not problem(block, *run(block, tmp_path))
    assert "-10.794" in "".join(b.output or "" for b in told)


def a_block(output: str, *, comments: str = "") -> Block:
    (block,) = blocks("page.md", f"# A\n\n{comments}\n```bash\ntrue\n```\n\n```text\n{output}\n```\n")
    return block


@pytest.mark.parametrize(
    ("output", "comments", "same", "other"),
    [
        ("a\nb", "", ("a\nb\n",), ("a\n", "a\nb\nc\n", "b\na\n", "")),
        ("a …\nb", "", ("a 12\nb\n", "a 1 2\nb\n"), ("c 12\nb\n", "a 12\n")),
        ("…\nend", "", ("x\ny\nend\n", "end\n"), ("end\nx\n", "x\n")),
        ("a\n…\nm\n…\nz", "", ("a\n1\nm\nz\n", "a\nm\n2\n3\nz\n"), ("a\nz\n", "m\na\nz\n", "a\nm\n")),
        ("loss 2.34", "", ("loss 2.34",), ("loss 2.35",)),
        ("loss 2.34", "<!-- within 1 % -->", ("loss 2.36", "loss   2.33"), ("loss 2.40", "loss 2", "los 2.34")),
        ("p 1.0e-05, 7", "<!-- within 0 % -->", ("p 1.1e-05, 7",), ("p 1.3e-05, 7", "p 1.0e-05, 8")),
        ("My words", "<!-- varies: My … -->", ("My own words",), ("Your words", "")),
    ],
)
def test_outputs_are_compared(output: str, comments: str, same: tuple[str, ...], other: tuple[str, ...]) -> None:
    block = a_block(output, comments=comments)
    assert [printed for printed in same if differences(block, printed)] == []
    assert [printed for printed in other if not differences(block, printed)] == []


def test_a_page_is_rewritten_with_what_its_commands_print(tmp_path: Path) -> None:
    text = (
        "# Page\n\n"
        "```bash\nprintf 'path %s\\n1\\n2\\nin all 3\\n4\\nend 5\\n' $PWD\n```\n\n"
        "```text\npath …\n…\nin all 7\n…\nend 8\n```\n\nWords.\n\n"
        "<!-- exits 3 -->\n```bash\necho told >&2; exit 3\n```\n\n```text\nnothing\n```\n"
        "<!-- not run: no hub -->\n```bash\nfalse\n```\n"
    )
    first, second, third = blocks("page.md", text)
    assert (second.exits, third.not_run, third.output) == (3, "no hub", None)
    assert first.place == "page.md:4"
    told = {block: run(block, tmp_path) for block in (first, second)}
    assert "-end 8" in problem(first, *told[first])
    assert problem(second, *told[second])
    now = rewritten(text, {block: printed for block, (_, printed) in told.items()})
    assert now == text.replace("all 7\n", "all 3\n").replace("end 8\n", "end 5\n").replace("nothing\n", "told\n")
    assert not [found for block in blocks("page.md", now)[:2] if (found := problem(block, *run(block, tmp_path)))]
    assert "ended with 3, and should with 0" in problem(first, 3, "")


def test_the_pages_that_are_run_exist() -> None:
    for page in RUN:
        assert blocks(page, (ROOT / page).read_text(encoding="utf-8"))


def test_the_help_lists_every_command_once_under_what_it_is_for() -> None:
    told = CliRunner().invoke(cli, ["--help"]).stdout
    listed = re.findall(r"^  ([a-z-]+) {2,}\S", told.partition("Train:")[2], flags=re.MULTILINE)
    assert sorted(listed) == sorted(cli.commands)
    assert "\nMore:" not in told, "give the new command a section in flows/commands/sections.py"
