"""Studies of GRED: "Detecting and Recovering Adversarial Examples: An Input Sensitivity Guided Method".

``detecting`` holds the detector, its baselines and how they are chosen from; ``sensitivity`` what InSen looks like.
"""

from redlab.studies.gred import detecting, sensitivity

STUDIES = detecting.STUDIES | sensitivity.STUDIES
"""Name under ``gred/`` -> the study."""
