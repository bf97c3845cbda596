# The model of config/train_hindi.py on English stories.

exec(open(find('config/train_hindi.py'), encoding='utf-8').read())

dataset = 'english'
out_dir = 'out/english'
