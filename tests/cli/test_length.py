import pytest

from can_jax.cli.length import parse_length
from can_jax.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("2h", "total_minutes", 120), ("90m", "total_minutes", 90), ("1h30m", "total_minutes", 90),
        ("1d", "total_minutes", 1440), ("30s", "total_minutes", 0.5),
        ("10min", "total_minutes", 10),
        ("100epochs", "total_epochs", 100.0), ("1.5 epochs", "total_epochs", 1.5),
        ("5_000steps", "total_steps", 5000), ("1e7images", "total_examples", 10**7),
    ],
)  # fmt: skip
def test_length_sets_a_key_of_the_recipe(text, key, value):
    assert parse_length(text) == (key, value)


@pytest.mark.parametrize("text", ["", "2", "2x", "0h", "-1h", "1.5steps", "h", "0epochs", "2h 1"])
def test_other_lengths_are_refused(text):
    with pytest.raises(UserError, match="give a time such as 2h"):
        parse_length(text)
