"""Studies of REDRL: "Identification of Attack-Specific Signatures in Adversarial Examples" (arXiv 2110.06802).

``recognition`` holds the tables of which attack it was, ``accuracy`` those of the networks before and after the
reconstructor, ``figures`` the images and profiles, ``beyond`` what the paper does not ask.
"""

from redlab.studies.redrl import accuracy, beyond, figures, recognition

STUDIES = accuracy.STUDIES | recognition.STUDIES | figures.STUDIES | beyond.STUDIES
"""Name under ``redrl/`` -> the study."""
