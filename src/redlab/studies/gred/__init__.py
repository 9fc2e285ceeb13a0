"""Studies of GRED: "Detecting and Recovering Adversarial Examples: An Input Sensitivity Guided Method".

``detecting`` holds the detector, its baselines and how they are chosen from; ``sensitivity`` what InSen looks like;
``rectifying`` what is answered for attacked images; ``knowing`` attackers who know the detector.
"""

from redlab.studies.gred import detecting, knowing, rectifying, sensitivity

STUDIES = detecting.STUDIES | sensitivity.STUDIES | rectifying.STUDIES | knowing.STUDIES
"""Name under ``gred/`` -> the study."""
