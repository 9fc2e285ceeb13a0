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

from printed import ROOT, entry
from redlab.batch import Restorer
from redlab.methods import CDDRED
from redlab.methods.base import Method
from redlab.victims import state_hash

# see test_cdd_red.py
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
]

OBJECTS = {"self", "victims", "optimizer", "scheduler"}
DECIDED_BY_THE_DATA = {"channels"}
ATTACKS = r"\b(r?fgsm|pgd|bim|deepfool|carlini|cw|autoattack)\b"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method under contract.

    Attributes:
        method: its class.
        options: for a network of the size of 8x8 images.
        changes: other values of every argument; each must change what two steps of training leave.
        overfit: options with which it learns 8 images by heart in 120 steps.
        start: leads a new network away from a start at which some of its gradients vanish.
    """

    method: type[Method]
    options: Mapping[str, Any]
    changes: Sequence[Mapping[str, Any]] = ()
    overfit: Mapping[str, Any] = field(default_factory=dict)
    start: Callable[[Any], object] = lambda method: None

    def build(self, victims, lr=1e-3, **options):
        torch.manual_seed(0)
        built = self.method(victims=victims, optimizer=partial(torch.optim.Adam, lr=lr), **{**self.options, **options})
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
        {"guide": "b"},
    ),
    "cdd_red_sample": cdd_red({"augment": ["cutmix"]}, {"aug_group": 3}, {"seed": 1}, aug_mode="sample"),
    "do": cdd_red({"depth": 4}, lambda_benign=0, lambda_adv=0, aug_mode="none"),
    "ds": cdd_red({"lambda_benign": 0.2}, {"guide": "b"}, lambda_benign=0.1, lambda_adv=0, aug_mode="none"),
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


@each_class
def test_no_hyperparameter_is_left_out(method):
    known = set(inspect.signature(method).parameters) - OBJECTS - DECIDED_BY_THE_DATA
    changed = {key for case in METHODS.values() if case.method is method for change in case.changes for key in change}
    assert changed == known


@pytest.mark.parametrize(
    "case",  # of the cases of one class, two are enough for every day
    [
        pytest.param(c, id=n, marks=pytest.mark.slow if n in ("cdd_red_sample", "ds") else ())
        for n, c in METHODS.items()
    ],
)
def test_overfits_eight_images(fit, datamodule, case):
    data = datamodule(n=8, batch_size=8)
    module, batch = case.build(data.victims, **case.overfit), data.pairs
    fit(module, data, steps=120)
    module.eval()
    if isinstance(module, Restorer):
        untouched = float((batch.adv - batch.clean).abs().mean())
        with torch.no_grad():
            assert float((module.restore(batch.adv) - batch.clean).abs().mean()) < 0.8 * untouched


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
def test_restoring_is_deterministic_and_leaves_no_trace(datamodule, case):
    data = datamodule()
    module = case.build(data.victims).eval()
    if not isinstance(module, Restorer):
        pytest.skip("does not restore")
    before = {name: state_hash(network) for name, network in [("method", module), *data.victims.items()]}
    x = images()
    given, results = x.clone(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        random_state = torch.get_rng_state()
        with torch.no_grad():
            results.append(module.restore(x))
        assert torch.equal(torch.get_rng_state(), random_state), "it draws from the random state of the process"
    assert torch.equal(*results)
    assert torch.equal(x, given)
    with torch.no_grad():
        alone = torch.cat([module.restore(row) for row in x.split(1)])
    torch.testing.assert_close(alone, results[0], rtol=0, atol=1e-5)
    assert before == {name: state_hash(network) for name, network in [("method", module), *data.victims.items()]}
    assert all(p.grad is None for network in data.victims.values() for p in network.parameters())


@each_case
def test_a_gradient_flows_through_restore(datamodule, case):
    module = case.build(datamodule().victims).eval()
    if not isinstance(module, Restorer):
        pytest.skip("does not restore")
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(module.restore(x).sum(), x)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().sum()) > 0


@each_case
def test_checkpoint_round_trip(fit, datamodule, case, tmp_path):
    data = datamodule(n=12, batch_size=12)
    module = case.build(data.victims)
    fit(module, data).save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert equal(content["state_dict"], state(module))
    assert content["frozen"].keys() == set(module.frozen)
    loaded = case.method.load_from_checkpoint(tmp_path / "a.ckpt", victims=data.victims, optimizer=None)
    assert equal(dict(loaded.state_dict()), dict(module.state_dict()))
    assert not equal(state(loaded), state(case.build(data.victims)))
    if isinstance(module, Restorer):
        with torch.no_grad():
            assert torch.equal(loaded.eval().restore(images()), module.eval().restore(images()))


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
