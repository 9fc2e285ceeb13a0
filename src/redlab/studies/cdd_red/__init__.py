"""Studies of CDD-RED: "Reverse Engineering of Imperceptible Adversarial Image Perturbations" (ICLR 2022).

``comparing`` holds what most of them compare, ``known`` what is asked of the attacks of training, ``unseen`` of others,
``appendix`` of other steps and noise; ``looking`` where victims look, ``perturbing`` what the estimated perturbation
does, ``certifying`` what a smoothed classifier can promise; ``causes`` why Table 1 comes out otherwise here.
"""

from redlab.studies.cdd_red import appendix, causes, certifying, known, looking, perturbing, unseen

STUDIES = known.STUDIES | unseen.STUDIES | appendix.STUDIES
STUDIES |= looking.STUDIES | perturbing.STUDIES | certifying.STUDIES | causes.STUDIES
"""Name under ``cdd_red/`` -> the study."""
