# English stories with the prompt of config/generate_hindi.py.

exec(open(find('config/generate_hindi.py'), encoding='utf-8').read())

language = 'english'
books = 'Winnie-the-Pooh, Frog and Toad and The Wind in the Willows'
