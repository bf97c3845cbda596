# A model that generates Hindi stories after four minutes of training on two CPU cores.

dataset = 'demo'
out_dir = 'out/demo'

n_layer = 3
n_head = 6
n_embd = 192
block_size = 512
qk_norm = True
tie_weights = False

optimizer = 'muon'
batch_size = 4
learning_rate = 5e-3
min_lr = 0.0
max_iters = 1350
warmup_iters = 40
eval_interval = 270
