"""Variants of hubert_gpt_bridge.py, see common/running/variants.py."""
