"""What the compiler makes of the step: what moves between devices, in which types and buffers.

The numbers are those of a small network; a change of them wants an explanation, not a new number.
"""

import collections
import copy
import math
import re
from types import SimpleNamespace

import jax
import pytest

from can_jax.data.pipeline.batch import batch_shapes
from can_jax.distributed.mesh import batch_sharding, make_mesh
from can_jax.plan.hlo import collectives
from can_jax.train.step import abstract_state, lower_train_step, make_step
from tests.helpers.configs import small_config

# Visible tokens and all tokens, the class token among them: no width or batch is like these.
TOKENS = {8 + 1, 16 + 1}


def small(**changes):
    return small_config(
        batch_size=64, model__depth=3, model__width=32, model__heads=4, model__scan=True,
        model__dtype="bfloat16", **changes,
    )  # fmt: skip


def built(**changes):
    """The step of a mesh: its shapes, its lowered and its compiled text, and its collectives."""
    config = small(**changes)
    mesh = make_mesh(config.mesh)
    step = make_step(config, lambda _: 1e-3)
    state = abstract_state(step, mesh)
    batch = batch_shapes(config, batch_sharding(mesh))
    lowered = lower_train_step(step, state, batch, mesh)
    compiled = lowered.compile()
    text = compiled.as_text()
    return SimpleNamespace(
        state=state, lowered=lowered.as_text(), text=text, collectives=collectives(text, mesh),
        memory=compiled.memory_analysis(),
    )  # fmt: skip


def sizes(array):
    return [int(size) for size in re.search(r"\[([\d,]*)\]", array)[1].split(",") if size]


@pytest.fixture(scope="module")
def data_parallel():
    return built()


@pytest.fixture(scope="module")
def fully_sharded():
    return built(mesh__data=2, mesh__fsdp=4)


@pytest.fixture(scope="module")
def split_state():
    return built(mesh__shard_state=True)


# The operations of `small_config`, as they were before there were other objectives. They depend on
# the method, not on how a version of JAX writes a function of it.
CAN = {"dot_general": 72, "sort": 2, "rsqrt": 10}


def operations(config):
    """The text of the lowered step on one device, and how often it has each operation."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    step = make_step(config, lambda _: 1e-3)
    batch = batch_shapes(config, batch_sharding(mesh))
    text = lower_train_step(step, abstract_state(step, mesh), batch, mesh).as_text()
    return text, collections.Counter(re.findall(r"stablehlo\.(\w+)", text))


def test_program_of_can_has_nothing_of_other_objectives_and_options():
    """A change of the numbers of `CAN` is a change of the method, or of JAX."""
    config = small_config()
    text, counted = operations(config)
    assert {name: counted[name] for name in CAN} == CAN
    bare = copy.deepcopy(config)
    with bare.unlocked():
        for name in set(bare.objective) - {"contrastive", "reconstruction", "denoising"}:
            del bare.objective[name]
    assert operations(bare)[0] == text
    # A teacher would be seen: one block without gradient has six products.
    taught = {"objective__latents__weight": 1.0, "optimizer__ema_decay": 0.9}
    more = operations(small_config(**taught))[1]
    assert more["dot_general"] >= CAN["dot_general"] + 6 and more["rsqrt"] > CAN["rsqrt"]


def test_split_state_is_gathered_block_by_block(split_state):
    gathered = [a for c in split_state.collectives if c.kind == "all-gather" for a in c.arrays]
    moved = [math.prod(sizes(array)) for array in gathered]
    blocks = split_state.state.parameters["encoder"]["blocks"]["layers"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(blocks):
        if "kernel" in str(path[-1]):
            assert leaf.size // 3 in moved, path
            assert "mlp" not in str(path) or leaf.size not in moved, path
    # A device stores an eighth of what it would hold.
    stored = sum(
        math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(split_state.state)
    )
    assert stored < 0.3 * sum(x.size for x in jax.tree.leaves(split_state.state))


def test_data_parallel_step_gathers_embeddings_and_reduces_gradients(data_parallel):
    moved = data_parallel.collectives
    gathered = [a for c in moved if c.kind == "all-gather" for a in c.arrays]
    # The keys of the contrastive loss, and backward what each row's softmax is divided by, and its
    # number of positives.
    assert sorted(map(sizes, gathered)) == [[128], [128], [128, 16]]
    assert {c.kind for c in moved} == {"all-gather", "all-reduce"}
    assert {c.axes for c in moved} == {"data"}
    reduced = sum(c.bytes * c.times for c in moved if c.kind == "all-reduce")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(data_parallel.state.parameters))
    # Gradients once, in float32 on this backend; beside them statistics and what is logged.
    assert parameters * 4 <= reduced <= parameters * 4 * 1.25
    # Two loops' gradients, the rest's, BatchNorm's statistics, losses: no more than these.
    assert sum(c.times for c in moved if c.kind == "all-reduce") <= 2 * 3 + 2 * 1 + 14


def test_parameters_are_gathered_over_fsdp_only(fully_sharded):
    gathered = [
        array
        for collective in fully_sharded.collectives
        if (collective.kind, collective.axes) == ("all-gather", "fsdp")
        for array in collective.arrays
    ]
    entries = {math.prod(leaf.shape) for leaf in jax.tree.leaves(fully_sharded.state.parameters)}
    layers = {
        entries_of // depth for entries_of in entries for depth in (3, 1) if entries_of % depth == 0
    }
    assert gathered
    for array in gathered:
        assert math.prod(sizes(array)) in layers, array


@pytest.mark.parametrize("mesh", ["data_parallel", "fully_sharded", "split_state"])
def test_rows_never_leave_their_devices(mesh, request):
    moved = request.getfixturevalue(mesh).collectives
    arrays = [(collective.kind, array) for collective in moved for array in collective.arrays]
    assert arrays
    for kind, array in arrays:
        assert not TOKENS & set(sizes(array)), (kind, array)


@pytest.mark.slow
def test_without_pins_the_compiler_would_move_rows(monkeypatch):
    """What the tests above guard against is real."""
    monkeypatch.setattr(
        "can_jax.models.vit.constrain_batch_sharding",
        lambda x: jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec()),
    )
    arrays = [array for c in built().collectives for array in c.arrays]
    assert any(TOKENS & set(sizes(array)) for array in arrays)


def test_bfloat16_step_has_no_products_in_float32_but_those_that_are_meant(data_parallel):
    lines = data_parallel.lowered.splitlines()
    products = [line for line in lines if "stablehlo.dot_general" in line]
    narrow = re.compile(r": \(tensor<[^>]*bf16>, tensor<[^>]*bf16>")
    wide = [line for line in products if not narrow.search(line)]
    # Similarities, forward and backward, how they pull at embeddings, the logged Gram matrix.
    losses = ["128x128", "128x128", "128x16", "32x32"]
    # The fixed map is multiplied into the patch embedding, whatever the number of patches.
    embedding = ["48x32", "32", "32x48", "32x48"]
    results = [re.search(r"-> tensor<([\dx]+)xf32>", line)[1] for line in wide]
    assert sorted(results) == sorted(losses + embedding)
    assert len(products) > 30


@pytest.mark.parametrize("mesh", ["data_parallel", "fully_sharded"])
def test_state_is_updated_in_place(mesh, request):
    """Every array of the state is written over the one it comes from."""
    step = request.getfixturevalue(mesh)
    leaves = jax.tree.leaves(step.state)
    header = step.text.splitlines()[0]
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)", header)
    each = [(i, i) for i in range(len(leaves))]
    assert sorted((int(out), int(into)) for out, into in aliases) == each
    held = sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in leaves
        if leaf.ndim
    )
    assert step.memory.alias_size_in_bytes >= held > 0
