"""What a defence did to each image, by capability: the rows of ``redlab.metrics.Samples``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from redlab.batch import CLEAN, KNOWLEDGE, AttackBatch, attack_logits, capabilities, estimate
from redlab.metrics import Samples, cosine, logit_distance, pixel_distance, prediction_alignment, psnr
from redlab.precision import full_precision


def gathered(parts: Sequence[Samples]) -> Samples:
    """The rows of all batches and processes, on every process, in an order that depends on neither."""
    rows = Samples.cat(parts)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, rows)
        rows = Samples.cat(everywhere)
    return rows.sorted()


class Answers(NamedTuple):
    """What a defence said of a batch of B images, by capability; None where it cannot.

    Attributes:
        restored: (B, C, H, W) the estimate of the clean images, not clamped.
        scores: name -> (B,), larger means more likely attacked; the one that decides comes first.
        verdict: name of the score that decides.
        attack_logits: (B, A).
        class_logits: (B, K).
    """

    restored: Tensor | None = None
    scores: Mapping[str, Tensor] | None = None
    verdict: str | None = None
    attack_logits: Tensor | None = None
    class_logits: Tensor | None = None


def answers(defence: Any, x: Tensor, clean: Tensor | None = None) -> Answers:
    """Asks a defence all that it can be asked.

    An identifier that is no detector counts as one: its score is the log odds of all attacks together against "clean".

    Args:
        defence: anything with one of the capabilities of ``redlab.batch``.
        x: (B, C, H, W) in [0, 1].
        clean: (B, C, H, W), the clean images, which an oracle alone is shown.

    Raises:
        ValueError: it has no capability, or its verdict is none of its scores.
    """
    can = capabilities(defence)
    if not can:
        raise ValueError(f"{type(defence).__name__} has none of the capabilities: nothing of it can be evaluated")
    scores, verdict, logits = None, None, None
    if "identifier" in can:
        logits = attack_logits(defence, x, clean).float()
        scores, verdict = {"attacked": logits[:, 1:].logsumexp(1) - logits[:, CLEAN]}, "attacked"
    if "detector" in can:
        found, verdict = defence.adversarial_scores(x), defence.verdict
        if verdict not in found:
            raise ValueError(f"the verdict must be one of the scores {list(found)}, got {verdict!r}")
        scores = {name: found[name].float() for name in (verdict, *(name for name in found if name != verdict))}
    restored = estimate(defence, x).float() if "restorer" in can else None
    labels = defence.class_logits(x).float() if "labeler" in can else None
    return Answers(restored=restored, scores=scores, verdict=verdict, attack_logits=logits, class_logits=labels)


def _check_numbers(defence: Any, said: Answers) -> None:
    """Refuses NaN, which a mean would leave out as if nobody had asked."""
    named = {"restored image": said.restored, "attack logits": said.attack_logits, "class logits": said.class_logits}
    for name, values in {**named, **{f"score {name}": score for name, score in (said.scores or {}).items()}}.items():
        if values is not None and bool(values.isnan().any()):
            raise ValueError(f"{type(defence).__name__} answers with NaN ({name}): it cannot be evaluated")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluator:
    """Measures a defence on batches.

    Attributes:
        victims: by name, in the order of the batches' ids; they judge, too.
        attack_names: by the batches' ids.
        setting_names: attack id -> names of its settings; an attack without one is not in it.
        judges: names of the victims that judge every image; None: each image is judged by the victim that it attacks.
        probe: what is looked at besides, see ``redlab.probes``; of a test only.
        keep_images: of so many images in each cell of a test the probe's pictures are kept.

    Raises:
        ValueError: a judge is none of the victims, or there is none.
    """

    victims: Mapping[str, nn.Module]
    attack_names: Sequence[str]
    setting_names: Mapping[int, Sequence[str]] = field(default_factory=dict)
    judges: Sequence[str] | None = None
    probe: Callable[[Any, Mapping[str, nn.Module], AttackBatch, Answers], Mapping[str, Tensor]] | None = None
    keep_images: int = 0

    def __post_init__(self) -> None:
        if self.judges is not None and (not self.judges or set(self.judges) - set(self.victims)):
            raise ValueError(f"judges must be some of the victims {list(self.victims)}, got {list(self.judges)}")

    def __call__(self, defence: Any, batch: AttackBatch) -> tuple[Samples, Answers]:
        """The rows of the valid images of a batch, in its order, and what the defence said of all images.

        Where several judge, the rows of an image follow each other in the order of the judges. Without a valid image
        there are neither rows nor columns.

        Raises:
            ValueError: see ``answers``; or one of them is NaN.
        """
        with torch.no_grad():
            said = answers(defence, batch.adv, batch.clean)
            _check_numbers(defence, said)
            shared, parts, places = self._shared(defence, batch, said), [], []
            with full_precision():  # whatever the training
                for number, (name, judge) in enumerate(self.victims.items()):
                    if self.judges is not None and name not in self.judges:
                        continue
                    judged_here = batch.valid if self.judges is not None else batch.valid & (batch.victim == number)
                    rows = judged_here.nonzero()[:, 0]
                    if len(rows):
                        known = {key: values[rows] for key, values in shared.items()}
                        judged = _judged(judge, batch[rows], said, rows, known)
                        parts.append(known | {"judge": torch.full_like(rows, number)} | judged)
                        places.append(rows)
        if not parts:
            return Samples({}), said
        order = torch.cat(places).argsort(stable=True)
        columns = {key: torch.cat([part[key] for part in parts])[order].cpu() for key in parts[0]}
        victims = tuple(self.victims)
        names = {"attack": tuple(self.attack_names), "setting": self._settings(), "victim": victims, "judge": victims}
        names |= {"knowledge": KNOWLEDGE} | ({"said": tuple(defence.attack_names)} if "said" in columns else {})
        return Samples(columns, names), said

    def _settings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(["", *(name for names in self.setting_names.values() for name in names)]))

    def _shared(self, defence: Any, batch: AttackBatch, said: Answers) -> dict[str, Tensor]:
        """What no judge has a say in."""
        every, setting = self._settings(), torch.zeros_like(batch.attack)
        for attack, names in self.setting_names.items():
            places = torch.tensor([every.index(name) for name in names], device=setting.device)
            mine = batch.attack == attack
            setting[mine] = places[batch.setting[mine]]
        columns = {
            "image": batch.index,
            "label": batch.label,
            "attack": batch.attack,
            "setting": setting,
            "victim": batch.victim,
            "knowledge": batch.knowledge,
            "target": batch.target,
            "attacked": batch.attacked.double(),
            "d_attack": pixel_distance(batch.adv, batch.clean),
        }
        if batch.fooled is not None:
            columns["fooled"] = batch.fooled.double()
        if said.restored is not None:
            columns["d"] = pixel_distance(said.restored, batch.clean)
            columns["cosine"] = cosine(batch.adv - batch.clean, batch.adv - said.restored)
            columns["psnr"] = psnr(said.restored, batch.clean)
        if said.scores is not None:
            columns |= {f"score_{name}": score.double() for name, score in said.scores.items()}
            columns["alarm"] = (said.scores[str(said.verdict)] > 0).double()
        if said.attack_logits is not None:
            columns |= self._identified(list(defence.attack_names), batch, said.attack_logits)
        if said.class_logits is not None:
            columns["right_label"] = (said.class_logits.argmax(1) == batch.label).double()
        return columns

    def _identified(self, known: list[str], batch: AttackBatch, logits: Tensor) -> dict[str, Tensor]:
        """By name: an attack that the identifier was not trained on is nowhere right and nowhere wrong."""
        if logits.shape[1] != len(known):
            raise ValueError(f"an identifier of {known} must give as many logits, got {logits.shape[1]}")
        places = [known.index(name) if name in known else -1 for name in self.attack_names]
        truth = torch.tensor(places, device=logits.device)[batch.kind]
        said = logits.argmax(1)
        identified = torch.where(truth < 0, torch.nan, (said == truth).double())
        probabilities = logits.double().softmax(1)
        return {"said": said, "identified": identified} | {f"p_{n}": probabilities[:, i] for i, n in enumerate(known)}


def _judged(
    judge: nn.Module, batch: AttackBatch, said: Answers, rows: Tensor, known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What one judge says of some rows, and whether the whole defence is right there."""
    images = [batch.clean, batch.adv]
    if said.restored is not None:
        restored = said.restored[rows]
        images += [restored, batch.adv - restored + batch.clean]
    logits = judge(torch.cat(images)).chunk(len(images))
    right = [(part.argmax(1) == batch.label).double() for part in logits]
    columns = {"right_clean": right[0], "right_attacked": right[1]}
    if said.restored is not None:
        columns["right_restored"] = right[2]
        columns["pa_benign"] = prediction_alignment(logits[2], logits[0])
        columns["pa_adv"] = prediction_alignment(logits[3], logits[1])
        columns["logit_d_benign"] = logit_distance(logits[2], logits[0])
        columns["logit_d_adv"] = logit_distance(logits[3], logits[1])
    if said.class_logits is not None:
        columns["right"] = known["right_label"]
    elif said.restored is not None:
        columns["right"] = right[2]
    else:  # an alarm saves an attacked image, and costs one that is not
        saved, kept = torch.maximum(right[1], known["alarm"]), right[1] * (1 - known["alarm"])
        columns["right"] = torch.where(known["attacked"] > 0, saved, kept)
    return columns


def probed(rows: Samples, batch: AttackBatch, found: Mapping[str, Tensor]) -> tuple[Samples, dict[str, Tensor]]:
    """The rows of a batch with the columns that a probe found, and its pictures, one for each row.

    Args:
        rows: what ``redlab.evaluation.Evaluator`` gave of the batch: each valid image once for each judge.
        batch: N images.
        found: what the probe gave of the batch.

    Raises:
        ValueError: something is not about N images, or the rows are not those of the batch.
    """
    if wrong := {name: len(values) for name, values in found.items() if len(values) != len(batch)}:
        raise ValueError(f"a probe must tell something of each of {len(batch)} images, got {wrong}")
    valid = batch.valid.nonzero()[:, 0]
    places = valid.repeat_interleave(len(rows) // max(len(valid), 1))
    if len(places) != len(rows) or not torch.equal(batch.index[places].cpu(), rows["image"]):
        raise ValueError(f"{len(rows)} rows are not those of a batch with {len(valid)} valid images")
    of_rows = {name: values[places].detach().cpu() for name, values in found.items()}
    columns = {name: values for name, values in of_rows.items() if values.ndim == 1}
    return rows.with_columns(**columns), {name: values for name, values in of_rows.items() if values.ndim == 4}
