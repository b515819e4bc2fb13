import jax.numpy as jnp
import pytest
from rich.console import Console

from can_jax.monitoring import console


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.2, "7s"), (187.0, "3m 07s"), (11220.0, "3h 07m"), (266400.0, "3d 02h")]
)
def test_durations_read_well(seconds, text):
    assert console.duration(seconds) == text


def test_parameter_table_counts_all():
    tree = {
        "encoder": {"norm": {"scale": jnp.zeros(3), "bias": jnp.zeros(3)}, "token": jnp.zeros(4)}
    }
    recorder = Console(record=True, width=80)
    recorder.print(console.parameter_table(tree))
    text = recorder.export_text()
    assert "encoder/norm" in text and " 10 " in text


@pytest.mark.parametrize("text", ["/a/[abc]*.tar", "runs/x[/y]", "[new] :smile: [bold]b[/]"])
def test_brackets_and_colons_are_printed_as_they_are(capsys, text):
    reporter = console.Reporter(0, 1)
    reporter.say(text)
    console.plain_console(width=200).print(console.fact_table(text, {text: text}))
    out = capsys.readouterr().out
    assert out.splitlines()[0] == text and out.count(text) == 4
