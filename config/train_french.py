# The model of config/train_hindi.py on French stories.

exec(open(find('config/train_hindi.py'), encoding='utf-8').read())

dataset = 'french'
out_dir = 'out/french'
