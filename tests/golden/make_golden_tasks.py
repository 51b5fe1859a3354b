"""Reference training runs of encoders with a trained head and of encoder-decoder models, float32, CPU: parallel adapters,
LoRA (by `peft`), bottleneck adapters, all weights. Twelve steps on one batch each.

usage: make_golden_tasks.py OUT_DIR [CASE …]      (needs torch, transformers, peft, safetensors)
Every case is a Hugging Face model folder with, for each method M of pac, lora, adapters, full: M.json (the settings) and
M.safetensors: the batch, `init.*` (what is trained, before; absent where it is the model's own), `grad1.*` (gradients of
the second step), `final.*`, `losses`. A classifier's labels are one a sequence; of an encoder-decoder model they are
those of the decoder's positions. BERT's head, its pooler and classifier, is trained beside the adapters; `peft` trains
the classifier alone unless it is told more.
Parallel adapters of an encoder-decoder model are two chains: `side.encoder.*` on the encoder's taps, whose normed end
`side.decoder.*` attends to; the first layer of each T5 chain has a relative position bias of its own, or (t5-shared-bias)
the chains use the model's.
"""
import sys, os, copy, json, torch, torch.nn as nn, torch.nn.functional as F
from safetensors.torch import save_file
import transformers as T
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.bart.modeling_bart import BartEncoderLayer, BartDecoderLayer
from transformers.models.t5.modeling_t5 import T5Block, T5LayerNorm
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict

out, wanted = sys.argv[1], sys.argv[2:]
V, K, STEPS, TEMPERATURE = 48, 4, 12, 0.1
LOWEST = torch.finfo(torch.float32).min
bert = dict(vocab_size=V, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, max_position_embeddings=24, hidden_dropout_prob=0., attention_probs_dropout_prob=0., classifier_dropout=0.)
CASES = {
    'bert-classify': (T.BertForSequenceClassification, T.BertConfig(**bert, num_labels=3), dict(targets=['query', 'value', 'output.dense'], save=None)),
    'bert-regress': (T.BertForSequenceClassification, T.BertConfig(**bert, num_labels=1, problem_type='regression'), dict(targets=['key', 'intermediate.dense'], save=['pooler', 'classifier'])),
    't5-seq2seq': (T.T5ForConditionalGeneration, T.T5Config(vocab_size=V, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_decoder_layers=1, num_heads=2, relative_attention_num_buckets=8, relative_attention_max_distance=16, feed_forward_proj='gated-gelu', dropout_rate=0., decoder_start_token_id=0), dict(targets=['q', 'k', 'v', 'o', 'wi_0', 'wi_1', 'wo'])),
    'bart-seq2seq': (T.BartForConditionalGeneration, T.BartConfig(vocab_size=V, max_position_embeddings=24, d_model=24, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=32, dropout=0., attention_dropout=0., activation_dropout=0., forced_eos_token_id=None), dict(targets=['q_proj', 'v_proj', 'out_proj', 'fc1', 'fc2'])),
    't5-shared-bias': (T.T5ForConditionalGeneration, T.T5Config(vocab_size=V, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=3, relative_attention_num_buckets=8, relative_attention_max_distance=16, feed_forward_proj='relu', dropout_rate=0., decoder_start_token_id=0), dict(pac_only=True, share=True)),
}

def rms(x): return (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

def batch(cfg):
    "inputs of the model, and labels (-100 = no loss)"
    B, S = 4, 13
    ids = torch.randint(3, V, (B, S)); n = torch.tensor([13, 9, 12, 6]); att = (torch.arange(S)[None] < n[:, None]).long(); ids[att == 0] = 0
    x = dict(input_ids=ids, attention_mask=att)
    if cfg.is_encoder_decoder:
        dids = torch.randint(3, V, (B, 7)); dids[:, 0] = 0; m = torch.tensor([7, 3, 5, 7]); datt = (torch.arange(7)[None] < m[:, None]).long()
        labels = torch.where(datt == 1, torch.randint(3, V, (B, 7)), -100); dids[datt == 0] = 0
        return dict(**x, decoder_input_ids=dids, decoder_attention_mask=datt), labels
    x['token_type_ids'] = (torch.arange(S) > 5).long().expand(B, S).contiguous()
    return x, torch.randn(B) if cfg.num_labels == 1 else torch.randint(0, cfg.num_labels, (B,))

def loss_of(logits, labels):
    if labels.dtype == torch.float32: return F.mse_loss(logits.squeeze(-1), labels)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100)

def train(part, folder, x, labels, named, logits, settings, lr, with_init=True):
    "twelve steps on `named` parameters, and the files"
    g = dict(x, labels=labels)
    if with_init: g |= {f'init.{n}': p.detach().clone() for n, p in named.items()}
    opt = torch.optim.AdamW(list(named.values()), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01); losses = []
    for step in range(STEPS):
        l = loss_of(logits(), labels); opt.zero_grad(); l.backward()
        if step == 1: g |= {f'grad1.{n}': p.grad.clone() for n, p in named.items()}
        opt.step(); losses.append(l.item())
    g |= {f'final.{n}': p.detach().clone() for n, p in named.items()}
    with torch.no_grad(): g['final_logits'] = logits()
    g['losses'] = torch.tensor(losses, dtype=torch.float64)
    save_file({k: v.contiguous() for k, v in g.items()}, os.path.join(folder, f'{part}.safetensors'))
    settings |= dict(lr=lr, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01, steps=STEPS, batch=4)
    json.dump(settings, open(os.path.join(folder, f'{part}.json'), 'w'), indent=1)
    print(' ', part, [round(v, 3) for v in losses])

def head(m):
    "names and parameters of what is trained of the model itself, beside adapters"
    return {n: p for n, p in m.named_parameters() if n.startswith(('bert.pooler.', 'classifier.'))}

class Chain(nn.Module):
    "a side network on the taps of one stack"
    def __init__(s, layers, norm, width, side_width, up):
        super().__init__()
        s.down = nn.ModuleList(nn.Linear(width, side_width) for _ in range(len(layers) + 1)); s.gate = nn.Parameter(torch.zeros(len(layers)))
        s.layers = nn.ModuleList(layers); s.norm = norm
        if up: s.up = nn.Linear(side_width, width); nn.init.zeros_(s.up.weight); nn.init.zeros_(s.up.bias)
    def forward(s, taps, apply):
        a = s.down[0](taps[0] / rms(taps[0]))
        for i, layer in enumerate(s.layers):
            mu = torch.sigmoid(s.gate[i] / TEMPERATURE)
            h = apply(layer, mu * a + (1 - mu) * s.down[i + 1](taps[i + 1] / rms(taps[i + 1])))
            a = h[0] if isinstance(h, tuple) else h
        return s.norm(a)

def bias(mask, causal=False):
    "what is added to scores, from a mask of keys"
    n = mask.shape[1]; seen = mask[:, None, None, :].bool()
    if causal: seen = seen & (torch.arange(n)[None] <= torch.arange(n)[:, None])[None, None]
    return torch.where(seen, 0.0, LOWEST)

def side_of(m, share):
    "the chains, and a function from taps and inputs to what Up gives"
    cfg, side = m.config, copy.deepcopy(m.config); side._attn_implementation = 'eager'
    if cfg.model_type == 'bert':
        side.hidden_size //= K; side.intermediate_size //= K; D, R = cfg.hidden_size, side.hidden_size
        chain = Chain([BertLayer(side, i) for i in range(cfg.num_hidden_layers)], nn.LayerNorm(R, eps=cfg.layer_norm_eps), D, R, True)
        return nn.ModuleDict(dict(side=chain)), lambda taps, x: chain.up(chain(taps[0], lambda layer, s: layer(s, attention_mask=bias(x['attention_mask']))))
    side.d_model //= K; D, R = cfg.d_model, side.d_model
    if cfg.model_type == 't5':
        side.d_kv //= K; side.d_ff //= K; dec = copy.deepcopy(side); dec.is_decoder = True
        enc = Chain([T5Block(side, i == 0 and not share, i) for i in range(cfg.num_layers)], T5LayerNorm(R, cfg.layer_norm_epsilon), D, R, False)
        dec = Chain([T5Block(dec, i == 0 and not share, i) for i in range(cfg.num_decoder_layers)], T5LayerNorm(R, cfg.layer_norm_epsilon), D, R, True)
        def up(taps, x):
            tables = [stack[0].layer[0].SelfAttention for stack in (stacks(m) if share else (enc.layers, dec.layers))]
            distances = [table.compute_bias(n, n) for table, n in zip(tables, [x['input_ids'].shape[1], x['decoder_input_ids'].shape[1]])]
            seen = bias(x['attention_mask'])
            memory = enc(taps[0], lambda layer, s: layer(s, attention_mask=seen, position_bias=distances[0]))
            return dec.up(dec(taps[1], lambda layer, s: layer(s, attention_mask=bias(x['decoder_attention_mask'], True), position_bias=distances[1], encoder_hidden_states=memory, encoder_attention_mask=seen)))
    else:
        side.encoder_ffn_dim //= K; side.decoder_ffn_dim //= K
        enc = Chain([BartEncoderLayer(side, i) for i in range(cfg.encoder_layers)], nn.LayerNorm(R), D, R, False)
        dec = Chain([BartDecoderLayer(side, i) for i in range(cfg.decoder_layers)], nn.LayerNorm(R), D, R, True)
        def up(taps, x):
            seen = bias(x['attention_mask'])
            memory = enc(taps[0], lambda layer, s: layer(s, attention_mask=seen))
            return dec.up(dec(taps[1], lambda layer, s: layer(s, attention_mask=bias(x['decoder_attention_mask'], True), encoder_hidden_states=memory, encoder_attention_mask=seen)))
    return nn.ModuleDict(dict(side=nn.ModuleDict(dict(encoder=enc, decoder=dec)))), up

def stacks(m):
    "layers of each stack, the encoder's first"
    if m.config.model_type == 'bert': return [m.bert.encoder.layer]
    if m.config.model_type == 't5': return [m.encoder.block, m.decoder.block]
    return [m.model.encoder.layers, m.model.decoder.layers]

def logits_of(m, hidden):
    "logits of what comes out of the last layer"
    if m.config.model_type == 'bert': return m.classifier(m.bert.pooler(hidden))
    if m.config.model_type == 't5': return m.lm_head(m.decoder.final_layer_norm(hidden) * (m.config.d_model ** -0.5 if m.config.scale_decoder_outputs else 1.0))
    return m.lm_head(hidden) + m.final_logits_bias

def pac(m, folder, share=False):
    for p in m.parameters(): p.requires_grad_(False)
    trained_head = head(m)
    for p in trained_head.values(): p.requires_grad_(True)
    side, up = side_of(m, share); side.eval()
    with torch.no_grad():
        for n, p in side.named_parameters():
            if p.ndim == 1 and 'gate' not in n and '.up.' not in n: p.add_(0.1 * torch.randn_like(p))
    x, labels = batch(m.config); taps = [[] for _ in stacks(m)]; hooks = []
    for layers, list_ in zip(stacks(m), taps):
        hooks.append(layers[0].register_forward_pre_hook(lambda mo, a, k, to=list_: to.append((a[0] if a else k['hidden_states']).detach()), with_kwargs=True))
        hooks += [l.register_forward_hook(lambda mo, a, o, to=list_: to.append((o[0] if isinstance(o, tuple) else o).detach())) for l in layers]
    with torch.no_grad(): base = m(**x).logits
    for h in hooks: h.remove()
    last = taps[-1][-1]
    logits = lambda: logits_of(m, last + rms(last) * up(taps, x))
    seen = x['decoder_attention_mask'] == 1 if 'decoder_attention_mask' in x else slice(None)
    assert torch.allclose(logits()[seen], base[seen], atol=1e-4), 'it starts at the base model'
    settings = dict(method='parallel_adapter', version=1, reduction=K, gate_temperature=TEMPERATURE)
    if not m.config.is_encoder_decoder: settings['taps'] = list(range(m.config.num_hidden_layers + 1))
    train('pac', folder, x, labels, dict(side.named_parameters()) | trained_head, logits, settings, 3e-3)

def lora(m, folder, options):
    kind = 'SEQ_2_SEQ_LM' if m.config.is_encoder_decoder else 'SEQ_CLS'
    p = get_peft_model(m, LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, bias='none', target_modules=options['targets'], task_type=kind, modules_to_save=options.get('save'))).eval()
    with torch.no_grad():
        for n, q in p.named_parameters():
            if 'lora_B' in n: q.add_(0.02 * torch.randn_like(q))
    x, labels = batch(m.config)
    trained = {n.replace('.default', '').replace('.modules_to_save', ''): q for n, q in p.named_parameters() if q.requires_grad}
    assert set(trained) == set(get_peft_model_state_dict(p)), 'the names of its files'
    settings = dict(method='lora', r=3, lora_alpha=6, target_modules=sorted(options['targets']), task_type=kind, modules_to_save=options.get('save'))
    train('lora', folder, x, labels, trained, lambda: p(**x).logits, settings, 2e-3)

def adapters(m, folder):
    for p in m.parameters(): p.requires_grad_(False)
    trained = head(m)
    for p in trained.values(): p.requires_grad_(True)
    places = {'bert': ('attention.output.dense', 'output.dense'), 't5': ('layer.0.SelfAttention.o', None), 'bart': ('self_attn.out_proj', 'fc2')}[m.config.model_type]
    D, R = m.get_input_embeddings().weight.shape[1], m.get_input_embeddings().weight.shape[1] // K
    stack_names = ['encoder.', 'decoder.'] if m.config.is_encoder_decoder else ['']
    for layers, stack in zip(stacks(m), stack_names):
        for i, layer in enumerate(layers):
            feed_forward = places[1] or f'layer.{len(layer.layer) - 1}.DenseReluDense.wo'
            for place, name in [(places[0], 'attention'), (feed_forward, 'feed_forward')]:
                down, up = nn.Linear(D, R), nn.Linear(R, D)
                nn.init.normal_(up.weight, std=0.02); nn.init.normal_(up.bias, std=0.02)
                layer.get_submodule(place).register_forward_hook(lambda mo, a, y, down=down, up=up: y + up(F.relu(down(y))))
                trained |= {f'{stack}layers.{i}.{name}.{part}.{n}': p for part, mo in [('down', down), ('up', up)] for n, p in mo.named_parameters()}
    x, labels = batch(m.config)
    train('adapters', folder, x, labels, trained, lambda: m(**x).logits, dict(method='adapters', version=1, reduction=K), 2e-3)

def full(m, folder):
    x, labels = batch(m.config)
    train('full', folder, x, labels, dict(m.named_parameters()), lambda: m(**x).logits, dict(method='full'), 1e-3, with_init=False)

for k, (name, (cls, cfg, options)) in enumerate(CASES.items()):
    if wanted and name not in wanted: continue
    torch.manual_seed(9000 + 13 * k)
    cfg._attn_implementation = 'eager'
    m = cls(cfg).eval().float()
    with torch.no_grad():
        for p in m.parameters():
            if p.ndim == 1: p.add_(0.1 * torch.randn_like(p))
            else: p.mul_(1.5)
        for n, b in m.named_buffers():
            if 'final_logits_bias' in n: b.add_(torch.randn_like(b))
    folder = os.path.join(out, name); os.makedirs(folder, exist_ok=True); m.save_pretrained(folder)
    print(name, sum(p.numel() for p in m.parameters()))
    again = lambda: cls.from_pretrained(folder, attn_implementation='eager').eval().float()
    pac(again(), folder, options.get('share', False))
    if options.get('pac_only'): continue
    lora(again(), folder, options); adapters(again(), folder); full(again(), folder)
