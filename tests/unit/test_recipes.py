"""The recipes of the documents: each is followed by a test of the scenario, whole, and tells what is printed."""

import ast
import re

import pytest
import recipes

SCENARIOS = recipes.ROOT / "tests" / "sandbox"
RECIPES = recipes.read()


def followed() -> set[str]:
    """The titles that the end-to-end tests call `follow` with."""
    calls = [
        node
        for file in SCENARIOS.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "follow"
    ]
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}


def test_every_recipe_is_followed_by_a_test_and_no_test_follows_another() -> None:
    assert followed() == {*RECIPES}


def test_there_is_one_for_each_of_the_eight_scenarios() -> None:
    assert len(RECIPES) == 8


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_has_commands_and_what_they_print(title: str) -> None:
    recipe = RECIPES[title]
    assert recipe.commands and recipe.printed
    for command in recipe.commands:
        if command.startswith("make "):
            assert recipes.words(recipes.replaced(command, {recipes.HOST: "me@box"}), recipes.ROOT), command


def test_every_command_of_a_recipe_is_in_a_block_that_is_followed() -> None:
    for page in recipes.PAGES:
        text = (recipes.ROOT / "docs" / page).read_text("utf-8")
        for section in text.split("\n### Recipe: ")[1:]:
            languages = [
                line[3:]
                for line in section.partition("\n## ")[0].partition("\n### ")[0].splitlines()
                if line.startswith("```")
            ]
            assert {*languages} <= {"sh", "text", "yaml", ""}, section


def test_every_recipe_is_in_the_list_of_them() -> None:
    text = (recipes.ROOT / "docs" / "operations.md").read_text("utf-8")
    for title, recipe in RECIPES.items():
        page = "" if recipe.page == "operations.md" else recipe.page
        anchor = "".join(letter for letter in f"recipe {title}".lower() if letter.isalnum() or letter == " ")
        assert f"({page}#{anchor.replace(' ', '-')})" in text, title


def test_words_are_those_of_the_command_line() -> None:
    called = recipes.words("make reprovision HOST=user@gpu-host OLD=user@old YES=1   # without asking", recipes.ROOT)
    assert called == ["reprovision", "--host", "user@gpu-host", "--yes", "--old", "user@old"]


def test_a_reader_has_something_of_his_own_in_place_of_an_example() -> None:
    places = {"user@gpu-host": "user@box", "gpu-host": "box"}
    assert recipes.replaced("make plan HOST=user@gpu-host; gpu-host", places) == "make plan HOST=user@box; box"
    assert recipes.replaced("make plan", {}) == "make plan"


@pytest.mark.parametrize(
    "printed,output,missing",
    [
        (("Moves", "...", "  12.3 GB in 12 files"), "Moves\n 20480 bytes in 1 file, renamed\n", []),
        (("  a: ... -> b",), "x\na: anything -> b\n", []),
        (("Verdict: passed. 44 checks",), "Verdict: passed. 39 checks", []),
        (("Verdict: passed.",), "Verdict: failed.", ["Verdict: passed."]),
        (("first", "then"), "then\nfirst\n", ["then"]),
        (("(made) [y/N] y",), "Do it (made) [y/N] y", []),
    ],
)
def test_what_a_page_shows_must_have_been_printed_in_its_order(
    printed: tuple[str, ...], output: str, missing: list[str]
) -> None:
    assert recipes.missing(printed, output) == missing


def test_every_message_that_the_page_explains_is_one_of_ours() -> None:
    text = (recipes.ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    section = text.partition("## When a reprovision stops")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| `(.+?)` \|", section, re.M)
    sources = "".join(
        file.read_text("utf-8") for folder in ("atelier", "relocation") for file in (recipes.ROOT / folder).glob("*.py")
    )
    pieces = [piece.strip() for message in messages for piece in message.split("...") if piece.strip()]
    assert len(messages) > 9 and [piece for piece in pieces if piece not in sources] == []
