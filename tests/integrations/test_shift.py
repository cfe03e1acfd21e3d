"""Which labels move by one: decided from the model or its output, or asked for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import anl_kernels as ak
from anl_kernels.integrations.transformers import (
    compute_loss_func,
    loss_function,
    patch_model,
    set_loss_function,
)

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

from anl_kernels.integrations.shift import NEXT, OWN, shift_of_model  # noqa: E402
from tests.integrations.models import SIZE, VOCABULARY, tiny, tokens  # noqa: E402

IDS, LABELS = tokens()
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_labels": 3,
    "pad_token_id": 0,
}
OF_TOKENS = (IDS % 3).masked_fill(IDS < 6, -100)
OF_SEQUENCES = torch.tensor([0, 2, 1, 1])
MASKED = LABELS.masked_fill(LABELS % 3 > 0, -100)
SPECIAL = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
CTX = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
HEADS = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
FFN = {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 16}


def make(config, kind, **given):
    torch.manual_seed(1)
    config = getattr(transformers, f"{config}Config")(**given)
    return getattr(transformers, kind)(config).eval()


MODELS = {
    "Llama": (lambda: tiny(dtype=torch.float32).eval(), LABELS),
    "Mixtral": (lambda: make("Mixtral", "MixtralForCausalLM", **SIZE, num_local_experts=2), LABELS),
    "Mamba": (lambda: make("Mamba", "MambaForCausalLM", **SMALL, state_size=2), LABELS),
    "BERT's masked LM": (lambda: make("Bert", "BertForMaskedLM", **SMALL), MASKED),
    "ModernBERT": (
        lambda: make("ModernBert", "ModernBertForMaskedLM", **SMALL | SPECIAL),
        MASKED,
    ),
    "BERT of tokens": (lambda: make("Bert", "BertForTokenClassification", **SMALL), OF_TOKENS),
    "Llama of tokens": (lambda: make("Llama", "LlamaForTokenClassification", **SMALL), OF_TOKENS),
    "Llama of sequences": (
        lambda: make("Llama", "LlamaForSequenceClassification", **SMALL),
        OF_SEQUENCES,
    ),
    "BERT of sequences": (
        lambda: make("Bert", "BertForSequenceClassification", **SMALL),
        OF_SEQUENCES,
    ),
    "T5": (
        lambda: make(
            "T5",
            "T5ForConditionalGeneration",
            vocab_size=VOCABULARY,
            d_model=8,
            d_kv=4,
            d_ff=8,
            num_layers=1,
            num_heads=1,
            decoder_start_token_id=0,
        ),
        LABELS,
    ),
    "BART": (
        lambda: make(
            "Bart",
            "BartForConditionalGeneration",
            vocab_size=VOCABULARY,
            **CTX | HEADS | FFN,
            pad_token_id=0,
        ),
        LABELS,
    ),
    "Moonshine": (
        lambda: make(
            "Moonshine",
            "MoonshineForConditionalGeneration",
            **SMALL | SPECIAL,
            encoder_num_hidden_layers=1,
            decoder_num_hidden_layers=1,
            encoder_num_attention_heads=1,
            decoder_num_attention_heads=1,
            decoder_start_token_id=1,
        ),
        LABELS,
    ),
}
CALLING = {"Llama", "Mixtral", "Mamba", "ModernBERT", "Moonshine"} | {
    name for name in MODELS if name.startswith("Llama")
}


def inputs_of(model, labels):
    if "Moonshine" in type(model).__name__:
        generator = torch.Generator().manual_seed(3)
        return {"input_values": torch.randn(4, 2000, generator=generator), "labels": labels}
    return {"input_ids": IDS, "labels": labels}


@pytest.mark.parametrize(("model", "labels"), MODELS.values(), ids=MODELS)
def test_from_the_outputs(model, labels):
    """The default has the value of the model's own cross entropy."""
    model = model()
    output = model(**inputs_of(model, labels))
    found = compute_loss_func(ak.CE())(output, labels)
    torch.testing.assert_close(found, output.loss, check_dtype=False)


@pytest.mark.parametrize("name", sorted(CALLING))
def test_from_the_model(name):
    model, labels = MODELS[name]
    model = model()
    given = inputs_of(model, labels)
    own = model(**given).loss
    set_loss_function(model, ak.CE())
    torch.testing.assert_close(model(**given).loss, own, check_dtype=False)


class Writer(transformers.LlamaForCausalLM):
    """A name from which transformers reads no loss_type."""


class Tagger(transformers.LlamaForTokenClassification):
    """So that it falls back to the loss of a causal language model."""


def test_from_the_classes_that_a_model_inherits_from():
    config = transformers.LlamaConfig(**SMALL)
    writer, tagger = Writer(config).eval(), Tagger(config).eval()
    assert writer.loss_type is tagger.loss_type is None
    own = writer(input_ids=IDS, labels=LABELS).loss
    found = set_loss_function(writer, ak.CE())(input_ids=IDS, labels=LABELS).loss
    torch.testing.assert_close(found, own)
    output = set_loss_function(tagger, ak.CE())(input_ids=IDS, labels=OF_TOKENS)
    right = F.cross_entropy(output.logits.flatten(0, 1), OF_TOKENS.flatten())
    torch.testing.assert_close(output.loss, right)
    gpt2 = set_loss_function(tiny("GPT2").eval(), ak.CE())
    own = tiny("GPT2").eval()(input_ids=IDS, labels=LABELS).loss
    torch.testing.assert_close(gpt2(input_ids=IDS, labels=LABELS).loss, own, check_dtype=False)


class Unknown(transformers.LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(2, 3)

    def forward(self, logits, labels):
        return {"loss": self.loss_function(logits, labels), "logits": logits}


def test_models_that_do_not_tell():
    model, logits = Unknown(transformers.LlamaConfig(**SMALL)), torch.randn(4, 9, 3)
    with pytest.raises(
        ValueError, match=r"shift must be given.* neither loss_type nor the classes"
    ):
        set_loss_function(model, ak.CE())
    set_loss_function(model, ak.CE(), shift=False)
    right = F.cross_entropy(logits.flatten(0, 1), OF_TOKENS.flatten())
    torch.testing.assert_close(model(logits, OF_TOKENS)["loss"], right)


@pytest.mark.parametrize(
    "outputs",
    [
        lambda z: z,
        lambda z: (z,),
        lambda z: {"logits": z},
        lambda z: transformers.modeling_outputs.CausalLMOutput(logits=z),
        lambda z: transformers.modeling_outputs.CausalLMOutputWithCrossAttentions(logits=z),
    ],
)
def test_outputs_that_do_not_tell(outputs):
    logits = torch.randn(4, 9, VOCABULARY)
    with pytest.raises(ValueError, match=r"shift must be given here, because outputs of class"):
        compute_loss_func(ak.CE())(outputs(logits), LABELS)
    own = compute_loss_func(ak.CE(), shift=False)(outputs(logits), LABELS)
    torch.testing.assert_close(own, F.cross_entropy(logits.flatten(0, 1), LABELS.flatten()))


def test_an_encoder_decoder_that_hands_on_no_shifted_labels():
    """As some did before transformers 5, whose loss moved labels that were moved already."""
    model = tiny(dtype=torch.float32)
    model.config.is_encoder_decoder = True
    set_loss_function(model, ak.CE())
    with pytest.raises(ValueError, match=r"shift must be given here"):
        model.loss_function(logits=torch.randn(4, 9, VOCABULARY), labels=LABELS)
    patched = tiny(dtype=torch.float32)
    patched.config.is_encoder_decoder = True
    patch_model(patched, ak.CE())
    with pytest.raises(ValueError, match="encoder-decoder and hands on no shift_labels"):
        patched(input_ids=IDS, labels=LABELS)


def test_losses_of_another_kind_are_refused():
    answering = make("ModernBert", "ModernBertForQuestionAnswering", **SMALL | SPECIAL)
    with pytest.raises(TypeError, match="transformers' ForQuestionAnsweringLoss, which is not of"):
        set_loss_function(answering, ak.CE())


def test_a_loss_function_by_itself():
    logits = torch.randn(4, 9, VOCABULARY)
    rows = logits.flatten(0, 1)
    with pytest.raises(ValueError, match="because logits and labels alone do not tell"):
        loss_function(ak.CE())(logits, LABELS)
    for shift in "auto", True, False:
        moved = loss_function(ak.CE(), shift=shift)(logits, None, shift_labels=LABELS)
        torch.testing.assert_close(moved, F.cross_entropy(rows, LABELS.flatten()))
    next_labels = F.pad(LABELS, (0, 1), value=-100)[:, 1:]
    found = loss_function(ak.CE(), shift=True)(logits, LABELS)
    torch.testing.assert_close(found, F.cross_entropy(rows, next_labels.flatten()))


@pytest.mark.parametrize("make", [compute_loss_func, loss_function])
@pytest.mark.parametrize("shift", [None, 1, "yes"])
def test_values_of_shift(make, shift):
    with pytest.raises(TypeError, match=r"shift must be True, False or 'auto', got"):
        make(ak.CE(), shift=shift)


def test_no_class_of_output_is_of_both_kinds():
    """Nor of neither, among those that language models and classifiers return."""
    from transformers import modeling_outputs

    names = [name for name in vars(modeling_outputs) if name.endswith("Output")]
    assert not [name for name in names if NEXT.fullmatch(name) and OWN.fullmatch(name)]
    assert {"MaskedLMOutput", "Seq2SeqLMOutput", "TokenClassifierOutput"} <= set(
        filter(OWN.fullmatch, names)
    )


def test_every_loss_of_transformers_is_known():
    from transformers.loss.loss_utils import LOSS_MAPPING

    model, decided = Unknown(transformers.LlamaConfig(**SMALL)), {}
    for loss_type in LOSS_MAPPING:
        model.loss_type = loss_type
        try:
            decided[loss_type] = shift_of_model(model)
        except TypeError:
            decided[loss_type] = None
    causal = {kind for kind, shift in decided.items() if shift is True}
    assert causal >= {"ForCausalLM", "ForConditionalGeneration"}
    assert all("CausalLM" in kind or kind.endswith("ForConditionalGeneration") for kind in causal)
    own = {kind for kind, shift in decided.items() if shift is False}
    assert own >= {"ForMaskedLM", "ForTokenClassification", "ForSequenceClassification"}
    assert all(kind == "ForMaskedLM" or "Classification" in kind for kind in own)
