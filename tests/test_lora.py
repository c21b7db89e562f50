"""Low-rank adapters: nothing at first, merged the same, and the same as peft's."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM as Auto
from transformers import BloomConfig, GPT2Config, GPTNeoXConfig, LlamaConfig

from common import lora
from common.errors import UserError

CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    ),
    "bloom": BloomConfig(vocab_size=20, hidden_size=16, n_layer=2, n_head=2),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    ),
    "gpt2": GPT2Config(
        vocab_size=20, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}
WIDTHS = {"llama": [(16, 16)] * 4, "bloom": [(16, 48), (16, 16)], "gpt_neox": [(16, 48), (16, 16)]}
WIDTHS["gpt2"] = WIDTHS["bloom"]
IDS = torch.tensor([[3, 1, 4, 1, 5]])


def model(family: str) -> nn.Module:
    torch.manual_seed(0)
    return Auto.from_config(CONFIGS[family]).eval()


@pytest.mark.parametrize("family", CONFIGS)
def test_nothing_at_first_something_later_and_merged_the_same(family):
    lm = model(family)
    before = lm(IDS).logits
    lora.adapt(lm, rank=4)
    assert torch.equal(lm(IDS).logits, before)
    trained = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    assert {name[-1] for name in trained} == {"A", "B"}
    assert sum(p.numel() for p in trained.values()) == 2 * sum(
        4 * (i + o) for i, o in WIDTHS[family]
    )  # two layers
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.3)
    after = lm(IDS).logits
    assert (after - before).abs().max() > 1e-2
    lora.merge(lm)
    assert not any(isinstance(part, lora.LoRA) for part in lm.modules())
    torch.testing.assert_close(lm(IDS).logits, after)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_same_as_peft(family):
    peft = pytest.importorskip("peft")
    ours, other = model(family), model(family)
    lora.adapt(ours, rank=3)
    targets = list(lora.ATTENTION.get(family, lora.LLAMA))
    options = dict(r=3, lora_alpha=6, target_modules=targets, fan_in_fan_out=family == "gpt2")
    other = peft.get_peft_model(other, peft.LoraConfig(**options))
    adapters = {name: part for name, part in ours.named_modules() if isinstance(part, lora.LoRA)}
    for name, part in adapters.items():
        same = other.get_submodule(f"base_model.model.{name}")
        nn.init.normal_(part.B)
        with torch.no_grad():
            same.lora_A["default"].weight.copy_(part.A)
            same.lora_B["default"].weight.copy_(part.B)
    torch.testing.assert_close(ours(IDS).logits, other(IDS).logits)
    ours(IDS).logits.sum().backward()
    other(IDS).logits.sum().backward()
    for name, part in adapters.items():
        same = other.get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(part.A.grad, same.lora_A["default"].weight.grad)


def test_a_model_without_such_maps_is_refused():
    with pytest.raises(UserError, match="--lora-rank"):
        lora.adapt(model("llama"), 4, names=("query_key_value",))


def test_a_frozen_base_in_bf16_keeps_its_adapters_in_fp32():
    lm = model("llama").to(torch.bfloat16)
    lora.adapt(lm, 2)
    assert {p.dtype for p in lm.parameters() if p.requires_grad} == {torch.float32}
    assert lm(IDS).logits.dtype == torch.bfloat16
