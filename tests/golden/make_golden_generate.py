"""Reference answers of encoder-decoder models: `generate` of transformers, greedy, float32, CPU, a prompt at a time.

usage: make_golden_generate.py OUT_DIR [CASE …]      (needs torch, transformers, peft, safetensors)
Each case is a Hugging Face model folder: a tiny model trained for a minute to give its prompt's tokens backwards and an end
token, so that answers hang on the prompt and end by themselves. BART's generation_config.json forces its first token and
its last. generate.json: `runs`, each with `max_new_tokens`, `adapter` (whether adapter/, a LoRA of `peft` with random values,
is in the model), `prompts`, and `tokens`, what follows the decoder's start token, the end token included.
No answer hangs on rounding: where the two best logits are nearer than 1e-3 the prompt is left out.
The cases of `OTHERS` have other sizes, no generation_config.json and no adapter; they are trained on prompts of one length at
a time, and answer without a cache. In their runs `forced` are the first and the last token of an answer, null for none.
"""
import sys, os, json, torch, torch.nn as nn, transformers as T
from peft import LoraConfig, get_peft_model

out, wanted, V, MARGIN = sys.argv[1], sys.argv[2:], 40, 1e-3
t5 = dict(vocab_size=V, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=3, relative_attention_num_buckets=8, relative_attention_max_distance=16, dropout_rate=0., decoder_start_token_id=0)
CASES = {
    't5': (T.T5ForConditionalGeneration, T.T5Config(**t5, feed_forward_proj='relu'), dict(), ['q', 'v']),
    't5-v1.1': (T.T5ForConditionalGeneration, T.T5Config(**t5, feed_forward_proj='gated-gelu', tie_word_embeddings=False), dict(), ['q', 'wo']),
    'bart': (T.BartForConditionalGeneration, T.BartConfig(vocab_size=V, max_position_embeddings=32, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=40, dropout=0., attention_dropout=0., activation_dropout=0.), dict(forced_bos_token_id=0, forced_eos_token_id=2), ['q_proj', 'fc1']),
}
OTHERS = {
    't5-4-heads': (T.T5ForConditionalGeneration, T.T5Config(**{**t5, 'num_heads': 4}, feed_forward_proj='relu')),
    't5-v1.1-3-layers': (T.T5ForConditionalGeneration, T.T5Config(**{**t5, 'num_decoder_layers': 3}, feed_forward_proj='gated-gelu', tie_word_embeddings=False)),
    'bart-forced': (T.BartForConditionalGeneration, T.BartConfig(vocab_size=V, max_position_embeddings=32, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=40, dropout=0., attention_dropout=0., activation_dropout=0., init_std=0.15, decoder_start_token_id=2, forced_eos_token_id=None)),
}

def backwards(cfg, forced):
    "a batch: sources, and what the decoder should give"
    n = torch.randint(1, 8, (48,)); source = torch.full((48, 8), cfg.pad_token_id); labels = torch.full((48, 10), -100)
    for row, count in enumerate(n):
        tokens = torch.randint(3, V, (int(count),)); source[row, :count] = tokens
        answer = ([forced['forced_bos_token_id']] if forced else []) + tokens.flip(0).tolist() + [cfg.eos_token_id]
        labels[row, :len(answer)] = torch.tensor(answer)
    return dict(input_ids=source, attention_mask=(torch.arange(8)[None] < n[:, None]).long(), labels=labels)

def answer(model, prompt, new):
    "the tokens, or None where they hang on rounding"
    given = model.generate(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False, num_beams=1, max_new_tokens=new, return_dict_in_generate=True, output_logits=True)
    best = [logits[0].topk(2).values for logits in given.logits]
    if min(float(two[0] - two[1]) for two in best) < MARGIN: return None
    return given.sequences[0, 1:].tolist()

def run(model, prompts, new, adapter):
    pairs = [(prompt, tokens) for prompt in prompts if (tokens := answer(model, prompt, new)) is not None]
    return dict(max_new_tokens=new, adapter=adapter, prompts=[p for p, _ in pairs], tokens=[t for _, t in pairs])

for k, (name, (cls, cfg, forced, targets)) in enumerate(CASES.items()):
    if wanted and name not in wanted: continue
    torch.manual_seed(700 + k)
    folder = os.path.join(out, name); cfg._attn_implementation = 'eager'
    model = cls(cfg).float().train()
    steps = 500; opt = torch.optim.AdamW(model.parameters(), lr=5e-3); rate = torch.optim.lr_scheduler.OneCycleLR(opt, 5e-3, total_steps=steps)
    for step in range(steps):
        loss = model(**backwards(cfg, forced)).loss; opt.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(model.parameters(), 1.0); opt.step(); rate.step()
    for key, value in forced.items(): setattr(model.generation_config, key, value)
    model.eval().save_pretrained(folder)
    again = lambda: cls.from_pretrained(folder, attn_implementation='eager').eval().float()
    model = again()
    prompts = [torch.randint(3, V, (n,)).tolist() for n in (1, 2, 3, 5, 7, 4, 13, 6, 20, 7)]
    runs = [run(model, prompts, 12, False), run(model, prompts[2:6], 3, False), run(model, prompts[:1], 1, False)]
    tuned = get_peft_model(again(), LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=targets, task_type='SEQ_2_SEQ_LM')).eval()
    with torch.no_grad():
        for n, p in tuned.named_parameters():
            if 'lora_B' in n: p.add_(0.2 * torch.randn_like(p))
    tuned.save_pretrained(os.path.join(folder, 'adapter'))
    runs.append(run(tuned, prompts, 12, True))
    json.dump(dict(runs=runs), open(os.path.join(folder, 'generate.json'), 'w'))
    os.path.exists(readme := os.path.join(folder, 'adapter', 'README.md')) and os.remove(readme)
    print(name, f'loss {loss.item():.3f}', *[(len(r['prompts']), [len(t) for t in r['tokens']]) for r in runs], 'changed by the adapter:', sum(a != b for p, a in zip(runs[0]['prompts'], runs[0]['tokens']) for q, b in zip(runs[3]['prompts'], runs[3]['tokens']) if p == q))


def letters(n): return torch.randint(4, V, (n,)).tolist()

def of_one_length(m, steps):
    c, opt = m.config, torch.optim.AdamW(m.parameters(), lr=4e-3)
    for step in range(steps):
        n = int(torch.randint(1, 9, (1,))); rows = [letters(n) for _ in range(48)]
        loss = m(input_ids=torch.tensor(rows), labels=torch.tensor([row[::-1] + [c.eos_token_id] for row in rows])).loss
        opt.zero_grad(); loss.backward(); opt.step()
    return loss.item()

def uncached(m, prompts, new, forced=(None, None)):
    tokens = []
    for ids in prompts:
        x = torch.tensor([ids])
        y = m.generate(input_ids=x, attention_mask=torch.ones_like(x), do_sample=False, num_beams=1, use_cache=False, max_new_tokens=new, forced_bos_token_id=forced[0], forced_eos_token_id=forced[1])[0].tolist()
        assert y[0] == m.config.decoder_start_token_id
        tokens.append(y[1:])
    return dict(max_new_tokens=new, adapter=False, forced=forced, prompts=prompts, tokens=tokens)

for name, (cls, cfg) in OTHERS.items():
    if wanted and name not in wanted: continue
    torch.manual_seed(5); folder = os.path.join(out, name)
    model = cls(cfg); loss = of_one_length(model.train(), 250 if name == 't5-v1.1-3-layers' else 500)
    model.eval().save_pretrained(folder); os.remove(os.path.join(folder, 'generation_config.json'))
    prompts = [letters(n) for n in [1, 2, 3, 5, 7, 8, 11, 16]]
    runs = [uncached(model, prompts, 14), uncached(model, prompts, 4)]
    if name == 'bart-forced': runs.append(uncached(model, prompts, 6, (9, cfg.eos_token_id)))
    json.dump(dict(runs=runs), open(os.path.join(folder, 'generate.json'), 'w'))
    print(name, f'loss {loss:.3f}', *[[len(t) for t in r['tokens']] for r in runs])
