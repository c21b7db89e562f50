"""Variants of interaed_kd.py, see common/running/variants.py."""
