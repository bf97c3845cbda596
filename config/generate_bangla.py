# Bangla stories with the prompt of config/generate_hindi.py.

exec(open(find('config/generate_hindi.py'), encoding='utf-8').read())

language = 'bangla'
books = 'Thakurmar Jhuli, Tuntunir Boi and Abol Tabol'
