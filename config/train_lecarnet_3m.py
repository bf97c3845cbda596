# LeCarnet's 3M model (https://github.com/MaxLSB/LeCarnet, src/train/configs.py): a Llama of 8 layers × 64 on French
# stories.
#     python prepare.py --source=hf:MaxLSB/LeCarnet --val_source=hf:MaxLSB/LeCarnet:validation \
#         --dataset=lecarnet --tokenizer=lightonai/pagnol-small
#     python train.py config/train_lecarnet_3m.py
#     python sample.py --out_dir=out/lecarnet_3m --start="Il était une fois" --temperature=0.7 --top_k=50
# From its code: everything below. Different here: it pads each story to 512 tokens, initializes weights with a
# deviation of 0.042, uses an epsilon of 1e-6 in RMSNorm, and has 2,048 positions and trains 512 of them. It has 3
# million parameters with pagnol's 50,000 tokens; trimmed to the stories' tokens, fewer.

dataset = 'lecarnet'
out_dir = 'out/lecarnet_3m'

n_layer = 8
n_head = 16
n_embd = 64
n_inner = 256
block_size = 512

batch_size = 16
gradient_accumulation_steps = 2
learning_rate = 5e-4
min_lr = 0.0
cooldown = 1.0  # a linear decay from the end of the warm-up on
max_epochs = 10.0
warmup_iters = 5000
weight_decay = 0.01
beta2 = 0.999
eval_interval = 5000
