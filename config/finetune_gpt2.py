# Fine-tune GPT-2 on stories with LoRA, as Tiny Story Generator does (GPT-2 small to XL with peft; a CSV file with a
# column `text`, each story between <|startoftext|> and <|endoftext|>). The models and the sampling settings are from
# its README, the training settings below are not.
#     python prepare.py --source=stories.csv --dataset=mine --tokenizer=gpt2 --trim=False
#     python train.py config/finetune_gpt2.py --dataset=mine
#     python train.py config/finetune_gpt2.py --dataset=mine --init_from=gpt2-xl --batch_size=2 \
#         --gradient_accumulation_steps=16
#     python train.py config/finetune_gpt2.py --dataset=pile --init_from=EleutherAI/pythia-70m --out_dir=out/pythia
#         # or any other causal model, on data that are prepared with its tokenizer
#     python train.py config/finetune_gpt2.py --dataset=mine --lora_rank=0 --learning_rate=5e-5  # train all weights
#     python sample.py --out_dir=out/gpt2 --start="Once upon a time" --temperature=1.25 --top_k=250
#     python export.py --out_dir=out/gpt2 --format=peft  # the adapters, for peft

dataset = 'english'
out_dir = 'out/gpt2'
init_from = 'gpt2'  # or distilgpt2, gpt2-medium, gpt2-large, gpt2-xl
block_size = 512

lora_rank = 8
lora_alpha = 16.0
lora_dropout = 0.05
merge_lora = False  # False: best.pt contains only the adapters, some megabytes; True: the whole model

batch_size = 8
gradient_accumulation_steps = 4
learning_rate = 5e-4
min_lr = 0.0
weight_decay = 0.01
max_iters = 1000
warmup_iters = 50
eval_interval = 100
