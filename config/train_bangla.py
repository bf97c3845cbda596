# The model of config/train_hindi.py on Bangla stories.

exec(open(find('config/train_hindi.py'), encoding='utf-8').read())

dataset = 'bangla'
out_dir = 'out/bangla'
