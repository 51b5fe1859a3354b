"""Greedy answers of encoder-decoder models by `transformers`' `generate`, float32, CPU.

usage: make_golden_generate.py OUT_DIR [CASE …]      (needs torch, transformers)
Each case is a model folder and its generate.json. Models of random weights repeat one token: these are trained for a
moment to turn letters round, so that their answers differ and most end by themselves. Of each source there are the tokens
behind the decoder's start token, without the end token; `ended` says whether that came. One run allows fewer tokens than
answers have; BART also runs with a forced first and last token.
"""
import sys, os, json, torch, transformers as T

out, wanted = sys.argv[1], sys.argv[2:]
V, START = 40, 0
t5 = dict(vocab_size=V, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, relative_attention_num_buckets=8, relative_attention_max_distance=16, dropout_rate=0., decoder_start_token_id=START)
CASES = {
    't5': (T.T5ForConditionalGeneration, T.T5Config(**t5, feed_forward_proj='relu')),
    't5-v1.1': (T.T5ForConditionalGeneration, T.T5Config(**{**t5, 'num_heads': 3, 'num_decoder_layers': 3}, feed_forward_proj='gated-gelu', tie_word_embeddings=False)),
    'bart': (T.BartForConditionalGeneration, T.BartConfig(vocab_size=V, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=40, max_position_embeddings=32, dropout=0., attention_dropout=0., activation_dropout=0., init_std=0.15, decoder_start_token_id=2, forced_eos_token_id=None)),
}

def letters(n): return torch.randint(4, V, (n,)).tolist()

def train(m, steps):
    "sources of letters, targets the same turned round, with the end token"
    c, opt = m.config, torch.optim.AdamW(m.parameters(), lr=4e-3)
    for step in range(steps):
        n = int(torch.randint(1, 9, (1,))); rows = [letters(n) for _ in range(48)]
        loss = m(input_ids=torch.tensor(rows), labels=torch.tensor([row[::-1] + [c.eos_token_id] for row in rows])).loss
        opt.zero_grad(); loss.backward(); opt.step()
    return loss.item()

def run(m, sources, max_new, **forced):
    c, rows = m.config, []
    for ids in sources:
        x = torch.tensor([ids])
        with torch.no_grad():
            y = m.generate(input_ids=x, attention_mask=torch.ones_like(x), do_sample=False, num_beams=1, use_cache=False, max_new_tokens=max_new, **forced)[0].tolist()
        assert y[0] == c.decoder_start_token_id
        y = y[1:]; ended = c.eos_token_id in y
        rows.append(dict(source=ids, tokens=y[:y.index(c.eos_token_id)] if ended else y, ended=ended))
    return dict(max_new_tokens=max_new, forced_bos=forced.get('forced_bos_token_id'), forced_eos=forced.get('forced_eos_token_id'), rows=rows)

for name, (cls, config) in CASES.items():
    if wanted and name not in wanted: continue
    torch.manual_seed(5)
    m = cls(config); loss = train(m.train(), 250 if name == 't5-v1.1' else 500); m.eval(); d = os.path.join(out, name)
    m.save_pretrained(d); os.remove(os.path.join(d, 'generation_config.json'))
    sources = [letters(n) for n in [1, 2, 3, 5, 7, 8, 11, 16]]
    runs = [run(m, sources, 14), run(m, sources, 4)]
    if name == 'bart': runs.append(run(m, sources, 6, forced_bos_token_id=9, forced_eos_token_id=config.eos_token_id))
    json.dump(dict(runs=runs), open(os.path.join(d, 'generate.json'), 'w'))
    print(name, loss)
    for r in runs: print('  ', [(len(x['tokens']), x['ended'], x['tokens'][:6]) for x in r['rows']])
