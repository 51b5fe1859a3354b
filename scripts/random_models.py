"""Random small models of all families: does `barycenter verify` agree with `transformers` on each?

usage: random_models.py PROGRAM [--family llama,t5] [--seeds 0:20] [--device cpu] [--keep DIR]

The folders in tests/golden are chosen by hand; here a family and a seed draw one: sizes that nothing divides, grouped heads, kinds of
rotary embedding, windows, activations, tied and untied heads, half precision, sharded files, names of tensors without their prefix and
config.json as older releases wrote it. Each becomes an ordinary Hugging Face model folder with random weights and golden.safetensors:
inputs, and the hidden states and logits that `transformers` computes in float32 after loading that folder again. PROGRAM verifies it.

Prints a line for each folder that fails and a table at the end; the exit code is 1 if a folder disagrees, is refused or could not be made.
A family and a seed always draw the same model: `--family llama --seeds 7:8 --keep DIR` brings back llama's seed 7 and keeps its folder.
Needs torch, transformers 5 and safetensors from PyPI.
"""
import argparse, json, os, random, re, subprocess, sys, tempfile, warnings

try:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ImportError as error:
    sys.exit(f'NOT CHECKED: {error}; `pip install torch transformers safetensors` brings it')

ACTIVATIONS = [
    'silu', 'swish', 'gelu', 'gelu_new', 'gelu_pytorch_tanh', 'relu', 'quick_gelu', 'gelu_fast', 'gelu_python', 'gelu_accurate', 'tanh',
    'gelu_python_tanh',
]
T5_FEED_FORWARDS = [
    'relu', 'gelu', 'gelu_new', 'silu', 'tanh', 'gated-gelu', 'gated-silu', 'gated-relu', 'gated-gelu_new', 'gated-quick_gelu', 'gated-tanh',
]
# What the names of a base model's tensors lack; T5 has no such prefix.
PREFIXES = dict(gpt2='transformer.', bert='bert.', t5=None)
LONGEST_INPUT, LONGEST_DECODER_INPUT = 30, 20


# ---- Configurations: each takes the generator of random numbers and returns a model class, a config class and the config's values.

def rope(draw, head_dim):
    "rope_parameters of one kind"
    # With heads of two `dynamic` divides by zero in `transformers`.
    kind = draw.choice(['default', 'default', 'linear', 'llama3', 'yarn'] + (['dynamic'] if head_dim > 2 else []))
    values = dict(rope_type=kind, rope_theta=draw.choice([10000.0, 500.0, 1e6, 123.0]))
    if kind in ('linear', 'dynamic'):
        values['factor'] = draw.choice([2.0, 4.0, 1.5])
    if kind == 'llama3':
        values |= dict(
            factor=draw.choice([4.0, 8.0, 32.0]), low_freq_factor=draw.choice([1.0, 0.5]), high_freq_factor=draw.choice([2.0, 4.0]),
        )
    if kind == 'yarn':
        values['factor'] = draw.choice([2.0, 4.0, 16.0])
        optional = dict(
            beta_fast=[8.0, 2.0], beta_slow=[0.5, 1.5], attention_factor=[1.0, 1.3], mscale=[0.7], mscale_all_dim=[1.4], truncate=[True, False],
        )
        values |= {name: draw.choice(choices) for name, choices in optional.items() if draw.random() < 0.3}
    if kind in ('llama3', 'yarn') and draw.random() < 0.7:
        values['original_max_position_embeddings'] = draw.choice([8, 16, 32])
    return values


def layer_types(draw, layers):
    return [draw.choice(['sliding_attention', 'full_attention']) for _ in range(layers)]


def decoder(draw, head_dim, own_head_dim, layers=4):
    "what the families with rotary embeddings share; without a head_dim of its own the heads divide the hidden size"
    heads = draw.choice([1, 2, 3, 4, 6, 8])
    values = dict(
        vocab_size=draw.randint(33, 90),
        hidden_size=max(heads * draw.choice([2, 4, 6, 8]), 4) if own_head_dim else heads * head_dim,
        intermediate_size=draw.randint(5, 70),
        num_hidden_layers=draw.randint(1, layers),
        num_attention_heads=heads,
        num_key_value_heads=draw.choice([count for count in range(1, heads + 1) if heads % count == 0]),
        max_position_embeddings=draw.choice([32, 64, 128]),
        rms_norm_eps=draw.choice([1e-6, 1e-5, 1e-3]),
        tie_word_embeddings=draw.random() < 0.5,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
    return values | (dict(head_dim=head_dim) if own_head_dim else {})


def draw_head_dim(draw):
    return draw.choice([2, 4, 6, 8, 10, 16])


def activation_and_rope(draw, head_dim):
    return dict(hidden_act=draw.choice(ACTIVATIONS) if draw.random() < 0.6 else 'silu', rope_parameters=rope(draw, head_dim))


def qwen_windows(draw, layers):
    "windows in the upper layers, in named layers, or nowhere"
    if draw.random() < 0.4:
        return {}
    windows = dict(use_sliding_window=True, sliding_window=draw.choice([1, 3, 5, 40]))
    if draw.random() < 0.5:
        return windows | dict(max_window_layers=draw.randint(0, layers))
    return windows | dict(layer_types=layer_types(draw, layers))


def llama(draw):
    head_dim = draw_head_dim(draw)
    values = decoder(draw, head_dim, own_head_dim=draw.random() < 0.5) | activation_and_rope(draw, head_dim)
    values |= dict(attention_bias=draw.random() < 0.4, mlp_bias=draw.random() < 0.4)
    return transformers.LlamaForCausalLM, transformers.LlamaConfig, values


def mistral(draw):
    head_dim = draw_head_dim(draw)
    values = decoder(draw, head_dim, own_head_dim=draw.random() < 0.5) | activation_and_rope(draw, head_dim)
    values['sliding_window'] = draw.choice([None, 1, 3, 5, 40])
    return transformers.MistralForCausalLM, transformers.MistralConfig, values


def qwen2(draw):
    head_dim = draw_head_dim(draw)
    values = decoder(draw, head_dim, own_head_dim=False) | activation_and_rope(draw, head_dim)
    values |= qwen_windows(draw, values['num_hidden_layers'])
    return transformers.Qwen2ForCausalLM, transformers.Qwen2Config, values


def qwen3(draw):
    head_dim = draw_head_dim(draw)
    values = decoder(draw, head_dim, own_head_dim=True) | activation_and_rope(draw, head_dim)
    values |= dict(attention_bias=draw.random() < 0.4) | qwen_windows(draw, values['num_hidden_layers'])
    return transformers.Qwen3ForCausalLM, transformers.Qwen3Config, values


def gemma3(draw):
    head_dim = draw_head_dim(draw)
    values = decoder(draw, head_dim, own_head_dim=True, layers=7)
    values |= dict(
        hidden_activation=draw.choice(ACTIVATIONS) if draw.random() < 0.4 else 'gelu_pytorch_tanh',
        query_pre_attn_scalar=draw.choice([head_dim, 7, 256, 24]),
        sliding_window=draw.choice([1, 3, 6, 40]),
        attention_bias=draw.random() < 0.3,
    )
    if draw.random() < 0.4:
        values['sliding_window_pattern'] = draw.randint(1, 4)
    elif draw.random() < 0.5:
        values['layer_types'] = layer_types(draw, values['num_hidden_layers'])
    if draw.random() < 0.7:
        values['rope_parameters'] = dict(full_attention=rope(draw, head_dim), sliding_attention=rope(draw, head_dim))
    return transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig, values


def gpt2(draw):
    heads = draw.choice([1, 2, 3, 4, 12])
    values = dict(
        vocab_size=draw.randint(33, 90),
        n_positions=draw.choice([32, 64]),
        n_embd=heads * draw.choice([1, 2, 5, 8]),
        n_layer=draw.randint(1, 4),
        n_head=heads,
        n_inner=draw.choice([None, draw.randint(5, 60)]),
        activation_function=draw.choice(ACTIVATIONS),
        layer_norm_epsilon=draw.choice([1e-6, 1e-5, 1e-3]),
        scale_attn_weights=draw.random() < 0.7,
        scale_attn_by_inverse_layer_idx=draw.random() < 0.4,
        reorder_and_upcast_attn=draw.random() < 0.4,
        tie_word_embeddings=draw.random() < 0.7,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel, transformers.GPT2Config, values


def t5(draw):
    buckets = draw.choice([4, 6, 7, 8, 9, 16, 20, 32])
    values = dict(
        vocab_size=draw.randint(33, 90),
        d_model=draw.choice([4, 10, 16, 24, 30]),
        d_kv=draw.choice([2, 3, 5, 8, 12]),
        d_ff=draw.randint(5, 60),
        num_layers=draw.randint(1, 3),
        num_decoder_layers=draw.choice([None, 1, 2, 3]),
        num_heads=draw.choice([1, 2, 3, 4, 8]),
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=draw.choice([buckets, buckets + 3, 2 * buckets, 128, buckets // 2 + 1]),
        layer_norm_epsilon=draw.choice([1e-6, 1e-3]),
        feed_forward_proj=draw.choice(T5_FEED_FORWARDS),
        tie_word_embeddings=draw.random() < 0.5,
        decoder_start_token_id=0, dropout_rate=0.0,
    )
    return transformers.T5ForConditionalGeneration, transformers.T5Config, values


def bart(draw):
    width = draw.choice([12, 24, 48])
    heads = [count for count in (1, 2, 3, 4, 6, 12) if width % count == 0]
    values = dict(
        vocab_size=draw.randint(33, 90),
        max_position_embeddings=draw.choice([32, 40]),
        d_model=width,
        encoder_layers=draw.randint(1, 3),
        decoder_layers=draw.randint(1, 3),
        encoder_attention_heads=draw.choice(heads),
        decoder_attention_heads=draw.choice(heads),
        encoder_ffn_dim=draw.randint(5, 60),
        decoder_ffn_dim=draw.randint(5, 60),
        scale_embedding=draw.random() < 0.5,
        activation_function=draw.choice(ACTIVATIONS),
        tie_word_embeddings=draw.random() < 0.7,
        dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, forced_eos_token_id=None,
    )
    return transformers.BartForConditionalGeneration, transformers.BartConfig, values


def bert(draw):
    heads = draw.choice([1, 2, 3, 4, 12])
    model_class = draw.choice([
        transformers.BertModel, transformers.BertModel, transformers.BertForMaskedLM, transformers.BertForSequenceClassification,
        transformers.BertForPreTraining,
    ])
    values = dict(
        vocab_size=draw.randint(33, 90),
        hidden_size=heads * draw.choice([2, 3, 5, 8]),
        num_hidden_layers=draw.randint(1, 3),
        num_attention_heads=heads,
        intermediate_size=draw.randint(5, 60),
        max_position_embeddings=draw.choice([32, 40]),
        type_vocab_size=draw.choice([1, 2, 3]),
        hidden_act=draw.choice(ACTIVATIONS),
        layer_norm_eps=draw.choice([1e-12, 1e-5, 1e-3]),
        tie_word_embeddings=draw.random() < 0.7,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
    if model_class is transformers.BertForSequenceClassification:
        values['num_labels'] = draw.choice([1, 2, 3, 5])
    return model_class, transformers.BertConfig, values


FAMILIES = dict(llama=llama, mistral=mistral, qwen2=qwen2, qwen3=qwen3, gemma3=gemma3, gpt2=gpt2, t5=t5, bart=bart, bert=bert)


# ---- Folders

def make_parts_count(model):
    "biases and norms that are not zero and one, and larger weights, so that a part that is left out shows"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(1.5)
        for name, buffer in model.named_buffers():
            if 'final_logits_bias' in name:
                buffer.add_(torch.randn_like(buffer))


def edit_json(path, edit):
    with open(path) as file:
        values = json.load(file)
    edit(values)
    with open(path, 'w') as file:
        json.dump(values, file, indent=1)


def remove_prefix(folder, prefix):
    "the names of tensors as a base model's folder has them"
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.endswith('.safetensors'):
            save_file({key.removeprefix(prefix): tensor for key, tensor in load_file(path).items()}, path, metadata={'format': 'pt'})
        elif name.endswith('.safetensors.index.json'):
            edit_json(path, lambda index: index.update(weight_map={key.removeprefix(prefix): file for key, file in index['weight_map'].items()}))


def write_old_style(draw, config):
    "config.json as releases before transformers 5 wrote it, in place"
    config['torch_dtype'] = config.pop('dtype', 'float32')
    for name in ('dense_act_fn', 'is_gated_act', 'scale_decoder_outputs'):
        config.pop(name, None)
    values = config.pop('rope_parameters', None)
    if config['model_type'] == 'gemma3_text':
        # Only the full layers' embedding could be scaled.
        scaling = values['full_attention']
        config['rope_theta'] = scaling.pop('rope_theta')
        config['rope_local_base_freq'] = values['sliding_attention']['rope_theta']
        if scaling['rope_type'] != 'default':
            config['rope_scaling'] = scaling
        elif draw.random() < 0.5:
            config['rope_scaling'] = None
        if config.get('_sliding_window_pattern') and draw.random() < 0.7:
            config['sliding_window_pattern'] = config.pop('_sliding_window_pattern')
            config.pop('layer_types')
    elif values:
        kind = values.pop('rope_type')
        config['rope_theta'] = values.pop('rope_theta')
        config['rope_scaling'] = None if kind == 'default' else values | {draw.choice(['rope_type', 'type']): kind}


def draw_inputs(draw, config):
    "one to three sequences, padded on the right"
    rows, longest = draw.randint(1, 3), draw.randint(2, LONGEST_INPUT)
    lengths = torch.tensor([longest] + [draw.randint(1, longest) for _ in range(rows - 1)])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    inputs = dict(input_ids=torch.randint(3, config.vocab_size, (rows, longest)) * mask, attention_mask=mask)
    if config.is_encoder_decoder:
        decoder_ids = torch.randint(3, config.vocab_size, (rows, draw.randint(1, LONGEST_DECODER_INPUT)))
        decoder_ids[:, 0] = 0
        inputs['decoder_input_ids'] = decoder_ids
    if config.model_type == 'bert' and draw.random() < 0.7:
        inputs['token_type_ids'] = torch.randint(0, config.type_vocab_size, (rows, longest))
    return inputs


def golden(model, inputs):
    "the inputs and what the model computes for them, under the names that `verify` reads"
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    tensors = dict(inputs)
    for stack in ('hidden', 'encoder_hidden', 'decoder_hidden'):
        for index, states in enumerate(output.get(f'{stack}_states') or ()):
            tensors[f'{stack}.{index}'] = states
    for name in ('logits', 'prediction_logits'):
        if output.get(name) is not None:
            tensors['logits'] = output[name]
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def make_folder(family, seed, folder):
    "the model that a family and a seed draw, and golden.safetensors"
    draw = random.Random(f'{family} {seed}')
    torch.manual_seed(draw.getrandbits(32))
    model_class, config_class, values = FAMILIES[family](draw)
    model = model_class(config_class(**values)).eval().float()
    make_parts_count(model)
    if draw.random() < 0.2:
        model.to(draw.choice([torch.float16, torch.bfloat16]))
    model.save_pretrained(folder, max_shard_size='4KB' if draw.random() < 0.25 else '50GB')
    prefix = PREFIXES.get(family, 'model.')
    if prefix and draw.random() < 0.2:
        remove_prefix(folder, prefix)
    if draw.random() < 0.25:
        edit_json(os.path.join(folder, 'config.json'), lambda config: write_old_style(draw, config))
    attention = draw.choice([{}, dict(attn_implementation='eager')])
    loaded = model_class.from_pretrained(folder, dtype=torch.float32, **attention).eval()
    save_file(golden(loaded, draw_inputs(draw, loaded.config)), os.path.join(folder, 'golden.safetensors'))


# ---- The check

def check(program, device, family, seed, folder):
    "whether the folder agrees, and the largest relative error if one was printed; says what is wrong"
    os.makedirs(folder)
    try:
        make_folder(family, seed, folder)
    except Exception as error:
        print(f'{family} {seed}: could not be made: {type(error).__name__}: {error}', flush=True)
        return False, None
    run = subprocess.run([program, 'verify', folder, '--device', device], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = re.search(r'largest relative error, golden: (\S+)', run.stdout)
    error = float(found[1]) if found else None
    if run.returncode == 0 and found:
        return True, error
    lines = run.stdout.strip().splitlines()
    telling = [' '.join(line.split()) for line in lines if 'ABOVE' in line or line.startswith('barycenter:')] or lines[-1:]
    print(f'{family} {seed}: {"disagrees" if found else "refused"} (exit code {run.returncode}): {"; ".join(telling[:4])}', flush=True)
    return False, error


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('program', metavar='PROGRAM')
    parser.add_argument('--family', default=','.join(FAMILIES), help='families, separated by commas (all)')
    parser.add_argument('--seeds', default='0:20', help='the first seed and the one after the last (0:20)')
    parser.add_argument('--device', default='cpu', help='what PROGRAM computes on (cpu)')
    parser.add_argument('--keep', metavar='DIR', help='a folder for the models, which are otherwise removed')
    options = parser.parse_args()
    families = options.family.split(',')
    for family in families:
        if family not in FAMILIES:
            parser.error(f'{family} is none of {", ".join(FAMILIES)}')
    bounds = re.fullmatch(r'(\d+):(\d+)', options.seeds)
    if not bounds or int(bounds[1]) >= int(bounds[2]):
        parser.error(f'--seeds is FIRST:END with END above FIRST, not {options.seeds}')
    return options, families, range(int(bounds[1]), int(bounds[2]))


def main():
    options, families, seeds = arguments()
    warnings.filterwarnings('ignore')
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    table = []
    with tempfile.TemporaryDirectory() as temporary:
        for family in families:
            results = []
            for seed in seeds:
                name = f'{family}-{seed}'
                if options.keep:
                    folder = os.path.join(options.keep, name)
                    if os.path.exists(folder):
                        sys.exit(f'{folder} exists already')
                    results.append(check(options.program, options.device, family, seed, folder))
                else:
                    with tempfile.TemporaryDirectory(dir=temporary) as parent:
                        results.append(check(options.program, options.device, family, seed, os.path.join(parent, name)))
            errors = [error for _, error in results if error is not None]
            table.append((family, len(results), sum(agrees for agrees, _ in results), max(errors, default=None)))
    print(f'{"family":10}{"folders":>8}{"agree":>8}{"worst relative error":>23}')
    for family, folders, agree, worst in table:
        print(f'{family:10}{folders:8}{agree:8}{"-" if worst is None else format(worst, ".2e"):>23}')
    sys.exit(any(agree < folders for _, folders, agree, _ in table))


if __name__ == '__main__':
    main()
