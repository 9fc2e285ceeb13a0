"""Studies of ADD-Defense.

"Towards Defending Widespread Adversarial Examples via Perturbation-Invariant Representation" (2021).

``restoring`` holds the tables of the target's accuracy behind a defence, ``elsewhere`` those under attacks of other
kinds and sizes, ``knowing`` those of attackers who know it, ``representation`` what is said of z and of LID, ``images``
the pictures.
"""

from redlab.studies.add_defense import elsewhere, images, knowing, representation, restoring

STUDIES = restoring.STUDIES | elsewhere.STUDIES | knowing.STUDIES | representation.STUDIES | images.STUDIES
"""Name under ``add_defense/`` -> the study."""
