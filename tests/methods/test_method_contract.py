"""What every method has to keep. A method joins by one entry of METHODS."""

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from standins import Adversarial, Detector, Identifier, Labeler
from torch import nn

from printed import ROOT, entry
from redlab.batch import CLEAN, is_oracle
from redlab.methods import (
    APEGAN,
    CDDRED,
    GRED,
    HGD,
    REDRL,
    ADDDefense,
    AttentionUNetGAN,
    Classifier,
    Hardened,
    Rectifier,
    RestoredClassifier,
)
from redlab.methods.base import Method
from redlab.victims import ImageClassifier, state_hash

# see test_cdd_red.py
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
]

OBJECTS = {"self", "victims", "helpers", "attack_names", "network", "optimizer", "scheduler"}
DECIDED_BY_THE_DATA = {"channels", "num_classes", "image_size", "data_name"}
ATTACK_NAMES, CLASSES_OF_THE_DATA = ("clean", "fgsm"), 4
ATTACKS = r"\b(r?fgsm|pgd|bim|deepfool|carlini|cw|autoattack)\b"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method under contract.

    Attributes:
        method: its class.
        options: for a network of the size of 8x8 images.
        changes: other values of every argument; each must change what two steps of training leave.
        answers: of those that training does not look at; each must change what the method says.
        overfit: options with which it learns 8 images by heart.
        steps: of that training.
        players: names of its players, if it has several.
        elsewhere: arguments that this suite cannot tell from their defaults, as the tests of the method do.
        features: its victims have a feature layer.
        start: leads a new network away from a start at which some of its gradients vanish.
    """

    method: type[Method]
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[Mapping[str, Any]] = ()
    answers: Sequence[Mapping[str, Any]] = ()
    overfit: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 120
    players: Sequence[str] = ()
    elsewhere: Sequence[str] = ()
    features: bool = False
    start: Callable[[Any], object] = lambda method: None

    def given(self, victims):
        """What a run hands to a method that names it."""
        torch.manual_seed(0)
        sizes = {"channels": 1, "num_classes": CLASSES_OF_THE_DATA, "image_size": 8}
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES_OF_THE_DATA))
        if self.features:
            whole = partial(ImageClassifier, num_classes=CLASSES_OF_THE_DATA, feature_layer="2")
            victims = {name: whole(victim).eval() for name, victim in victims.items()}
        offers = {"victims": victims, "attack_names": ATTACK_NAMES, **sizes}
        offers["network"] = ImageClassifier(backbone, num_classes=CLASSES_OF_THE_DATA)
        features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, CLASSES_OF_THE_DATA))
        helper = ImageClassifier(features, num_classes=CLASSES_OF_THE_DATA, feature_layer="1")
        offers["helpers"] = {"features": helper}
        return {name: value for name, value in offers.items() if name in inspect.signature(self.method).parameters}

    def build(self, victims, lr=1e-3, eps=1e-8, **options):
        adam, given = partial(torch.optim.Adam, lr=lr, eps=eps), self.given(victims)
        torch.manual_seed(0)
        optimizer = dict.fromkeys(self.players, adam) if self.players else adam
        built = self.method(**{**given, "optimizer": optimizer, **self.options, **options})
        with torch.no_grad():
            self.start(built)
        return built


def cdd_red(*changes, **options):
    return Case(
        method=CDDRED,
        options={"channels": 1, "depth": 3, "width": 8, **options},
        changes=changes,
        overfit={"lr": 5e-3, "width": 16, "bn_momentum": 0.1},
        start=lambda method: method.denoiser.net[-1].weight.normal_(std=0.05),  # not the identity
    )


def redrl(*changes, **options):
    small = {"channels": 1, "width": 8, "blocks": 1, "recogniser_width": 4, "stem": "cifar"}
    restores = options.get("input", "redrl") == "redrl"
    overfit = {"lr": 3e-3, "width": 16, "blocks": 2} if restores else {"lr": 1e-2}

    def start(method):  # inside [0, 1], where the clamp lets a gradient through
        if method.input == "redrl":
            method.reconstructor.last.bias.fill_(0.5)

    return Case(
        method=REDRL,
        options={**small, **options},
        changes=changes,
        overfit=overfit,
        steps=150 if restores else 40,
        start=start,
    )


def found(rectifier):
    """Lets the detector find an attack in every image, so that the rectifier answers."""
    for detector in rectifier.detectors.values():
        detector[-1].weight.zero_()
        detector[-1].bias.copy_(torch.tensor([-4.0, 4.0]))


NO_RECONSTRUCTOR = {"lambda_pixel": 0, "lambda_feature": 0, "lambda_class": 0}

METHODS = {
    "cdd_red": cdd_red(
        {"depth": 4},
        {"width": 6},
        {"reconstruction": 0.5},
        {"lambda_benign": 0.1},
        {"lambda_adv": 0.1},
        {"augment": ["crop_pad"]},
        {"augment": ["cutmix", "crop_pad"]},
        {"aug_mode": "sample"},
        {"aug_mode": "none"},
        {"keep": "separate"},
        {"keep": "all"},
        {"keep": "original"},
        {"aug_group": 2},
        {"bn_momentum": 0.05},
        {"seed": 1},
        {"classifier": "b"},
    ),
    "cdd_red_sample": cdd_red({"augment": ["cutmix"]}, {"aug_group": 3}, {"seed": 1}, aug_mode="sample"),
    "do": cdd_red({"depth": 4}, lambda_benign=0, lambda_adv=0, aug_mode="none"),
    "classifier": Case(method=Classifier, changes=[{"label_smoothing": 0.1}], overfit={"lr": 2e-2}, steps=40),
    "detector": Case(method=Detector, changes=[{"width": 6}], overfit={"lr": 2e-2}, steps=40),
    "identifier": Case(method=Identifier, changes=[{"width": 6}], overfit={"lr": 2e-2}, steps=40),
    "labeler": Case(method=Labeler, changes=[{"width": 6}], overfit={"lr": 2e-2}, steps=40),
    "adversarial": Case(
        method=Adversarial,
        changes=[{"width": 6}, {"deceive": 0.1}, {"max_norm": 1e-3}],
        overfit={"lr": 1e-2, "width": 16},
        steps=80,
        players=("generator", "critic"),
    ),
    "redrl": redrl(
        {"width": 6},
        {"blocks": 2},
        {"inner_skip": False},
        {"global_skip": True},
        {"recogniser_width": 6},
        {"stem": "imagenet"},
        {"lambda_pixel": 0.02},
        {"lambda_feature": 0.2},
        {"lambda_class": 0.5},
        {"rescale": False},
        {"label_smoothing": 0.2},
        {"classifier": "b"},
        {"input": "image", **NO_RECONSTRUCTOR},
    ),
    "add_defense": Case(
        method=ADDDefense,
        options={"width_divisor": 32},
        changes=[
            {"width_divisor": 16},
            {"gaussian": False},
            {"game": "literal"},
            {"lambda_prior": 1e-2},
            {"lambda_perturbation": 0.1},
            {"lambda_class": 1.0},
            {"lambda_mse": 10.0},
            {"max_norm": 1e-3},
            {"two_phase": 1},
            {"target": "fgsm"},
            {"seed": 1},
        ],
        overfit={"lr": 3e-3, "width_divisor": 16, "gaussian": False},
        steps=300,
        players=("perturbation", "image", "restorer"),
    ),
    "ape_gan": Case(
        method=APEGAN,
        options={"width_divisor": 8},
        changes=[
            {"width_divisor": 16},
            {"deep": True},
            {"lambda_mse": 0.1},
            {"lambda_adv": 0.1},
            {"generator_steps": 1},
            {"target": "fgsm"},
        ],
        overfit={"lr": 1e-2, "width_divisor": 2, "lambda_adv": 0.001},
        steps=120,
        players=("discriminator", "generator"),
    ),
    "attunet_gan": Case(
        method=AttentionUNetGAN,
        options={"width": 4, "window": 3},
        changes=[
            {"width": 6},
            {"output": "noise"},
            {"output": "noise", "noise_scale": 0.1},
            {"lambda_pixel": 1.0},
            {"lambda_adv": 0.1},
            {"lambda_class": 0.1},
            {"lambda_feature": 10.0},
            {"window": None},
            {"guide": "b"},
        ],
        features=True,
        overfit={"lr": 5e-3, "width": 8, "lambda_adv": 0.01},
        steps=150,
        players=("discriminator", "generator"),
        # attention starts as nothing, and would stay a rounding error for two steps
        start=lambda method: [
            p.fill_(1.0) for name, p in method.generator.named_parameters() if name.endswith("gamma")
        ],
    ),
    "hgd": Case(
        method=HGD,
        options={"width": 4},
        changes=[{"width": 6}, {"guidance": "logits"}, {"guidance": "pixel"}, {"guide": "b"}],
        overfit={"lr": 1e-2, "width": 16, "guidance": "pixel"},
        steps=150,
        features=True,
    ),
    "hardened": Case(
        method=Hardened,
        changes=[{"victim": "b"}, {"fresh": True}, {"noise": 0.1}],
        overfit={"lr": 2e-2},
        steps=60,
    ),
    "smoothed": Case(
        method=Hardened,
        options={"noise": 0.05},
        changes=[{"seed": 1}],
        answers=[{"draws": 3}],
        overfit={"lr": 2e-2},
        steps=60,
    ),
    "restored_classifier": Case(
        method=RestoredClassifier,
        options={"width_divisor": 32},
        changes=[{"victim": "b"}, {"fresh": True}, {"width_divisor": 64}, {"gaussian": False}],
        overfit={"lr": 2e-2},
        steps=80,
    ),
    "gred": Case(
        method=GRED,
        options={"width_divisor": 16},
        changes=[
            {"victim": "b"},
            {"sen_scale": "global_gain"},
            {"sen_scale": "raw"},
            {"saliency_layer": "0"},
            {"width_divisor": 32},
        ],
        elsewhere=("decides",),  # which of its scores is the verdict
        overfit={"lr": 1e-3, "saliency_layer": "0"},
        steps=120,
        features=True,
    ),
    "rectifier": Case(
        method=Rectifier,
        options={"width_divisor": 32, "duplicates": 2},
        changes=[
            {"victim": "b"},
            {"mask": "quantile"},
            {"alpha": 0.2},
            {"probability": 0.9},
            {"duplicates": 3},
            {"seed": 1},
        ],
        answers=[{"draws": 2}],
        elsewhere=(
            "per_location",
            "sen_scale",
            "width_divisor",
        ),  # of colours; of the detector, which is told what to say
        overfit={"lr": 2e-2},
        steps=80,
        features=True,
        start=found,
    ),
    "redrl_image": redrl({"recogniser_width": 6}, input="image", **NO_RECONSTRUCTOR),
    "redrl_delta": redrl({"recogniser_width": 6}, input="delta", **NO_RECONSTRUCTOR),
    "ds": cdd_red({"lambda_benign": 0.2}, {"classifier": "b"}, lambda_benign=0.1, lambda_adv=0, aug_mode="none"),
    **entry(ROOT / "docs" / "add_a_method.md", {"Case": Case}, "{}"),  # what people start from
}
CLASSES = sorted({case.method for case in METHODS.values()}, key=lambda method: method.__name__)
CHANGES = [
    pytest.param(name, change, id=f"{name}-{','.join(f'{k}={v}' for k, v in change.items())}")
    for name, case in METHODS.items()
    for change in case.changes
]

each_case = pytest.mark.parametrize("case", METHODS.values(), ids=METHODS)
each_class = pytest.mark.parametrize("method", CLASSES, ids=lambda method: method.__name__)


@pytest.fixture
def fit(trainer, datamodule):
    """Trains for some steps on one batch; gives the data and the trainer."""

    def run(module, data=None, steps=2):
        data = data or datamodule(n=12, batch_size=12)
        steps *= max(len(module.players), 1)  # each of them makes one in a batch
        training = trainer(max_steps=steps, max_epochs=-1, limit_val_batches=0, enable_checkpointing=False)
        training.fit(module, data)
        return training

    return run


def state(module):
    """All that training changes: weights and running statistics, without the frozen networks."""
    return {k: v.clone() for k, v in module.state_dict().items() if k.split(".")[0] not in module.frozen}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def images(n=3):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def outputs(module, x, clean=None):
    """All that a method says of images, by name; of a restorer what it returns, and what that was before a clamp."""
    if is_oracle(module):
        return {"attack_logits": module.attack_logits(x, x.detach() / 2 if clean is None else clean)}
    said = module.predict_step(x, 0)
    return said | ({"estimate": module.estimate(x)} if "restored" in said and hasattr(module, "estimate") else {})


def learnt(module, batch):
    """What a method has learnt of some pairs, in the measure of each of its capabilities; all that it ought to have."""
    with torch.no_grad():
        said = outputs(module.eval(), batch.adv, batch.clean)
    attacked, found = batch.attack != CLEAN, {}
    if "restored" in said:
        untouched = float((batch.adv - batch.clean).abs().mean())
        found["restored"] = float((said["restored"] - batch.clean).abs().mean()) < 0.8 * untouched
    for name in (name for name in said if name.startswith("score_")):
        wins = said[name][attacked].view(-1, 1) > said[name][~attacked]  # their share is the AUROC
        found[name] = float(wins.float().mean()) >= 0.9
    for name, truth in (("attack_logits", batch.attack), ("class_logits", batch.label)):
        if name in said:
            found[name] = float((said[name].argmax(1) == truth).float().mean()) >= 0.9
    return found


@pytest.fixture(scope="module")
def updates():
    """What two steps leave with the options of a case, made once per case."""
    return {}


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_each_hyperparameter_changes_the_update(fit, datamodule, updates, name, change):
    case, data = METHODS[name], datamodule(n=12, batch_size=12)

    def update(**options):
        module = case.build(data.victims, **options)
        fit(module, data)
        return state(module)

    if name not in updates:
        updates[name] = update()
        assert equal(updates[name], update()), "two equal trainings differ"
    assert not equal(updates[name], update(**change))


@each_case
def test_where_weights_lie_in_memory_is_no_matter(fit, datamodule, case):
    trained = []
    for layout in (torch.contiguous_format, torch.channels_last):
        data = datamodule(n=12, batch_size=12)
        # such an eps makes steps that are as large as gradients, where Adam's own make much of what rounding leaves
        module = case.build(data.victims, eps=1.0).to(memory_format=layout)
        before = state(module)
        fit(module, data)
        weights = (name for name, p in module.named_parameters() if p.requires_grad)
        trained.append([(state(module)[name] - before[name]).double().flatten() for name in weights])
    there, here = (torch.cat(moved) for moved in trained)
    # 1e-6 to 1e-5 of it; in HGD 0.02, whose BatchNorms over 12 numbers enlarge what rounding leaves
    assert (here - there).norm() < 0.05 * there.norm()


@each_case
def test_what_training_does_not_look_at_changes_the_answer(datamodule, case):
    data = datamodule(n=8, batch_size=8)
    plain = outputs(case.build(data.victims).eval(), images())
    for change in case.answers:
        said = outputs(case.build(data.victims, **change).eval(), images())
        assert not equal(said, plain), change


@each_class
def test_no_hyperparameter_is_left_out(method):
    known = set(inspect.signature(method).parameters) - OBJECTS - DECIDED_BY_THE_DATA
    mine = [case for case in METHODS.values() if case.method is method]
    changed = {key for case in mine for change in (*case.changes, *case.answers) for key in change}
    changed |= {key for case in mine for key in case.elsewhere}
    assert changed == known


@pytest.mark.parametrize(
    "case",  # of the cases of one class two are enough for every day, and one network of its kind is slow
    [
        pytest.param(c, id=n, marks=pytest.mark.slow if n in ("cdd_red_sample", "ds", "redrl_image", "hgd") else ())
        for n, c in METHODS.items()
    ],
)
def test_overfits_eight_images(fit, datamodule, case):
    data = datamodule(n=8, batch_size=8)
    module, batch = case.build(data.victims, **case.overfit), data.pairs
    assert module.capabilities
    assert len(learnt(module, batch)) >= len(module.capabilities)
    fit(module, data, steps=case.steps)
    assert learnt(module, batch) == dict.fromkeys(learnt(module, batch), True)


@each_case
def test_the_suite_sees_that_nothing_was_learnt(datamodule, case):
    """Before training, no capability passes for learnt: the test above can fail for each of them."""
    data = datamodule(n=8, batch_size=8)
    found = learnt(case.build(data.victims, **case.overfit), data.pairs)
    assert found
    assert not any(found.values())


@each_case
def test_training_leaves_victims_and_frozen_networks_alone(fit, datamodule, case):
    data = datamodule(n=12, batch_size=12)
    module = case.build(data.victims)
    others = {**data.victims, **{name: getattr(module, name) for name in module.frozen}}
    before = {name: state_hash(network) for name, network in others.items()}
    module.train()
    assert any(part.training for part in module.children())
    training = fit(module, data)
    trained = {id(p) for o in training.optimizers for group in o.param_groups for p in group["params"]}
    for name, network in others.items():
        assert state_hash(network) == before[name], name
        assert not any(part.training for part in network.modules()), name
        assert all(p.grad is None for p in network.parameters()), name
        assert not trained & {id(p) for p in network.parameters()}, name


@each_case
def test_what_it_says_is_deterministic_and_leaves_no_trace(datamodule, case):
    data = datamodule()
    module = case.build(data.victims).eval()
    before = {name: state_hash(network) for name, network in [("method", module), *data.victims.items()]}
    x = images()
    given, results = x.clone(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        random_state = torch.get_rng_state()
        with torch.no_grad():
            results.append(outputs(module, x))
        assert torch.equal(torch.get_rng_state(), random_state), "it draws from the random state of the process"
    assert equal(*results)
    assert torch.equal(x, given)
    with torch.no_grad():
        alone = [outputs(module, row) for row in x.split(1)]
    for name, together in results[0].items():
        torch.testing.assert_close(torch.cat([said[name] for said in alone]), together, rtol=0, atol=1e-5)
    assert before == {name: state_hash(network) for name, network in [("method", module), *data.victims.items()]}
    assert all(p.grad is None for network in data.victims.values() for p in network.parameters())


@each_case
def test_a_gradient_flows_through_all_that_it_says(datamodule, case):
    """What an attacker who knows the defence differentiates."""
    module = case.build(datamodule().victims).eval()
    x = images().requires_grad_()
    for name, said in outputs(module, x).items():
        (gradient,) = torch.autograd.grad(said.square().sum(), x, retain_graph=True)
        assert bool(torch.isfinite(gradient).all()), name
        assert float(gradient.abs().sum()) > 0, name


@each_case
def test_checkpoint_round_trip(fit, datamodule, case, tmp_path):
    data = datamodule(n=12, batch_size=12)
    module = case.build(data.victims)
    fit(module, data).save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert equal(content["state_dict"], state(module))
    assert content["frozen"].keys() == set(module.frozen)
    loaded = case.method.load_from_checkpoint(tmp_path / "a.ckpt", **case.given(data.victims), optimizer=None)
    assert equal(dict(loaded.state_dict()), dict(module.state_dict()))
    assert not equal(state(loaded), state(case.build(data.victims)))
    with torch.no_grad():
        assert equal(outputs(loaded.eval(), images()), outputs(module.eval(), images()))


@each_case
def test_says_what_it_is(datamodule, case):
    module = case.build(datamodule().victims)
    assert module.monitor.startswith("val/")
    assert module.monitor_mode in ("max", "min")
    said = repr(module)
    assert "\n" not in said
    assert said.startswith(f"{type(module).__name__}({', '.join(sorted(module.capabilities))}; ")
    assert f"{sum(p.numel() for p in module.parameters() if p.requires_grad):,} parameters" in said


@each_class
def test_knows_of_no_attack(method):
    source = Path(str(inspect.getsourcefile(method))).read_text()
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    forbidden = ("redlab.attacks", "redlab.runs", "redlab.data", "hydra", "omegaconf")
    assert not {name for name in imported if name.startswith(forbidden)}
    assert not re.findall(ATTACKS, source, flags=re.IGNORECASE)


def test_all_methods_are_here():
    from redlab import methods

    exported = {getattr(methods, name) for name in methods.__all__}
    assert {c for c in exported if isinstance(c, type) and issubclass(c, Method) and c is not Method} == {
        c for c in CLASSES if c.__module__.startswith("redlab.")
    }
