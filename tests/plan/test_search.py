import dataclasses
import functools
import math

import jax
import pytest

from can_jax.data.pipeline.batch import batch_shapes
from can_jax.distributed.hardware import Chip
from can_jax.distributed.mesh import batch_sharding, make_mesh
from can_jax.plan import search as search_module
from can_jax.plan.charges import Charge, Estimate
from can_jax.plan.estimate import Memory, Plan, needed_bytes, recomputed_flops
from can_jax.plan.search import Attempt, Search, choice_of, choices, fit_mesh
from can_jax.plan.topology import Topology
from can_jax.train.step import abstract_state, gradients, make_step
from tests.helpers.configs import small_config

LIMIT = 1000
TOPOLOGY = Topology(
    "v5e:2x4", [None] * 8, Chip("x", 1e9, LIMIT, 1e9, 1e8), (2, 4), slices=1, exact=True
)


def plan_of(config, needed):
    """What a compiler would say that wants so many bytes with nothing done to save any."""
    chosen = choice_of(config, 8)
    kept = {"none": 1.0, "dots": 0.75, "dots_no_batch": 0.35, "full": 0.2}[chosen.remat]
    temporaries = int(needed * kept * (0.1 + 0.9 / chosen.microbatches))
    state = 800 // chosen.mesh[1]
    return Plan(
        fits=temporaries + state <= LIMIT,
        mesh=dict(zip(("data", "fsdp", "tensor"), chosen.mesh, strict=True)),
        parameters=20,
        memory=Memory(state // 3, state - state // 3, temporaries, temporaries + state, LIMIT),
        flops_per_image=1,
        recomputed_flops_per_image=recomputed_flops(config),
        collectives=[],
        compile_seconds=0.0,
        compute_seconds=search_module.compute_seconds(config, TOPOLOGY, 0.5),
        communication_seconds=0.0,
    )


def searched(monkeypatch, needed, tries=12, *, first_fit=False, **changes):
    config = small_config(batch_size=64, **changes)
    monkeypatch.setattr(search_module, "make_plan", lambda config, *_: plan_of(config, needed))
    search = Search(config, TOPOLOGY, 0.5, plan_of(config, needed))
    seen = []
    search.run(tries, seen.append, first_fit=first_fit)
    assert seen == search.attempts[1:]
    return search


def test_choices_divide_the_devices_and_the_batch():
    found = list(choices(small_config(batch_size=24), 8))
    assert {choice.microbatches for choice in found} == {1}  # 3 images a device
    assert {choice.mesh for choice in found} == {(8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1)}
    assert {choice.remat for choice in found} == {"none", "dots", "dots_no_batch", "full"}
    with_tensor = choices(small_config(batch_size=64, mesh__tensor=2), 8)
    assert {choice.mesh[2] for choice in with_tensor} == {2}


@pytest.mark.parametrize(("negatives", "counts"), [("microbatch", {2}), ("batch", {1, 2, 4, 8})])
def test_microbatches_with_their_own_negatives_are_not_searched(negatives, counts):
    changes = {"accumulation__microbatches": 2, "accumulation__negatives": negatives}
    found = choices(small_config(batch_size=64, **changes), 8)
    assert {choice.microbatches for choice in found} == counts


def test_the_first_that_fits_ends_the_search_for_advice(monkeypatch):
    search = searched(monkeypatch, needed=900, first_fit=True)
    assert [attempt.plan.fits for attempt in search.attempts] == [False, True]
    # Splitting the state is enough: nothing has to be computed again.
    assert search.best.choice.remat == "none" and search.best.choice.mesh[1] > 1


def test_times_are_predicted_from_the_compilers_last_estimate(monkeypatch):
    search = searched(monkeypatch, needed=100, tries=0)
    choice = search.attempts[0].choice
    assumed = search.predicted_seconds(choice)
    slow = Estimate((Charge("x", "fusion", "other", "products", 3 * assumed, 1, "compiler", None),))
    plan = dataclasses.replace(
        search.attempts[0].plan, estimate=slow, compute_seconds=slow.computing
    )
    search.attempts.append(Attempt(choice, plan))
    assert search.predicted_seconds(choice) == pytest.approx(3 * assumed, rel=0.01)


def test_the_fastest_that_fits_is_the_best(monkeypatch):
    search = searched(monkeypatch, needed=2500)
    fitting = [attempt for attempt in search.attempts if attempt.plan.fits]
    assert len(fitting) > 2
    assert search.best.plan.step_seconds == min(a.plan.step_seconds for a in fitting)
    assert "--config.model.remat=" in search.best.choice.options


def test_where_nothing_fits_it_says_so_without_trying_all(monkeypatch):
    search = searched(monkeypatch, needed=1e6)
    assert search.best is None and len(search.attempts) == 2
    assert search.smallest is search.attempts[1]
    assert search.smallest.choice.remat == "full" and search.smallest.choice.mesh[1] == 8


def test_a_search_compiles_no_more_than_it_may(monkeypatch):
    assert len(searched(monkeypatch, needed=100, tries=3).attempts) == 4


def test_mesh_of_other_devices_becomes_the_nearest():
    config = small_config(batch_size=64)
    config.mesh.update(data=-1, fsdp=8, tensor=2)
    assert fit_mesh(config, 32) is None and config.mesh.data == -1
    assert "does not fit 4 devices" in fit_mesh(config, 4)
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (1, 2, 2)
    config.mesh.update(data=3, fsdp=1, tensor=1)
    assert fit_mesh(config, 8) and config.mesh.data == 8


def test_choice_is_applied_to_the_configuration():
    config = small_config(batch_size=64)
    for choice in choices(config, 8):
        assert choice_of(choice.apply(config), 8) == choice
    assert config.model.remat == "none"


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
            "memory required for HLO temporaries (107.94G) exceeds available HBM (15.75G).",
            107.94 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory. Used 843.5M of 15.75G hbm.", 843.5 * 2**20),
    ],
)
def test_memory_is_read_from_the_compilers_refusal(message, size):
    assert needed_bytes(RuntimeError(message)) == int(size)


def test_other_failures_of_the_compiler_are_not_taken_for_one_of_memory():
    with pytest.raises(RuntimeError, match="INTERNAL"):
        needed_bytes(RuntimeError("INTERNAL: 3.2G of something"))


def product_flops(jaxpr):
    """FLOPs of all matrix products, those of a loop as often as it runs."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, (result,) = equation.invars[0].aval.shape, equation.outvars
            found += 2 * result.aval.size * math.prod(left[axis] for axis in contracted)
        inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(equation.params)]
        inner = [product_flops(x) for x in inner if hasattr(x, "eqns")]
        if equation.primitive.name == "cond":  # of backends
            inner = inner[-1:]
        found += equation.params.get("length", 1) * sum(inner)
    return found


def product_flops_of_an_image(**changes):
    config = small_config(model__scan=True, model__depth=3, **changes)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    step = make_step(config, lambda _: 0.01)
    state, batch = abstract_state(step, mesh), batch_shapes(config, batch_sharding(mesh))
    traced = jax.make_jaxpr(functools.partial(gradients, config, step.network))(
        state.parameters, state.batch_stats, batch, state.step
    )
    found = product_flops(traced.jaxpr) / config.batch_size
    return found, recomputed_flops(config)


def test_what_is_computed_again():
    unweighted = ("contrastive", "denoising")  # encoder and decoder are all that matters
    plain = {f"objective__{name}__weight": 0.0 for name in unweighted} | {"noise__sigma_max": 0.0}
    least, nothing = product_flops_of_an_image(**plain)
    assert nothing == 0
    for remat in ("dots", "dots_no_batch", "full"):
        found, again = product_flops_of_an_image(**plain, model__remat=remat)
        assert found - least == again > 0, remat


def test_what_microbatches_compute_again():
    unweighted = ("reconstruction", "denoising")
    two = {f"objective__{name}__weight": 0.0 for name in unweighted} | {"noise__sigma_max": 0.0}
    two["accumulation__microbatches"] = 2
    whole, again = product_flops_of_an_image(**two)
    parts, nothing = product_flops_of_an_image(**two, accumulation__negatives="microbatch")
    assert nothing == 0
    assert whole - parts == pytest.approx(again, rel=0.1)  # and the layers around the blocks
