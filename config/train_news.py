# The model of config/train_hindi.py on news bulletins.
#     python sample.py --out_dir=out/news --start=FILE:data/news/prompts.txt --out=out/news/samples.jsonl

exec(open(find('config/train_hindi.py'), encoding='utf-8').read())

dataset = 'news'
out_dir = 'out/news'
