# TinyNews' 3M model (https://github.com/gregsamek/TinyNews, results/trained_models/3M/config.json): like GPT-2, 4
# layers × 128.
#     python prepare.py config/prepare_news.py --source=hf:GregSamek/TinyNews
#     python train.py config/train_tinynews_3m.py
#     python train.py results/trained_models/11M/config.json --out_dir=out/tinynews_11m  # TinyNews' own file
# From its config.json and train.py: all sizes, AdamW, a cosine decay to a tenth, gradients clipped at 1, batches of 8
# bulletins of up to 128 tokens. Different here: a batch is 8 × 128 consecutive tokens.
# Its own file also sets vocab_size: the data must have so many tokens, as with --tokenizer=tinynewstokenizer8192.model
# --trim=False.

_default = {
    'model': {'vocab_size': 0, 'context_length': 128, 'd_embedding': 128, 'd_intermediate': 512, 'n_heads': 4,
              'n_layers': 4, 'qkv_bias': False},
    'train': {'peak_lr': 0.001, 'warmup_ratio': 0.01, 'n_epochs': 2, 'batch_size': 8, 'weight_decay': 0.1},
}
_json = globals().get('_json', _default)
_model, _train = _json['model'], _json['train']
_unknown = {*_model, *_train} - {*_default['model'], *_default['train']}
if _unknown:
    raise ValueError(f'no key here does what {sorted(_unknown)} does')

dataset = 'news'
out_dir = 'out/tinynews'

block_size = _model['context_length']
n_embd = _model['d_embedding']
n_inner = _model['d_intermediate']
n_head = _model['n_heads']
n_layer = _model['n_layers']
norm = 'layernorm'
position = 'learned'
mlp = 'gelu'
bias = True
qkv_bias = _model.get('qkv_bias', False)
vocab_size = _model.get('vocab_size', 0)
tie_weights = False

batch_size = _train['batch_size']
learning_rate = _train['peak_lr']
min_lr = 0.1 * learning_rate
max_epochs = float(_train['n_epochs'])
warmup_ratio = float(_train['warmup_ratio'])
weight_decay = _train['weight_decay']
beta2 = 0.999
eval_interval = 1000
eval_iters = 100
