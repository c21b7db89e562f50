"""Variants of streaming_aux_kd.py, see common/running/variants.py."""
