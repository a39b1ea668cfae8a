"""The evaluation suite: accuracy, robustness and explanation of bottom-up and top-down networks.

``bu2td evaluate STAGE`` runs the paper's experiments; here they are as functions. A classifier is any module that
maps images (N, C, H, W) in [0, 1] to logits (N, K).
"""

from bu2td.evaluate.checks import logits_of
from bu2td.evaluate.data.sets import Data, load_data
from bu2td.evaluate.explain.explanations import explain_networks
from bu2td.evaluate.explain.gradcam import grad_cam
from bu2td.evaluate.merge import merge
from bu2td.evaluate.report.writing import write_report
from bu2td.evaluate.robustness.branches import branch_accuracy
from bu2td.evaluate.robustness.corruptions import corrupt, corruption_accuracy
from bu2td.evaluate.robustness.curves import accuracy_curve, summarise
from bu2td.evaluate.robustness.frequency import basis_errors, frequencies
from bu2td.evaluate.robustness.registry import ATTACKS, find_attack
from bu2td.evaluate.robustness.smallest import smallest_perturbations
from bu2td.evaluate.run import evaluate, run_search
from bu2td.evaluate.settings import Settings, list_presets, read_settings
from bu2td.evaluate.train.model import Classifier, build_classifier

__all__ = [
    "ATTACKS",
    "Classifier",
    "Data",
    "Settings",
    "accuracy_curve",
    "basis_errors",
    "branch_accuracy",
    "build_classifier",
    "corrupt",
    "corruption_accuracy",
    "evaluate",
    "explain_networks",
    "find_attack",
    "frequencies",
    "grad_cam",
    "list_presets",
    "load_data",
    "logits_of",
    "merge",
    "read_settings",
    "run_search",
    "smallest_perturbations",
    "summarise",
    "write_report",
]
