"""Docstrings and comments are worded as the field words them; see CONTRIBUTING.md."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1] / "can_jax"
SOURCES = {path.relative_to(ROOT): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}
# The first word of a function's docstring is an imperative verb, so never one of these.
NO_VERBS = re.compile(
    r"(All|And|Any|Around|As|At|Because|Before|After|Both|But|By|Each|Every|For|From|Half"
    r"|Here|How|If|In|Its|It|Likewise|No|None|Not|Of|On|One|Only|Some|So|Such|That|Their"
    r"|These|They|This|Those|To|Two|Until|What|When|Where|Whether|Which|Who|With|Without)$"
)
PHRASES = re.compile(
    r"\b(goes|going|go) on\b|\bsays so\b|\b(is|are) told\b|\bwants\b|\bknows\b|\basks? for\b"
    r"|\ball have to (ask|come)\b|\bso often\b|\bthe less\b|\bwhat is (kept|compiled|read)\b"
)
# British spellings. Keys of files that older versions wrote have them, in these modules.
BRITISH = re.compile(
    r"(?i)(colour|grey|centre\b|neighbour|behaviour|labelled|modelled|(initial|normal|optim|recogn)is)"
)
OLD_KEYS = {"utils/renamed.py", "evaluate/protocols/knn.py", "study/report.py", "study/plots.py"}
# An entry of a docstring that is only a preposition, such as `path: of the images.`
FRAGMENT = re.compile(r"^ +[\w, ]+: (of|for|as|in|from|by|on|with) .*", re.MULTILINE)
# An error that refers to something outside of its line, such as `UserError: It does not.`
VAGUE = re.compile(r"^ +\w+Error: (It|They|There (is|are) none)\b.{0,20}\.$", re.MULTILINE)


def documented(kinds):
    """Return (place, node, docstring) of every documented node of some kinds."""
    nodes = [
        (f"{path}:{node.lineno}", node, text)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, kinds) and (text := ast.get_docstring(node))
    ]
    assert nodes
    return nodes


def is_property(node):
    names = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    return bool(names & {"property", "cached_property"})


def opening(text):
    return text.split()[0].strip(".,:;`")


def test_docstrings_of_functions_open_with_a_verb():
    wrong = [
        f"{place}: {text.splitlines()[0]}"
        for place, node, text in documented((ast.FunctionDef, ast.AsyncFunctionDef))
        if not is_property(node)
        and (
            NO_VERBS.match(opening(text))
            or opening(text) in ("A", "An", "The")
            or not re.match("[A-Z][a-z]", opening(text))
        )
    ]
    assert wrong == []


def test_docstrings_of_classes_open_with_a_noun_phrase():
    wrong = [
        f"{place}: {text.splitlines()[0]}"
        for place, _, text in documented(ast.ClassDef)
        if NO_VERBS.match(opening(text)) and opening(text) not in ("Any", "Each", "One", "Two")
    ]
    assert wrong == []


def test_docstrings_of_modules_say_what_they_contain():
    wrong = [
        f"{path}: {text.splitlines()[0]}"
        for path, tree in TREES.items()
        if (text := ast.get_docstring(tree)) and NO_VERBS.match(opening(text))
    ]
    assert wrong == []


def test_errors_of_docstrings_name_what_is_wrong():
    wrong = [
        f"{place}:{entry[0]}"
        for place, _, text in documented((ast.FunctionDef, ast.ClassDef))
        for entry in VAGUE.finditer(text)
    ]
    assert wrong == []


def test_entries_of_docstrings_are_no_fragments():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    wrong = [
        f"{place}:{entry[0]}"
        for place, _, text in documented(kinds)
        for section in re.split(r"^(?:Args|Attributes):$", text, flags=re.MULTILINE)[1:]
        for entry in FRAGMENT.finditer(section)
    ]
    assert wrong == []


def test_phrases_that_have_to_be_decoded():
    wrong = [
        f"{path}:{number}: {line.strip()}"
        for path, text in SOURCES.items()
        for number, line in enumerate(text.splitlines(), 1)
        if PHRASES.search(line)
    ]
    assert wrong == []


def test_spelling_is_american():
    wrong = [
        f"{path}:{number}: {line.strip()}"
        for path, text in SOURCES.items()
        for number, line in enumerate(text.splitlines(), 1)
        if BRITISH.search(line) and path.as_posix() not in OLD_KEYS
    ]
    assert wrong == []
