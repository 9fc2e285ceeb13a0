"""Rows that nobody measured."""

import torch

from redlab.metrics import Samples


def made_up(
    *can,
    attacks=("fgsm", "pgd"),
    settings=None,
    adaptive=("pgd",),
    controls=(),
    victims=("lenet",),
    clean=True,
    scores=("odds",),
    known=None,
    n=12,
    seed=0,
):
    """The rows of a defence with some capabilities: each image in each cell.

    Args:
        settings: attack -> names of its settings.
        known: answers of an identifier, without "clean"; None for all attacks.
    """
    settings, g = settings or {}, torch.Generator().manual_seed(seed)
    names, places = (
        ("clean", *dict.fromkeys((*attacks, *adaptive, *controls))),
        ("", *(s for v in settings.values() for s in v)),
    )
    told = [("clean", "", 0)] * clean + [(a, s, 0) for a in attacks for s in settings.get(a, ("",))]
    told += [(a, "", 0) for a in controls] + [(a, "", 1) for a in adaptive]
    cells = [(names.index(a), places.index(s), k, v) for a, s, k in told for v in range(len(victims))]
    attack, setting, knowledge, victim = (
        torch.tensor(column).repeat_interleave(n) for column in zip(*cells, strict=True)
    )
    many = len(attack)
    columns = {
        "image": torch.arange(n).repeat(len(cells)),
        "label": torch.zeros(many),
        "target": torch.full((many,), -1),
    }
    columns |= {"attack": attack, "setting": setting, "knowledge": knowledge, "victim": victim, "judge": victim}
    columns["attacked"] = (attack > 0) & ~torch.isin(attack, torch.tensor([names.index(a) for a in controls]).long())

    def yes_or_no():
        return (torch.rand(many, generator=g) < 0.6).double()

    columns |= {name: yes_or_no() for name in ("right_clean", "right_attacked", "right")}
    columns["d_attack"] = torch.rand(many, generator=g)
    categories = {
        "attack": names,
        "setting": places,
        "knowledge": ("victim", "defence"),
        "victim": victims,
        "judge": victims,
    }
    if "restorer" in can:
        columns |= {name: yes_or_no() for name in ("right_restored", "pa_benign", "pa_adv")}
        columns |= {
            name: torch.rand(many, generator=g) for name in ("d", "logit_d_benign", "logit_d_adv", "cosine", "psnr")
        }
        columns["right"] = columns["right_restored"]
    if "labeler" in can:
        columns["right"] = columns["right_label"] = yes_or_no()
    if "detector" in can:
        columns |= {f"score_{name}": torch.randn(many, generator=g) + columns["attacked"] for name in scores}
        columns["alarm"] = yes_or_no()
    if "identifier" in can:
        said = ("clean", *(names[1:] if known is None else known))
        chances = torch.rand(many, len(said), generator=g).softmax(1)
        truth = torch.tensor([said.index(name) if name in said else -1 for name in names])[attack]
        columns |= {f"p_{name}": chances[:, i] for i, name in enumerate(said)} | {"said": chances.argmax(1)}
        columns["identified"] = torch.where(truth < 0, torch.nan, (chances.argmax(1) == truth).double())
        categories["said"] = said
    return Samples(columns, categories)
