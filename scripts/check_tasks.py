"""What `barycenter train` writes for an encoder or an encoder-decoder model means the same in `transformers` and `peft`.

usage: check_tasks.py PROGRAM MODEL ROWS HELD_OUT     ROWS: .tsv with the columns label and sentence, or .jsonl with input and target

Trains LoRA, all weights and, of an encoder-decoder model, LoRA in the decoder's last layer from a cache for two epochs, loads both results with the Python libraries, and compares the mean loss over the
held-out rows with the one that PROGRAM printed. Needs torch, transformers and peft from PyPI. Without them it says that
nothing was checked and ends with 0, or with 1 if BARYCENTER_REQUIRE_PEFT=1.
"""
import json, os, subprocess, sys, tempfile

try:
    import torch
    import torch.nn.functional as F
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
except ImportError as error:
    print(f'NOT CHECKED against peft: {error}; `pip install torch transformers peft` brings it')
    sys.exit(1 if os.environ.get('BARYCENTER_REQUIRE_PEFT') == '1' else 0)

# f32 in another order of summation, and what a program prints.
TOLERANCE = 1e-4
if len(sys.argv) != 5:
    sys.exit(__doc__)
program, model_folder, rows, held_out = sys.argv[1:]
classifies = rows.endswith('.tsv')
tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(model_folder, 'tokenizer.json'))


def train(method, options, out):
    report = os.path.join(out, 'report.json')
    os.makedirs(out)
    usual = [program, 'train', '--device', 'cpu', '--model', model_folder, '--data', rows, '--held-out', held_out]
    subprocess.run([*usual, '--method', method, '--epochs', '2', '--batch', '8', '--warmup-steps', '1', '--learning-rate', '3e-3', *options, '--out', out, '--json', report], check=True, stdout=subprocess.DEVNULL)
    losses = [epoch['held_out_loss'] for epoch in json.load(open(report))['epochs']]
    assert losses[1] < losses[0], f'{method} learns nothing: {losses}'
    return losses[-1]


def classifier_loss(model, labels):
    lines = [line.rstrip('\n').split('\t') for line in open(held_out)]
    label, sentence = lines[0].index('label'), lines[0].index('sentence')
    losses = []
    for line in lines[1:]:
        encoded = tokenizer(line[sentence], return_tensors='pt')
        logits = model(input_ids=encoded['input_ids'], attention_mask=encoded['attention_mask']).logits
        losses.append(F.cross_entropy(logits, torch.tensor([labels.index(line[label])])).item())
    return sum(losses) / len(losses)


def seq2seq_loss(model):
    total = count = 0
    for line in open(held_out):
        row, end = json.loads(line), model.config.eos_token_id
        source, target = (tokenizer(row[name], return_tensors='pt')['input_ids'] for name in ('input', 'target'))
        if target[0, -1] != end:
            target = torch.cat([target, torch.tensor([[end]])], 1)
        start = torch.tensor([[model.config.decoder_start_token_id]])
        logits = model(input_ids=source, decoder_input_ids=torch.cat([start, target[:, :-1]], 1)).logits
        total, count = total + F.cross_entropy(logits[0], target[0], reduction='sum').item(), count + target.numel()
    return total / count


with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    runs = [('lora', []), ('full', [])] + ([] if classifies else [('lora', ['--last-layers', '1', '--cache', 'f32'])])
    for run, (method, options) in enumerate(runs):
        out = os.path.join(folder, f'{run}')
        ours = train(method, options, out)
        named = ' '.join([method, *options])
        base = model_folder if method == 'lora' else out
        if classifies:
            labels = json.load(open(os.path.join(out, 'labels.json')))['labels'] if method == 'lora' else None
            options = dict(num_labels=len(labels), ignore_mismatched_sizes=True) if labels else {}
            model = AutoModelForSequenceClassification.from_pretrained(base, **options).eval()
            labels = labels or [model.config.id2label[index] for index in range(model.config.num_labels)]
        else:
            model = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
        if method == 'lora':
            model = PeftModel.from_pretrained(model, out).eval()
        theirs = classifier_loss(model, labels) if classifies else seq2seq_loss(model)
        error = abs(ours - theirs) / theirs
        print(f'{named}: held-out loss here {ours:.6f}, in Python {theirs:.6f}')
        assert error <= TOLERANCE, f'{named}: {error:.1e} is above {TOLERANCE:.0e}'
