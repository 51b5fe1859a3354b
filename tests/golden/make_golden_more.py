"""Further tiny cases: other sizes and options of the families, both styles of config.json, half precision, runs of
parallel adapters and LoRA on other families. Made as make_golden.py makes its own.

usage: make_golden_more.py OUT_DIR [CASE …]
"""
import sys, os, json, copy, torch, torch.nn as nn, torch.nn.functional as F
from safetensors.torch import save_file
import transformers as T
out, wanted = sys.argv[1], sys.argv[2:]
V = 64
dec = dict(vocab_size=V, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
g3 = dict(**dec, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16)

def cases():
    # (folder, class, config, options)
    yield 'gemma3-old-style', T.Gemma3ForCausalLM, T.Gemma3TextConfig(**g3, sliding_window=5, query_pre_attn_scalar=9, layer_types=['sliding_attention', 'full_attention'], attention_bias=True, rope_parameters=dict(full_attention=dict(rope_type='linear', factor=4.0, rope_theta=50000.0), sliding_attention=dict(rope_type='default', rope_theta=5000.0))), dict(old='gemma3')
    yield 'gemma3-pac', T.Gemma3ForCausalLM, T.Gemma3TextConfig(**g3, sliding_window=6, query_pre_attn_scalar=16, layer_types=['sliding_attention', 'full_attention'], hidden_activation='gelu_pytorch_tanh', tie_word_embeddings=False), dict(pac=4)
    yield 'gpt2-pac', T.GPT2LMHeadModel, T.GPT2Config(vocab_size=V, n_positions=40, n_embd=24, n_layer=2, n_head=2, n_inner=56, bos_token_id=1, eos_token_id=2, pad_token_id=0, activation_function='gelu', scale_attn_by_inverse_layer_idx=True), dict(pac=4, lora=['c_attn', 'c_proj', 'c_fc'])
    yield 'gpt2-options', T.GPT2LMHeadModel, T.GPT2Config(vocab_size=V, n_positions=40, n_embd=36, n_layer=2, n_head=3, bos_token_id=1, eos_token_id=2, pad_token_id=0, activation_function='silu', scale_attn_weights=False, tie_word_embeddings=False, layer_norm_epsilon=1e-3), dict(lora=['c_attn'], half=torch.bfloat16)
    yield 'gpt2-base-names', T.GPT2LMHeadModel, T.GPT2Config(vocab_size=V, n_positions=40, n_embd=24, n_layer=2, n_head=12, bos_token_id=1, eos_token_id=2, pad_token_id=0), dict(strip='transformer.', drop=['n_head', 'activation_function', 'layer_norm_epsilon', 'n_inner', 'scale_attn_weights', 'tie_word_embeddings'])
    yield 'bert-mlm', T.BertForMaskedLM, T.BertConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=44, max_position_embeddings=40, type_vocab_size=3, hidden_act='gelu_new', hidden_dropout_prob=0., attention_probs_dropout_prob=0., layer_norm_eps=1e-5), dict(pac=4, lora=['query'])
    yield 'bert-mlm-untied', T.BertForMaskedLM, T.BertConfig(vocab_size=V, hidden_size=24, num_hidden_layers=2, num_attention_heads=12, intermediate_size=44, max_position_embeddings=40, type_vocab_size=2, hidden_act='relu', hidden_dropout_prob=0., attention_probs_dropout_prob=0., tie_word_embeddings=False), dict(drop=['num_attention_heads', 'type_vocab_size', 'layer_norm_eps'])
    yield 'bert-classifier', T.BertForSequenceClassification, T.BertConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, max_position_embeddings=40, hidden_dropout_prob=0., attention_probs_dropout_prob=0., num_labels=3), dict(half=torch.bfloat16)
    yield 'bart-options', T.BartForConditionalGeneration, T.BartConfig(vocab_size=V, max_position_embeddings=40, d_model=32, encoder_layers=1, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=56, scale_embedding=True, activation_function='relu', dropout=0., attention_dropout=0., activation_dropout=0., forced_eos_token_id=None), dict(lora=['v_proj'], half=torch.float16)
    yield 'bart-base-names', T.BartForConditionalGeneration, T.BartConfig(vocab_size=V, max_position_embeddings=40, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=16, decoder_attention_heads=16, encoder_ffn_dim=40, decoder_ffn_dim=24, activation_function='gelu_new', dropout=0., attention_dropout=0., activation_dropout=0., forced_eos_token_id=None), dict(drop=['encoder_attention_heads', 'decoder_attention_heads', 'scale_embedding'], half=torch.float16)
    yield 't5-untied', T.T5ForConditionalGeneration, T.T5Config(vocab_size=V, d_model=32, d_kv=6, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=3, relative_attention_num_buckets=8, relative_attention_max_distance=16, feed_forward_proj='gated-gelu', tie_word_embeddings=False, decoder_start_token_id=0), dict(untie=True, half=torch.float16, old='t5', lora=['q', 'wi_0'])
    yield 't5-silu-half', T.T5ForConditionalGeneration, T.T5Config(vocab_size=V, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=8, feed_forward_proj='gated-silu', decoder_start_token_id=0), dict(half=torch.bfloat16, drop=['num_decoder_layers', 'num_heads', 'relative_attention_num_buckets', 'relative_attention_max_distance', 'scale_decoder_outputs'])
    yield 't5-gelu', T.T5ForConditionalGeneration, T.T5Config(vocab_size=V, d_model=24, d_kv=5, d_ff=33, num_layers=1, num_heads=3, relative_attention_num_buckets=20, relative_attention_max_distance=18, feed_forward_proj='gelu', layer_norm_epsilon=1e-4, decoder_start_token_id=0), dict()
    yield 'llama-gelu-bias', T.LlamaForCausalLM, T.LlamaConfig(**dec, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12, hidden_act='gelu', attention_bias=True, mlp_bias=True), dict(lora=['q_proj', 'up_proj'], half=torch.float16, old='llama')
    yield 'qwen2-lora', T.Qwen2ForCausalLM, T.Qwen2Config(**dec, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=1), dict(lora=['k_proj', 'gate_proj'])
    yield 'mistral-window', T.MistralForCausalLM, T.MistralConfig(**dec, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, sliding_window=4), dict(lora=['q_proj', 'v_proj'])
    yield 'gemma3-lora', T.Gemma3ForCausalLM, T.Gemma3TextConfig(**g3, sliding_window=5), dict(lora=['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'], drop=['layer_types', 'rope_parameters', 'query_pre_attn_scalar', 'hidden_activation', 'tie_word_embeddings', 'attention_bias'], half=torch.bfloat16)
    yield 'qwen2-yarn', T.Qwen2ForCausalLM, T.Qwen2Config(**dec, hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, rope_parameters=dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=16, rope_theta=1000.0)), dict(pac=2, lora=['q_proj', 'v_proj'])
    yield 'llama-yarn', T.LlamaForCausalLM, T.LlamaConfig(**dec, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, rope_parameters=dict(rope_type='yarn', factor=8.0, original_max_position_embeddings=8, rope_theta=500.0, beta_fast=4.0, beta_slow=0.5, mscale=0.8, mscale_all_dim=2.5, truncate=False)), dict(lora=['k_proj'])
    yield 'qwen2-sum-second', T.Qwen2ForCausalLM, T.Qwen2Config(**dec, hidden_size=32, intermediate_size=40, num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=1), dict(pac=2, taps=[0, 1, 3, 5], fusion='sum')
    # Keys that say a thing twice, or under the name that all families share; a head that bounds its logits; sizes that k does not divide.
    yield 'gemma3-capped', T.Gemma3ForCausalLM, T.Gemma3TextConfig(**g3 | dict(intermediate_size=42, head_dim=18), sliding_window=5, sliding_window_pattern=2, query_pre_attn_scalar=12, final_logit_softcapping=3.0, attention_bias=True), dict(pac=4, lora=['q_proj', 'down_proj'], edit=lambda js: js | dict(rope_scaling=dict(rope_type='linear', factor=4.0)))
    yield 'llama-base-dynamic', T.LlamaModel, T.LlamaConfig(**dec, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, rope_parameters=dict(rope_type='default', rope_theta=300.0)), dict(edit=lambda js: js | dict(rope_scaling=dict(type='dynamic', factor=2.0), rope_theta=700.0))
    yield 'mistral-outer-length', T.MistralForCausalLM, T.MistralConfig(**dec, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, sliding_window=6, rope_parameters=dict(rope_type='llama3', rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)), dict(edit=lambda js: js | dict(original_max_position_embeddings=12, layer_types=['full_attention', 'sliding_attention']))
    yield 't5-other-names', T.T5ForConditionalGeneration, T.T5Config(vocab_size=V, d_model=32, d_kv=6, d_ff=40, num_layers=2, num_decoder_layers=1, num_heads=3, feed_forward_proj='gated-silu', decoder_start_token_id=0), dict(edit=lambda js: {dict(d_model='hidden_size', num_heads='num_attention_heads', d_kv='head_dim', num_layers='num_hidden_layers').get(key, key): value for key, value in js.items() if key != 'feed_forward_proj'})

def rms(x): return (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

def stack(m):
    "layers, what norms the last hidden state, the head"
    if isinstance(m, T.GPT2LMHeadModel): return m.transformer.h, m.transformer.ln_f, m.lm_head
    if isinstance(m, T.BertForMaskedLM): return m.bert.encoder.layer, nn.Identity(), m.cls
    cap = getattr(m.config, 'final_logit_softcapping', None)
    return m.model.layers, m.model.norm, (lambda x: cap * torch.tanh(m.lm_head(x) / cap)) if cap else m.lm_head

def side_layers(m, K):
    cfg, side = m.config, copy.deepcopy(m.config)
    side._attn_implementation = 'eager'
    if cfg.model_type == 'gpt2':
        from transformers.models.gpt2 import modeling_gpt2 as M
        side.n_embd //= K; side.n_inner = (cfg.n_inner or 4 * cfg.n_embd) // K
        return side, [M.GPT2Block(side, i) for i in range(cfg.n_layer)], nn.LayerNorm(side.n_embd, eps=cfg.layer_norm_epsilon)
    if cfg.model_type == 'bert':
        from transformers.models.bert import modeling_bert as M
        side.hidden_size //= K; side.intermediate_size //= K
        return side, [M.BertLayer(side, i) for i in range(cfg.num_hidden_layers)], nn.LayerNorm(side.hidden_size, eps=cfg.layer_norm_eps)
    if cfg.model_type == 'gemma3_text':
        from transformers.models.gemma3 import modeling_gemma3 as M
        side.hidden_size //= K; side.intermediate_size //= K; side.head_dim //= K
        return side, [M.Gemma3DecoderLayer(side, i) for i in range(cfg.num_hidden_layers)], M.Gemma3RMSNorm(side.hidden_size, eps=cfg.rms_norm_eps)
    from transformers.models.qwen2 import modeling_qwen2 as M
    side.hidden_size //= K; side.intermediate_size //= K; side.head_dim = cfg.hidden_size // cfg.num_attention_heads // K
    return side, [M.Qwen2DecoderLayer(side, i) for i in range(cfg.num_hidden_layers)], M.Qwen2RMSNorm(side.hidden_size, eps=cfg.rms_norm_eps)

def batch(cfg):
    B, S = 4, 19
    ids = torch.randint(3, V, (B, S)); n = torch.tensor([19, 15, 19, 11]); att = torch.arange(S)[None] < n[:, None]; ids[~att] = 0
    labels = ids.clone(); labels[~att] = -100; labels[:, :4] = -100
    return ids, att, labels

def loss_of(logits, labels, shift):
    if shift: logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100)

def pac(m, d, K, thinned=None, fusion='gate'):
    cfg, TEMP = m.config, 0.1
    for p in m.parameters(): p.requires_grad_(False)
    causal = cfg.model_type != 'bert'
    layers, final, head = stack(m)
    L, D = len(layers), cfg.hidden_size
    T = thinned or list(range(L + 1)); N = len(T) - 1
    side_cfg, blocks, norm = side_layers(m, K); blocks = [blocks[t - 1] for t in T[1:]]; R = D // K
    class Side(nn.Module):
        def __init__(s):
            super().__init__()
            s.down = nn.ModuleList(nn.Linear(D, R) for _ in T)
            if fusion == 'gate': s.gate = nn.Parameter(torch.zeros(N))
            s.layers = nn.ModuleList(blocks); s.norm = norm; s.up = nn.Linear(R, D)
            nn.init.zeros_(s.up.weight); nn.init.zeros_(s.up.bias)
        def forward(s, b, args):
            a = s.down[0](b[0] / rms(b[0]))
            for i in range(1, N + 1):
                p = s.down[i](b[T[i]] / rms(b[T[i]]))
                if fusion == 'gate': mu = torch.sigmoid(s.gate[i - 1] / TEMP)
                h = s.layers[i - 1](mu * a + (1 - mu) * p if fusion == 'gate' else a + p, **args(T[i] - 1))
                a = h[0] if isinstance(h, tuple) else h
            return s.up(s.norm(a))
    side = Side().eval()
    with torch.no_grad():
        for n, p in side.named_parameters():
            if p.ndim == 1 and 'gate' not in n and 'up' not in n: p.add_(0.1 * torch.randn_like(p))
    ids, att, labels = batch(cfg); B, S = ids.shape
    lowest = torch.finfo(torch.float32).min
    def mask(window):
        i, j = torch.arange(S)[:, None], torch.arange(S)[None]
        seen = torch.ones(S, S, dtype=torch.bool)
        if causal: seen = j <= i
        if window: seen = seen & (j > i - window)
        return torch.where(seen[None, None] & att[:, None, None, :], 0.0, lowest)
    def args(i):
        if cfg.model_type == 'gpt2': return dict(attention_mask=mask(0))
        if cfg.model_type == 'bert': return dict(attention_mask=mask(0))
        kinds = getattr(cfg, 'layer_types', None); kind = kinds[i] if kinds else 'full_attention'
        x = torch.zeros(B, S, R); pos = torch.arange(S)[None].expand(B, S)
        if cfg.model_type == 'gemma3_text':
            from transformers.models.gemma3 import modeling_gemma3 as M
            pe = M.Gemma3RotaryEmbedding(side_cfg)(x, pos, kind)
        else:
            from transformers.models.qwen2 import modeling_qwen2 as M
            pe = M.Qwen2RotaryEmbedding(side_cfg)(x, pos)
        return dict(attention_mask=mask(cfg.sliding_window if kind == 'sliding_attention' else 0), position_embeddings=pe)
    taps = []
    hooks = [layers[0].register_forward_pre_hook(lambda mo, a, k: taps.append((a[0] if a else k['hidden_states']).detach()), with_kwargs=True)]
    hooks += [l.register_forward_hook(lambda mo, a, o: taps.append((o[0] if isinstance(o, tuple) else o).detach())) for l in layers]
    with torch.no_grad(): base = m(input_ids=ids, attention_mask=att.long()).logits
    for h in hooks: h.remove()
    assert len(taps) == L + 1
    def forward(): return head(final(taps[L] + rms(taps[L]) * side(taps, args)))
    opt = torch.optim.AdamW(side.parameters(), lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    g = {'input_ids': ids, 'attention_mask': att.long(), 'labels': labels, 'base_logits': base}
    for k, v in side.state_dict().items(): g['init.side.' + k] = v.clone()
    losses = []
    for step in range(12):
        lg = forward(); l = loss_of(lg, labels, causal)
        if step == 0: assert torch.allclose(lg[att], base[att], atol=1e-4), (lg[att] - base[att]).abs().max()
        opt.zero_grad(); l.backward()
        if step == 1:
            for k, p in side.named_parameters(): g['grad1.side.' + k] = p.grad.clone()
        opt.step(); losses.append(l.item())
    for k, v in side.state_dict().items(): g['final.side.' + k] = v.clone()
    g['losses'] = torch.tensor(losses, dtype=torch.float64)
    save_file({k: v.contiguous() for k, v in g.items()}, os.path.join(d, 'pac.safetensors'))
    json.dump(dict(method='parallel_adapter', version=1, reduction=K, taps=T, **(dict(gate_temperature=TEMP) if fusion == 'gate' else dict(fusion=fusion)), lr=3e-3, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01, steps=12, batch=B), open(os.path.join(d, 'pac.json'), 'w'), indent=1)
    print('  pac', [round(x, 3) for x in losses])

def lora(m, d, targets):
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict
    cfg = m.config; enc = cfg.is_encoder_decoder
    layers = None if enc else list(range(max(cfg.num_hidden_layers - 2, 0), cfg.num_hidden_layers))
    if not enc and cfg.num_hidden_layers < 3: layers = [cfg.num_hidden_layers - 1]
    lc = LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, bias='none', target_modules=targets, layers_to_transform=layers, fan_in_fan_out=cfg.model_type == 'gpt2')
    p = get_peft_model(m, lc); p.eval()
    with torch.no_grad():
        for n, q in p.named_parameters():
            if 'lora_B' in n: q.add_(0.02 * torch.randn_like(q))
    ids, att, labels = batch(cfg)
    g = {'input_ids': ids, 'attention_mask': att.long()}; kw = dict(input_ids=ids, attention_mask=att.long())
    if enc:
        dids = torch.randint(3, V, (4, 9)); dids[:, 0] = 0
        labels = torch.cat([dids[:, 1:], torch.full((4, 1), -100)], 1); labels[:, :2] = -100
        g['decoder_input_ids'] = dids; kw['decoder_input_ids'] = dids
    g['labels'] = labels
    for k, v in get_peft_model_state_dict(p).items(): g['init.' + k] = v.detach().clone()
    ps = [q for q in p.parameters() if q.requires_grad]
    opt = torch.optim.AdamW(ps, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01); losses = []
    for step in range(12):
        l = loss_of(p(**kw).logits, labels, not enc and cfg.model_type != 'bert')
        opt.zero_grad(); l.backward(); opt.step(); losses.append(l.item())
    for k, v in get_peft_model_state_dict(p).items(): g['final.' + k] = v.detach().clone()
    with torch.no_grad(): g['final_logits'] = p(**kw).logits
    g['losses'] = torch.tensor(losses, dtype=torch.float64)
    save_file({k: v.contiguous() for k, v in g.items()}, os.path.join(d, 'lora.safetensors'))
    js = dict(method='lora', r=3, lora_alpha=6, target_modules=sorted(targets), lr=2e-3, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01, steps=12, batch=4)
    if layers: js['layers'] = layers
    json.dump(js, open(os.path.join(d, 'lora.json'), 'w'), indent=1)
    print('  lora', [round(x, 3) for x in losses])

for k, (name, cls, cfg, opt) in enumerate(cases()):
    if wanted and name not in wanted: continue
    torch.manual_seed(7000 + 13 * k)
    cfg._attn_implementation = 'eager'
    m = cls(cfg).eval().float()
    if opt.get('untie'): m.lm_head.weight = nn.Parameter(torch.randn(V, cfg.d_model) * 0.1); m.config.tie_word_embeddings = False
    with torch.no_grad():
        for n, p in m.named_parameters():
            if p.ndim == 1: p.add_(0.1 * torch.randn_like(p))
            else: p.mul_(1.5)
        for n, b in m.named_buffers():
            if 'final_logits_bias' in n: b.add_(torch.randn_like(b))
        if opt.get('half'):
            for p in list(m.parameters()) + [b for n, b in m.named_buffers() if 'final_logits' in n]: p.copy_(p.to(opt['half']).float())
    d = os.path.join(out, name); os.makedirs(d, exist_ok=True)
    m.save_pretrained(d)
    if opt.get('half') or opt.get('strip'):
        from safetensors.torch import load_file
        w = load_file(os.path.join(d, 'model.safetensors'))
        w = {k2.removeprefix(opt.get('strip', '?')): v.to(opt['half']) if opt.get('half') else v for k2, v in w.items()}
        save_file(w, os.path.join(d, 'model.safetensors'), metadata={'format': 'pt'})
    cj = os.path.join(d, 'config.json'); js = json.load(open(cj))
    for key in opt.get('drop', []): js.pop(key, None)
    if opt.get('old'):
        js['torch_dtype'] = js.pop('dtype')
        if opt['old'] == 'gemma3':
            rp = js.pop('rope_parameters'); js['rope_theta'] = rp['full_attention'].pop('rope_theta'); js['rope_local_base_freq'] = rp['sliding_attention']['rope_theta']
            js['rope_scaling'] = rp['full_attention']; js.pop('layer_types'); js.pop('_sliding_window_pattern', None); js['sliding_window_pattern'] = 2
        if opt['old'] == 'llama': rp = js.pop('rope_parameters'); js['rope_theta'] = rp['rope_theta']; js['rope_scaling'] = None
        if opt['old'] == 't5': js.pop('scale_decoder_outputs', None); js['tie_word_embeddings'] = False; js.pop('dense_act_fn', None); js.pop('is_gated_act', None)
    if opt.get('edit'): js = opt['edit'](js)
    json.dump(js, open(cj, 'w'), indent=2)
    m2 = cls.from_pretrained(d, attn_implementation='eager').eval().float()
    m = m2
    B, S = 2, 17
    ids = torch.randint(3, V, (B, S)); mask = torch.ones(B, S, dtype=torch.long); mask[1, S - 5:] = 0; ids[1, S - 5:] = 0
    g = dict(input_ids=ids, attention_mask=mask)
    with torch.no_grad():
        if cfg.is_encoder_decoder:
            dids = torch.randint(3, V, (B, 9)); dids[:, 0] = 0
            o = m(input_ids=ids, attention_mask=mask, decoder_input_ids=dids, output_hidden_states=True)
            g['decoder_input_ids'] = dids; g['logits'] = o.logits
            for i, h in enumerate(o.encoder_hidden_states): g[f'encoder_hidden.{i}'] = h
            for i, h in enumerate(o.decoder_hidden_states): g[f'decoder_hidden.{i}'] = h
        else:
            kw = dict(token_type_ids=(torch.arange(S) > S // 2).long().expand(B, S).contiguous()) if 'bert' in name else {}
            g.update(kw)
            o = m(input_ids=ids, attention_mask=mask, output_hidden_states=True, **kw)
            for i, h in enumerate(o.hidden_states): g[f'hidden.{i}'] = h
            if hasattr(o, 'logits'): g['logits'] = o.logits
    save_file({k2: v2.clone().contiguous() for k2, v2 in g.items()}, os.path.join(d, 'golden.safetensors'))
    print(name, sum(p.numel() for p in m.parameters()))
    if opt.get('pac'): pac(m, d, opt['pac'], opt.get('taps'), opt.get('fusion', 'gate'))
    m = cls.from_pretrained(d, attn_implementation='eager').eval().float()
    if opt.get('lora'): lora(m, d, opt['lora'])
