"""Export of fine-tuned classifiers, whose logits are those of the run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from can_jax.checkpoint.manager import Checkpointer
from can_jax.config.resolve import to_json
from can_jax.distributed.mesh import make_mesh
from can_jax.evaluate.config import resolve_evaluation
from can_jax.evaluate.protocols.classifier import open_classifier
from can_jax.evaluate.protocols.classifier_step import ClassifierStep
from can_jax.evaluate.reports.provenance import protocol_settings
from can_jax.export import verify as checking
from can_jax.export.formats import FORMATS
from can_jax.export.model import open_model
from can_jax.export.model_card import card_of, results_of
from can_jax.train.step import NOT_TRAINED, abstract_state, initialize
from can_jax.utils.errors import UserError
from tests.evaluate import samples
from tests.helpers.configs import small_config


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Return a function that makes the run directory of a classifier with random weights."""

    def make(features, options=(), **settings):
        place = tmp_path_factory.mktemp("classifier")
        config = small_config(data__image_size=16, model__depth=2, model__backbone_options=options)
        changes = {f"classify__{name}": value for name, value in settings.items()}
        block = samples.evaluation("classify", **changes).classify
        step = ClassifierStep(config, block, features, 3, NOT_TRAINED)
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        state = initialize(step, abstract_state(step, mesh))
        rng = np.random.default_rng(0)
        state = jax.tree.map(
            lambda x: x + (0.1 * rng.random(x.shape)).astype(x.dtype) if x.ndim else x, state
        )
        checkpoints = Checkpointer(epath.Path(place / "checkpoints"), keep_last=1)
        checkpoints.save(7, state, {})
        checkpoints.close()
        (place / "config.json").write_text(to_json(config))
        card = {"classes": 3, "names": ["cat", "dog", "emu"], "features": features}
        card |= {"settings": block.to_dict()}
        (place / "classifier.json").write_text(json.dumps(card))
        return place

    return make


def exported(place, format, folder):
    model = open_model(str(place))
    file = FORMATS[format](model, "classifier", epath.Path(folder))
    return checking.check(model, format, "classifier", epath.Path(folder), file)["largest_error"]


@pytest.mark.parametrize(
    ("features", "settings"),
    [
        ("patches", {"head_norm": "layer"}),
        ("class", {"head_norm": "batch", "freeze_encoder": True, "ema_decay": 0.9}),
    ],
)
def test_logits_are_those_of_the_run(classifier, tmp_path, features, settings):
    place = classifier(features, **settings)
    for format in ("timm", "stablehlo", *(["huggingface"] if features == "class" else [])):
        folder = tmp_path / format
        folder.mkdir()
        assert 0 <= max(exported(place, format, folder).values()) < 1e-5
    config = json.loads((tmp_path / "timm/config.json").read_text())
    assert config["label_names"] == ["cat", "dog", "emu"] and config["num_classes"] == 3
    if features == "patches":
        with pytest.raises(UserError, match="requires a head that reads the class token"):
            exported(place, "huggingface", tmp_path)


def test_card_states_the_training_of_the_classifier(classifier):
    model = open_model(str(classifier("class", layer_decay=0.65)))
    manifest = {"usage": {"timm": "run"}, "checked": {"images": 3, "largest_error": {"a": 1e-7}}}
    card = card_of(model, "timm", "classifier", manifest, [])
    assert "| layer decay | 0.65 |" in card and "save every steps" not in card
    assert "together with the encoder" in card
    for wrong in ("CAN", "- can\n", "retraining", "mask ratio", "reconstruction", "patch targets"):
        assert wrong not in card, wrong
    with model.head.step.settings.unlocked():
        model.head.step.settings.freeze_encoder = True
    frozen = card_of(model, "timm", "classifier", manifest, [])
    assert "on features of the frozen encoder" in frozen


def test_card_has_the_results_of_the_classifier_and_of_its_training(classifier, tmp_path):
    options = (("positions", "learned"), ("gelu", "quick"))
    place = classifier("class", options)
    model = open_model(str(place))
    mesh = make_mesh(small_config().mesh, jax.devices()[:1])
    config = resolve_evaluation(samples.evaluation("robustness"))
    evaluated = open_classifier(epath.Path(place), config, mesh).identity
    trained_from = evaluated | {"path": "runs/pretrained", "sha256": "0"}
    protocol = samples.evaluation("classify").to_dict()
    (place / "identity.json").write_text(
        json.dumps({"encoder": trained_from, "protocol": protocol_settings(protocol)})
    )
    for folder, identity, settings in (
        (place, trained_from, protocol),
        (tmp_path / "robust", evaluated, samples.evaluation("robustness").to_dict()),
        (tmp_path / "other", trained_from, protocol),
    ):
        folder.mkdir(exist_ok=True)
        results = {"metrics": {"top1": 1.0}, "protocol": settings, "data": {"source": "arrays"}}
        text = json.dumps(results | {"checkpoint": identity})
        (folder / "results.json").write_text(text)
    assert len(results_of(model, [str(place), str(tmp_path / "robust")])) == 2
    with pytest.raises(UserError, match=r"other has results of runs/pretrained"):
        results_of(model, [str(tmp_path / "other")])
    (place / "checkpoints" / "9").mkdir()
    with pytest.raises(UserError, match=r"has results of runs/pretrained"):
        results_of(model, [str(place)])


def test_trained_parameters_are_evaluated_instead_of_their_average(classifier):
    place = epath.Path(classifier("class", ema_decay=0.9))
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8))
    config = samples.evaluation("robustness")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    averaged, trained = (
        open_classifier(place, resolve_evaluation(samples.changed(config, model__average=a)), mesh)
        for a in (True, False)
    )
    state = averaged.parameters
    expected = dataclasses.replace(state, optimizer={"average": state.parameters})
    logits = trained.features(trained.parameters, images)
    np.testing.assert_array_equal(logits, averaged.features(expected, images))
    assert np.abs(logits - averaged.features(state, images)).max() > 1e-3


def test_encoder_has_no_head_to_export(tmp_path):
    (tmp_path / "run").mkdir()
    run = samples.run_directory(tmp_path / "run")
    with pytest.raises(UserError, match="is not a fine-tuned classifier: set --contents=encoder"):
        FORMATS["timm"](open_model(str(run)), "classifier", epath.Path(tmp_path))
