"""Steps of training with PyTorch (and `peft`) at the sizes of a known model: prints one line of JSON.

    python bench/peers/torch_steps.py lora --shape smollm2-135m --batch 16 --sequence 128 --labels 2 --steps 2

Methods: `lora` (peft, rank 8 on query and value projections), `adapters` (bottleneck blocks behind both sub-layers, width / 8),
`full`. Random weights, f32 unless `--bf16`. Called by bench/peers.py, which runs it beside `barycenter bench`; the sizes and the tokens are twins
of crates/engine/src/bench/shapes.rs and steps.rs.

With `--head all` the loss is the one of `transformers`, whose logits stand at every position; with `--head labelled` the head is
applied at labelled positions only, as Barycenter does it (the faster of the two).
"""

import argparse
import json
import resource
import sys
import time


def import_all():
    try:
        import peft
        import torch
        import transformers
    except ImportError as error:
        sys.exit(f"the Python package `{error.name}` is missing: pip install torch transformers peft, or name another interpreter with --python")
    return torch, transformers, peft


def peak_rss_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def build(transformers, shape):
    """The model and its query and value projections by name."""
    if shape == "smollm2-135m":
        config = transformers.LlamaConfig(
            hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
            vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        )
        return transformers.AutoModelForCausalLM.from_config(config), ["q_proj", "v_proj"]
    if shape == "t5-base":
        config = transformers.T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128, dropout_rate=0.0, decoder_start_token_id=0)
        return transformers.AutoModelForSeq2SeqLM.from_config(config), ["q", "v"]
    sys.exit(f"--shape {shape} has no peer here: choose smollm2-135m or t5-base")


def add_adapters(torch, model, width):
    """Freezes the model and puts bottleneck blocks (Houlsby et al. 2019) behind the last projection of each sub-layer."""

    class Adapted(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.down = torch.nn.Linear(width, width // 8)
            self.up = torch.nn.Linear(width // 8, width)
            torch.nn.init.zeros_(self.up.weight)
            torch.nn.init.zeros_(self.up.bias)

        @property
        def weight(self):  # T5 asks for its number format.
            return self.inner.weight

        def forward(self, x):
            y = self.inner(x)
            return y + self.up(torch.relu(self.down(y)))

    model.requires_grad_(False)
    ends = {"o_proj", "down_proj", "o", "wo"}
    places = [(module, name) for module in model.modules() for name, _ in module.named_children() if name in ends]
    for module, name in places:
        setattr(module, name, Adapted(getattr(module, name)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["lora", "adapters", "full"])
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed, after one that is not")
    parser.add_argument("--head", choices=["all", "labelled"], default="labelled")
    parser.add_argument("--bf16", action="store_true", help="the model in bfloat16; what peft trains stays f32")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch, transformers, peft = import_all()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    import_bytes = peak_rss_bytes()

    model, targets = build(transformers, options.shape)
    if options.bf16:
        model = model.to(torch.bfloat16)
    seq2seq = model.config.is_encoder_decoder
    model.config.use_cache = False
    if options.method == "lora":
        task = "SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM"
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type=task))
    elif options.method == "adapters":
        add_adapters(torch, model, model.config.d_model if seq2seq else model.config.hidden_size)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)

    vocab, batch, labels = model.config.vocab_size, options.batch, options.labels
    ids = torch.randint(0, vocab, (batch, options.sequence))
    classes = torch.randint(0, vocab, (batch, labels))

    def loss():
        if seq2seq:
            return model(input_ids=ids, labels=classes).loss
        if options.head == "all":
            wanted = torch.full_like(ids, -100)
            wanted[:, -labels:] = classes
            return model(input_ids=ids, labels=wanted).loss
        logits = model(input_ids=ids, logits_to_keep=labels).logits
        return torch.nn.functional.cross_entropy(logits.reshape(-1, vocab), classes.reshape(-1))

    seconds, processor_seconds = [], []
    for step in range(options.steps + 1):
        began, processor_began = time.perf_counter(), time.process_time()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        value = value.item()
        if step > 0:
            seconds.append(time.perf_counter() - began)
            processor_seconds.append(time.process_time() - processor_began)
    print(json.dumps({
        "method": options.method,
        "head": options.head,
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "loss": value,
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "import_rss_bytes": import_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
    }))


if __name__ == "__main__":
    main()
