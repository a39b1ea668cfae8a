"""The evaluation suite: accuracy, robustness and explanation of bottom-up and top-down networks.

``bu2td evaluate STAGE`` runs the paper's experiments; here they are as functions. A classifier is any module that
maps images (N, C, H, W) in [0, 1] to logits (N, K).
"""

from bu2td.evaluate.attacks import ATTACKS, find_attack
from bu2td.evaluate.branches import branch_accuracy
from bu2td.evaluate.classifier import Classifier, build_classifier
from bu2td.evaluate.corruptions import corrupt, corruption_accuracy
from bu2td.evaluate.data import Data, load_data
from bu2td.evaluate.experiment import evaluate, run_search
from bu2td.evaluate.explain import explain
from bu2td.evaluate.gradcam import grad_cam
from bu2td.evaluate.inputs import logits_of
from bu2td.evaluate.report import write_report
from bu2td.evaluate.robustness import accuracy_curve, smallest_perturbations, summarise
from bu2td.evaluate.settings import Settings, list_presets, read_settings

__all__ = [
    "ATTACKS",
    "Classifier",
    "Data",
    "Settings",
    "accuracy_curve",
    "branch_accuracy",
    "build_classifier",
    "corrupt",
    "corruption_accuracy",
    "evaluate",
    "explain",
    "find_attack",
    "grad_cam",
    "list_presets",
    "load_data",
    "logits_of",
    "read_settings",
    "run_search",
    "smallest_perturbations",
    "summarise",
    "write_report",
]
