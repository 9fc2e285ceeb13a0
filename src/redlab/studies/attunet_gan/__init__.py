"""Studies of the attention-U-Net GAN: "Robust Recovery of Adversarial Examples" (ICML 2021 workshop).

``recovering`` holds the tables of accuracy on recovered images, ``questions`` what the text says beside them.
"""

from redlab.studies.attunet_gan import questions, recovering

STUDIES = recovering.STUDIES | questions.STUDIES
"""Name under ``attunet_gan/`` -> the study."""
