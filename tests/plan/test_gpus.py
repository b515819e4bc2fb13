"""The planner for GPUs: data sheets, and a roofline on programs small enough to be added up."""

import json

import pytest

from can_jax.distributed.hardware import chip_of
from can_jax.distributed.mesh import make_mesh
from can_jax.plan import gpus
from can_jax.plan.clocks import clock_of
from can_jax.plan.cycles import estimate_step
from can_jax.plan.gpus import GPUS, target_config
from can_jax.plan.program import Program
from can_jax.plan.topology import Topology, open_topology
from tests.helpers.configs import small_config

GEMM = '"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]'
TEXT = f"""HloModule step, is_scheduled=true

%added (p.0: bf16[1000]) -> bf16[1000] {{
  %p.0 = bf16[1000]{{0}} parameter(0)
  ROOT %sum.1 = bf16[1000]{{0}} add(%p.0, %p.0)
}}

%body (p.1: (s32[], bf16[1000])) -> (s32[], bf16[1000]) {{
  %p.1 = (s32[], bf16[1000]{{0}}) parameter(0)
  %x.1 = bf16[1000]{{0}} get-tuple-element(%p.1), index=1
  %fusion.1 = bf16[1000]{{0}} fusion(%x.1), kind=kLoop, calls=%added
  ROOT %t.1 = (s32[], bf16[1000]{{0}}) tuple(%x.1, %fusion.1)
}}

%layer (p.2: bf16[64,32], p.3: bf16[9,32,16]) -> (bf16[64,16], s8[4194304]) {{
  %p.2 = bf16[64,32]{{1,0}} parameter(0)
  %p.3 = bf16[9,32,16]{{2,1,0}} parameter(1)
  %slice.1 = bf16[1,32,16]{{2,1,0}} slice(%p.3), slice={{[4:5], [0:32], [0:16]}}
  %bitcast.1 = bf16[32,16]{{1,0}} bitcast(%slice.1)
  ROOT %gemm.2 = (bf16[64,16]{{1,0}}, s8[4194304]{{0}}) custom-call(%p.2, %bitcast.1), custom_call_target="__cublas$lt$matmul", metadata={{op_name="jit(train)/transpose(jvp())/dot_general" stack_frame_id=1}}, backend_config={{"gemm_backend_config":{{{GEMM}}}}}
}}

ENTRY %main (a: bf16[64,32], b: bf16[32,16], c: bf16[9,32,16]) -> bf16[64,16] {{
  %a = bf16[64,32]{{1,0}} parameter(0)
  %c = bf16[9,32,16]{{2,1,0}} parameter(2)
  %b = bf16[32,16]{{1,0}} parameter(1)
  %while.1 = (s32[], bf16[1000]{{0}}) while(%a), body=%body, backend_config={{"known_trip_count":{{"n":"3"}}}}
  %gemm.1 = (bf16[64,16]{{1,0}}, s8[4194304]{{0}}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={{"gemm_backend_config":{{{GEMM}}}}}
  %sliced = (bf16[64,16]{{1,0}}, s8[4194304]{{0}}) fusion(%a, %c), kind=kCustom, calls=%layer
  ROOT %out = bf16[64,16]{{1,0}} get-tuple-element(%gemm.1), index=0
}}
"""  # noqa: E501


def test_kernels_and_traffic_add_up():
    chip = chip_of("NVIDIA H100 80GB HBM3")
    topology = Topology("h100:1x1", [None], chip, (1, 1), slices=1, exact=True, hosts=True)
    found = estimate_step(Program(TEXT), make_mesh(small_config().mesh), topology, clock_of(chip))
    assert found.kernels == 3 + 2
    assert found.traffic_outside_products == 3 * 2 * 2000
    # One is launched with a slice of its operand: all of a layer, not of all layers.
    products = [charge for charge in found.charges if charge.kind == "products"]
    assert [product.name for product in products] == ["gemm.1", "sliced"]
    for product in products:
        # The memory that is reserved for the library is neither read nor written.
        assert product.moved == 2 * (64 * 32 + 32 * 16 + 64 * 16)
        assert product.flops == 2 * 64 * 32 * 16
        assert product.seconds == pytest.approx(product.moved / 3352e9)
    assert found.traffic == found.traffic_outside_products + 2 * product.moved


ATTENTION = """HloModule step
ENTRY %main (q: bf16[2,7,4,16]) -> bf16[2,7,4,16] {
  %q = bf16[2,7,4,16]{3,2,1,0} parameter(0)
  %out = (bf16[2,7,4,16]{3,2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", backend_config=CONFIG
  ROOT %back = (bf16[2,7,4,16]{3,2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config=CONFIG
}
"""  # noqa: E501
CONFIG = {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "4", "7", "7"]}}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_flops_of_attention_are_known(separators):
    chip = chip_of("NVIDIA H100 80GB HBM3")
    topology = Topology("h100:1x1", [None], chip, (1, 1), slices=1, exact=True, hosts=True)
    text = ATTENTION.replace("CONFIG", json.dumps(CONFIG, separators=separators))
    found = estimate_step(Program(text), make_mesh(small_config().mesh), topology, clock_of(chip))
    product = 2 * (2 * 4 * 7 * 7) * 16
    assert [charge.flops for charge in found.charges] == [2 * product, 5 * product]
    assert [charge.note for charge in found.charges] == [None, None]


@pytest.mark.parametrize("name", GPUS)
def test_data_sheets_agree(name):
    gpu, chip = GPUS[name], chip_of(GPUS[name].kind)
    assert chip.memory == pytest.approx(0.9 * gpu.memory, rel=0.08)
    assert clock_of(chip).memory_bandwidth == gpu.bandwidth
    assert f"core_count: {gpu.cores}\n" in target_config(gpu)
    # Matrix units do 2 to 30 times as much as the others.
    assert 1.9 <= chip.peak_flops / (2e9 * gpu.gigahertz * gpu.cores * gpu.lanes) <= 32


def test_kinds_of_gpus_differ():
    assert len({chip_of(gpu.kind).name for gpu in GPUS.values()}) == len(GPUS)
    assert len({gpu.kind for gpu in GPUS.values()}) == len(GPUS)


def test_without_the_compiler_a_cpu_stands_in(monkeypatch):
    monkeypatch.setattr(gpus.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("jax.config.update", lambda *_: None)
    topology = open_topology("h100:4x2")
    assert not topology.exact and topology.chip.name == "NVIDIA H100"
    assert "pip install 'jax[cuda13]'" in topology.stand_in
    assert topology.fast_devices == 4
