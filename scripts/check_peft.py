"""A LoRA adapter means the same here and in `peft`: the same file, the same logits, in both directions.

usage: check_peft.py PROGRAM MODEL ADAPTER      e.g. target/debug/barycenter assets/demo /tmp/lora

1. ADAPTER, written by `barycenter train --method lora --out ADAPTER`, is loaded by `peft`.
2. Adapters that `peft` makes and saves (one rank for all; ranks and alphas by module; modules by a pattern) are loaded by PROGRAM.
Each time the logits of seeded token ids are compared, f32 on the processor. Needs torch, transformers, peft and
safetensors from PyPI. Without them it says that nothing was checked and ends with 0, or with 1 if
BARYCENTER_REQUIRE_PEFT=1.
"""
import json, os, subprocess, sys, tempfile

try:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f'NOT CHECKED against peft: {error}; `pip install torch transformers peft safetensors` brings it')
    sys.exit(1 if os.environ.get('BARYCENTER_REQUIRE_PEFT') == '1' else 0)

# f32 in another order of summation, as `barycenter verify` holds golden logits to.
TOLERANCE = 1e-4
# What the adapter adds to the logits is a small part of them, and must be right by itself.
EFFECT_TOLERANCE = 1e-2
if len(sys.argv) != 4:
    sys.exit(__doc__)
program, model_folder, adapter_folder = sys.argv[1:]


def base():
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()


def compare(what, model, adapter, sequences):
    with tempfile.TemporaryDirectory() as folder:
        ids, out = os.path.join(folder, 'ids.json'), os.path.join(folder, 'logits.safetensors')
        json.dump(sequences, open(ids, 'w'))
        subprocess.run([program, 'logits', '--device', 'cpu', '--model', model_folder, '--adapter', adapter, '--ids', ids, '--out', out], check=True)
        ours = load_file(out)
    worst = worst_effect = 0.0
    with torch.no_grad():
        for index, sequence in enumerate(sequences):
            ids = torch.tensor([sequence])
            theirs = model(input_ids=ids).logits[0]
            with model.disable_adapter():
                effect = (model(input_ids=ids).logits[0] - theirs).norm()
            assert effect > 10 * TOLERANCE * theirs.norm(), f'{what}: the adapter changes next to nothing, so nothing is compared'
            error = (ours[f'logits.{index}'] - theirs).norm()
            worst, worst_effect = max(worst, (error / theirs.norm()).item()), max(worst_effect, (error / effect).item())
    print(f'{what}: largest relative error of the logits {worst:.1e}, of what the adapter adds to them {worst_effect:.1e}')
    assert worst <= TOLERANCE, f'{what}: {worst:.1e} is above {TOLERANCE:.0e}'
    assert worst_effect <= EFFECT_TOLERANCE, f'{what}: {worst_effect:.1e} is above {EFFECT_TOLERANCE:.0e}'


torch.manual_seed(11)
model = base()
sequences = [torch.randint(3, model.config.vocab_size, (length,)).tolist() for length in (1, 9, 31)]
compare('our adapter in peft', PeftModel.from_pretrained(model, adapter_folder).eval(), adapter_folder, sequences)

last = model.config.num_hidden_layers - 1
of_peft = {
    "peft's adapter here": dict(r=4, lora_alpha=6, use_rslora=True, target_modules=['q_proj', 'v_proj', 'down_proj'], layers_to_transform=[0, last]),
    "peft's adapter with ranks and alphas of their own here": dict(
        r=4, lora_alpha=6, target_modules=['q_proj', 'v_proj', 'down_proj'], exclude_modules=[f'layers.{last}.mlp.down_proj'],
        rank_pattern={'layers.0.self_attn.q_proj': 2, 'down_proj': 3}, alpha_pattern={r'layers\.\d+\.self_attn\.v_proj': 9}),
    "peft's adapter with a pattern of modules here": dict(r=3, target_modules=r'.*\.(?!0\.)\d+\.(self_attn|mlp)\.(q_proj|up_proj)'),
}
for what, settings in of_peft.items():
    theirs = get_peft_model(base(), LoraConfig(task_type='CAUSAL_LM', **settings)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if 'lora_B' in name:
                parameter.normal_(std=0.05)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        compare(what, theirs, folder, sequences)
