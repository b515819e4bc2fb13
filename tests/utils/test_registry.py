"""The registries to which a user's module can add."""

import runpy

import pytest

from can_jax.utils import registry as registries
from can_jax.utils.errors import UserError
from can_jax.utils.registry import Registry, user_modules


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    """Keep the registries of these tests out of the list of all."""
    monkeypatch.setattr(Registry, "all", [])


@pytest.fixture
def sources():
    registry = Registry("data source")
    registry.register("folder", 1)
    return registry


def test_value_is_found_by_its_name(sources):
    @sources.register("mine")
    def mine():
        return 2

    assert sources.get("mine") is mine and sources.get("folder") == 1
    assert list(sources) == ["folder", "mine"] == list(sources.names())
    assert "mine" in sources and "yours" not in sources and 3 not in sources
    assert len(sources) == 2 and dict(sources.items())["folder"] == 1


@pytest.mark.parametrize(
    ("name", "hint"), [("foldr", "did you mean 'folder'?"), ("x9", "choose one of folder")]
)
def test_unknown_name_gets_a_hint(sources, name, hint):
    with pytest.raises(UserError) as error:
        sources.get(name)
    assert str(error.value) == f"there is no data source {name!r}; {hint}"


@pytest.mark.parametrize("name", ["two words", "a.b", "", "1st"])
def test_name_is_an_identifier(sources, name):
    with pytest.raises(ValueError, match="give a Python identifier as its name"):
        sources.register(name, 1)
    assert sources.names() == ("folder",)


def test_module_replaces_its_own_values_but_not_those_of_others(sources, tmp_path):
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    for path in (mine, other):
        path.write_text("registry.register('mine', object())\n")
    runpy.run_path(str(mine), {"registry": sources})
    first = sources.get("mine")
    runpy.run_path(str(mine), {"registry": sources})
    second = sources.get("mine")
    assert second is not first and sources.origin("mine") == str(mine)
    with pytest.raises(ValueError, match=r"already registered by .*/mine.py: give yours another"):
        runpy.run_path(str(other), {"registry": sources})
    assert sources.get("mine") is second


def test_files_beside_the_package_are_modules_of_the_user(sources, tmp_path, monkeypatch):
    """As `can_jax_parts.py` in a clone, whose path begins with that of the package."""
    monkeypatch.setattr(registries, "__file__", str(tmp_path / "can_jax" / "utils" / "registry.py"))
    own, mine = tmp_path / "can_jax" / "own.py", tmp_path / "can_jax_parts.py"
    own.parent.mkdir()
    for path in (own, mine):
        path.write_text(f"registry.register({path.stem!r}, 1)\n")
        runpy.run_path(str(path), {"registry": sources})
    assert str(mine) in user_modules() and str(own) not in user_modules()
