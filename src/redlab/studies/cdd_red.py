"""Studies of CDD-RED: "Reverse Engineering of Imperceptible Adversarial Image Perturbations" (ICLR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from redlab.studies.paper_numbers import paper_table
from redlab.studies.study import Measure, Predicate, Relation, Study

# The baselines are not augmented, whatever a scale chooses for CDD-RED.
RUNS = {
    "DO": ["method=do", "method.aug_mode=none"],
    "DS": ["method=ds", "method.aug_mode=none"],
    "CDD-RED": ["method=cdd_red"],
}

D = "d(x, x_RED)"
LOGIT_BENIGN = "d(f(x), f(x_RED))"
LOGIT_ADV = "d(f(x'), f(x'_RED))"
PA_BENIGN, PA_ADV = "PA_benign", "PA_adv"

MEASURES = (
    Measure(title=D, key="test/d", unit="L2"),
    Measure(title=LOGIT_BENIGN, key="test/logit_d_benign", unit="L2"),
    Measure(title=LOGIT_ADV, key="test/logit_d_adv", unit="L2"),
    Measure(title=PA_BENIGN, key="test/pa_benign", unit="%", scale=100),
    Measure(title=PA_ADV, key="test/pa_adv", unit="%", scale=100),
    Measure(title="rms(x_RED - x)", key="test/d", unit="1/255", scale=255, per_value=True, in_paper=False),
    Measure(title="rms(x' - x)", key="test/d_attack", unit="1/255", scale=255, per_value=True, in_paper=False),
    Measure(title="accuracy, attacked", key="test/attacked_accuracy", unit="%", scale=100, in_paper=False),
    Measure(title="accuracy, restored", key="test/restored_accuracy", unit="%", scale=100, in_paper=False),
    Measure(
        title="accuracy, restored, PGD that knows the defence",
        key="test/adaptive_restored_accuracy/aware_pgd",
        unit="%",
        scale=100,
        in_paper=False,
    ),
)

NEAR = 5.0
"""How many points of prediction alignment we read as "about equal"; the paper's own differ by 0.93."""

PREDICATES = (
    Predicate("d", "d: DO < CDD-RED < DS", (Relation(D, "DO", "<", "CDD-RED"), Relation(D, "CDD-RED", "<", "DS"))),
    Predicate(
        "pa_benign",
        "PA_benign: CDD-RED ≈ DS (within 5 points) ≫ DO (by more than 15 points)",
        (
            Relation(PA_BENIGN, "CDD-RED", "~", "DS", by=NEAR),
            Relation(PA_BENIGN, "DO", "<", "DS", by=15),
            Relation(PA_BENIGN, "DO", "<", "CDD-RED", by=15),
        ),
    ),
    Predicate(
        "pa_adv",
        "PA_adv: CDD-RED > DS, DO",
        (Relation(PA_ADV, "DS", "<", "CDD-RED"), Relation(PA_ADV, "DO", "<", "CDD-RED")),
    ),
    Predicate(
        "logit_d_benign",
        "benign logit d: CDD-RED ≤ DS < DO",
        (Relation(LOGIT_BENIGN, "CDD-RED", "<=", "DS"), Relation(LOGIT_BENIGN, "DS", "<", "DO")),
    ),
    Predicate(
        "logit_d_adv",
        "adversarial logit d: CDD-RED < DO < DS",
        (Relation(LOGIT_ADV, "CDD-RED", "<", "DO"), Relation(LOGIT_ADV, "DO", "<", "DS")),
    ),
)


def table1(scales: Mapping[str, Sequence[str]]) -> Study:
    """Table 1: DO, DS and CDD-RED on held-out images of the attacks that they were trained on.

    Args:
        scales: name of a scale -> overrides that all three runs share.
    """
    return Study(
        id="cdd_red/table1",
        title="DO, DS and CDD-RED on known attacks (Table 1)",
        runs=RUNS,
        measures=MEASURES,
        predicates=PREDICATES,
        paper=paper_table("cdd_red", "table1"),
        paper_data="ImageNet, 28K attacked images, FGSM, PGD and CW on five classifiers",
        scales={name: [str(override) for override in overrides] for name, overrides in scales.items()},
        notes=(
            "Attacks here: FGSM and PGD. The paper's third known attack, CW, is not part of this study yet.",
            "d is a Euclidean norm over the image and grows with its size, so it can be compared across methods only, "
            "not with the paper's; rms(x_RED - x) = d / sqrt(C*H*W), in grey levels of 1/255, is free of the size. "
            "The paper's d over 3*224*224 values (a size that the paper implies, not states) would be "
            "6.1 (DO), 12.6 (DS) and 8.6 (CDD-RED) grey levels, on other data and attacks.",
            "Logit distances depend on the classifiers and their number of classes: compare across methods only.",
            "The last row is not in the paper: the attacker takes gradients through restorer and classifier together. "
            "It is the accuracy to expect of the defence once it is known.",
            f"≈ is read as within {NEAR:g} points; the paper gives no number for it.",
        ),
    )
