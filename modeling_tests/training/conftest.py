"""The small data set, the backbones and the finished run that the tests here share."""

from modeling_tests.bands import backbone, data  # noqa: F401  (fixtures)
from modeling_tests.training_runs import finished, focus_backbone  # noqa: F401  (fixtures)
