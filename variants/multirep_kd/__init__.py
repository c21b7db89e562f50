"""Variants of multirep_kd.py, see common/running/variants.py."""
