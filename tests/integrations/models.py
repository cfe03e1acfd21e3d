"""Tiny causal LMs of transformers, and tokens for them."""

import torch
import transformers

VOCABULARY, LENGTH = 37, 9
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "Llama": {},
    "Llama-tied": {"tie_word_embeddings": True},
    "Qwen3": {},
    "Mistral": {},
    "Gemma2": {"final_logit_softcapping": 0.05},
    "Granite": {"logits_scaling": 6.0},
    "Cohere": {"logit_scale": 0.3},
    "Mixtral": {"num_local_experts": 2, "output_router_logits": True},
    "GPT2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32},
    "Phi": {},
}


def tiny(family="Llama", dtype=torch.float64):
    """A model in training mode, always with the same weights."""
    torch.manual_seed(1)
    name = family.partition("-")[0]
    config = getattr(transformers, f"{name}Config")(**SIZE | FAMILIES[family])
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"):
        setattr(config, dropout, 0.0)
    class_name = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = getattr(transformers, class_name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.to(dtype).train()


def tokens(rows=4, seed=2):
    """(input_ids, labels), some of which do not count."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, LENGTH), generator=generator)
    labels = ids.clone()
    labels[0, :5] = -100
    labels[1, 7:] = -100
    return ids, labels


def grads(model):
    """Gradients by the names of the parameters."""
    return {name: parameter.grad for name, parameter in model.named_parameters()}
