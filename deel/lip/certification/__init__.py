"""Proven bounds of networks, certificates from them, and attacks on these."""

from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import register_bound
from deel.lip.certification._rounding import Step
from deel.lip.certification._walk import LayerBound
from deel.lip.certification.attacks import attack_accuracy
from deel.lip.certification.attacks import attack_distances
from deel.lip.certification.attacks import attack_scores
from deel.lip.certification.bounds import lipschitz_bound
from deel.lip.certification.certificates import Certificates
from deel.lip.certification.certificates import certified_accuracy
from deel.lip.certification.certificates import certify
from deel.lip.certification.conformal import ConformalClassifier
from deel.lip.certification.coverage import CoverageBounds
from deel.lip.certification.detectors import DetectorCertificates
from deel.lip.certification.detectors import certified_auroc
from deel.lip.certification.detectors import certify_detector
from deel.lip.certification.pixel_certificates import PixelCertificates
from deel.lip.certification.pixels import certified_pixel_accuracy
from deel.lip.certification.pixels import certify_pixels
from deel.lip.certification.regression import RegressionCertificates
from deel.lip.certification.regression import certify_regression
from deel.lip.certification.tracing import TracedRays
from deel.lip.certification.tracing import sphere_trace
from deel.lip.certification.wasserstein import WassersteinBound
from deel.lip.certification.wasserstein import wasserstein_distance

__all__ = [
    "Bound",
    "Certificates",
    "ConformalClassifier",
    "CoverageBounds",
    "DetectorCertificates",
    "LayerBound",
    "PixelCertificates",
    "RegressionCertificates",
    "Step",
    "TracedRays",
    "WassersteinBound",
    "attack_accuracy",
    "attack_distances",
    "attack_scores",
    "certified_accuracy",
    "certified_auroc",
    "certified_pixel_accuracy",
    "certify",
    "certify_detector",
    "certify_pixels",
    "certify_regression",
    "lipschitz_bound",
    "register_bound",
    "sphere_trace",
    "wasserstein_distance",
]


def __dir__():
    return __all__
