#!/usr/bin/env bash
# transformers 5.23.0: the loss of GPT2LMHeadModel in Trainer, and in the model itself.
#
# Expected: one number. Trainer divides the summed loss by the number of labels it has counted, leaves
# out the first label of every row, which no logit predicts, and so trains the mean that a call of the
# model gives. For LlamaForCausalLM it does.
# Seen: for GPT-2 it counts the first label too, because the class has no loss_type that it knows. What
# it trains and logs is the model's own loss times (L - 1) / L for rows of L labels: one eighth less for
# rows of 8. The two models call the same loss function.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.2.6" "transformers==5.23.0" "accelerate==1.15.0"
cat > "$work/find.py" <<'PYTHON'
import sys

import torch
import transformers

transformers.logging.set_verbosity_error()
LENGTH = 8


def ratio(model, folder):
    """Trainer's loss of its first step over the model's own."""
    ids = torch.randint(3, 61, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model(input_ids=ids, labels=ids).loss.item()
    args = transformers.TrainingArguments(
        folder,
        max_steps=1,
        per_device_train_batch_size=4,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    trainer = transformers.Trainer(model, args, train_dataset=rows)
    trainer.train()
    return trainer.state.log_history[0]["loss"] / own


torch.manual_seed(0)
llama = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
)
none = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
gpt2 = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4, n_positions=16, **none)
)
found = {type(m).__name__: round(ratio(m, sys.argv[1]), 3) for m in (llama, gpt2)}
print("Trainer's loss over the model's own:", found, "(L - 1) / L =", (LENGTH - 1) / LENGTH)
print("loss functions:", llama.loss_function.__name__, gpt2.loss_function.__name__)
assert found == {"LlamaForCausalLM": 1.0, "GPT2LMHeadModel": 0.875}, "the behaviour has changed"
PYTHON
"$work/venv/bin/python" "$work/find.py" "$work/out"
