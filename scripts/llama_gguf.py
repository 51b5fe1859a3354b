"""A Llama folder (`config.json`, `model.safetensors`, byte-level BPE `tokenizer.json`) as a GGUF file in f32, so that llama.cpp and
this project can be given the same base model. Needs gguf, safetensors and numpy from PyPI.

usage: llama_gguf.py FOLDER FILE
"""
import json, os, sys
import gguf
import numpy as np
from safetensors.numpy import load_file

folder, out = sys.argv[1:]
config = json.load(open(os.path.join(folder, 'config.json')))
tensors = load_file(os.path.join(folder, 'model.safetensors'))
tokenizer = json.load(open(os.path.join(folder, 'tokenizer.json')))
heads, kv_heads, vocabulary = config['num_attention_heads'], config['num_key_value_heads'], config['vocab_size']

writer = gguf.GGUFWriter(out, 'llama')
writer.add_block_count(config['num_hidden_layers'])
writer.add_context_length(config['max_position_embeddings'])
writer.add_embedding_length(config['hidden_size'])
writer.add_feed_forward_length(config['intermediate_size'])
writer.add_head_count(heads)
writer.add_head_count_kv(kv_heads)
writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
writer.add_rope_freq_base(config['rope_parameters']['rope_theta'])
for add in (writer.add_rope_dimension_count, writer.add_key_length, writer.add_value_length):
    add(config['head_dim'])
writer.add_vocab_size(vocabulary)

plain = {number: text for text, number in tokenizer['model']['vocab'].items()}
special = {token['id']: token['content'] for token in tokenizer['added_tokens']}
kind = lambda number: gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL if number in plain else gguf.TokenType.UNUSED
writer.add_tokenizer_model('gpt2')
writer.add_tokenizer_pre('gpt-2')
writer.add_token_list([special.get(number) or plain.get(number) or f'<unused{number}>' for number in range(vocabulary)])
writer.add_token_types([kind(number) for number in range(vocabulary)])
writer.add_token_merges([merge if isinstance(merge, str) else ' '.join(merge) for merge in tokenizer['model']['merges']])
writer.add_eos_token_id(config['eos_token_id'])
writer.add_add_bos_token(False)

names = {
    'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v', 'self_attn.o_proj': 'attn_output',
    'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down',
    'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm',
}
whole = {'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm', 'lm_head': 'output'}


def pairwise(rows, heads):
    """llama.cpp turns neighbouring rows of a head into each other, `transformers` its first half and its second."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


for name, values in tensors.items():
    name, values = name.removesuffix('.weight'), values.astype(np.float32)
    if name in whole:
        writer.add_tensor(f'{whole[name]}.weight', values)
        continue
    _, _, layer, module = name.split('.', 3)
    if module in ('self_attn.q_proj', 'self_attn.k_proj'):
        values = pairwise(values, heads if module.endswith('q_proj') else kv_heads)
    writer.add_tensor(f'blk.{layer}.{names[module]}.weight', values)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
