# TinyStories Regional as published (https://arxiv.org/abs/2504.07989,
# https://github.com/nirvan840/Vizuara-TinyStories-Regional, training-inference/config.py): nanoGPT's model, 512 × 6,
# on Hindi stories. config/train_hindi.py has better settings for this size.
#     python prepare.py --source=hf:TinyStories-Regional/hindi-generated_4o-mini_2M --dataset=hindi \
#         --tokenizer=sarvamai/sarvam-1 --val_fraction=0.025
#     torchrun --nproc_per_node=4 train.py config/train_regional.py
#     python train.py config/train_regional.py --dataset=marathi --out_dir=out/regional_marathi --n_embd=64 \
#         --learning_rate=4e-3 --warmup_iters=200
#     python sample.py --out_dir=out/regional --start=FILE:data/hindi/prompts.txt --num_samples=3 \
#         --temperature=0.8 --top_k=15 --max_new_tokens=350
# The other languages are marathi and beng, the other tokenizers TWO/sutra-mlt256-v2 and tiktoken:gpt2. The paper's
# models have a width of 64, 512 or 1024, 2, 6 or 12 layers (1024 × 2 and × 7), and 8 heads. From that file:
# everything below, for its largest model, and in its comments for the others: learning rate 4e-3 with 200 warm-up
# steps up to 10 M parameters, 1.5e-3 with 300 around 50 M, 1e-3 with 400 from 70 M. A guess: that the 512 × 6 model
# used the middle ones.

dataset = 'hindi'
out_dir = 'out/regional'

n_layer = 6
n_head = 8
n_embd = 512
block_size = 1024
norm = 'layernorm'
position = 'learned'
mlp = 'gelu'

batch_size = 96
gradient_accumulation_steps = 40
learning_rate = 1.5e-3
min_lr = 6e-5
max_iters = 5001
warmup_iters = 300
lr_decay_iters = 10_002  # twice max_iters: the learning rate does not reach min_lr
weight_decay = 0.1
eval_interval = 200
eval_iters = 50
always_save_checkpoint = False
