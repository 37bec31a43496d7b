"""The small data set and backbone that the tests here share."""

from modeling_tests.bands import backbone, data  # noqa: F401  (fixtures)
